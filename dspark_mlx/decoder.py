"""The decoder: what `load` returns and applications call."""

from __future__ import annotations

import contextlib
import dataclasses
import warnings
from collections import deque
from collections.abc import Callable, Collection, Generator, Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeAlias, Unpack

from .engine.active import ActiveRequest, ActiveRequests
from .engine.request import SETTINGS, TEXT_SETTINGS, Request, Settings, check_prompt
from .engine.rounds import Begun, rounds
from .engine.state import Engine, make_engine
from .engine.stream import TextStream, stream
from .engine.template_settings import TEMPLATE_SETTINGS, TemplateSettings
from .errors import InputError
from .lookup.lookup import Lookup
from .numbers import check_whole, listed, plain, shown, token_ids
from .progress import ProgressCallback
from .reuse.kept import KeptPrompts
from .sampling.json_schema import JsonSchema
from .sampling.make import make_sampler
from .sampling.setting_table import with_settings
from .schedulers import Scheduler
from .schedulers.full import FullScheduler
from .schedulers.make import check_scheduler, make_scheduler, needs_profile
from .schedulers.speed_profile import SpeedProfile
from .serving.conversation import Conversation
from .serving.handle import RequestHandle
from .serving.on_demand import OnDemand
from .serving.service import Limits
from .targets.positions import max_length, warn_when_cut
from .text.answer_parts import AnswerParts, answer_format
from .text.end_tokens import end_tokens
from .text.generation_config import generation_defaults
from .text.tokenizer import Tokenizer
from .text.tokenizer_files import has_tokenizer
from .types import Chunk, Round
from .vision.encoder import ImageEncoder, ImagePrompt
from .vision.images import take_images

Messages: TypeAlias = Sequence[dict[str, Any]]
Prompt: TypeAlias = str | Messages | Sequence[int]

_NO_VARIABLES: Mapping[str, Any] = MappingProxyType({})


class Decoder:
    """A target and its drafter, ready to decode; `load` makes one.

    Requests may overlap, in one thread or in several: requests of the same target take turns, one
    round each. Different threads may ask for the rounds of one request, one thread at a time.

    Args:
        engine: target, drafter and scheduler.
        folder: the target's folder, which holds its tokenizer; of a network that was given, the
            name in errors.
        config: the target's config.json.
        drafter_folder: the drafter's canonical folder; None without a drafter.
        precision: the type that the weights are held in, one of `precision.NAMES` except "auto".
        adapter: folder of the target's adapter; None without one.
        given: the tokenizer that was given with a network; None where the folder has one.
        encoder: reads images for the target; None to make one.
    """

    def __init__(
        self,
        engine: Engine,
        folder: Path,
        config: dict[str, Any],
        drafter_folder: Path | None = None,
        precision: str = "stored",
        adapter: Path | None = None,
        given: Tokenizer | None = None,
        encoder: ImageEncoder | None = None,
    ) -> None:
        self._engine = engine
        self._folder = folder
        self._config = config
        self._drafter_folder = drafter_folder
        self._precision = precision
        self._adapter = adapter
        self._given = self._tokenizer = given
        network = engine.target.model
        self._encoder = encoder or ImageEncoder(folder, config, precision, network)
        self._said_not_finite = False
        self._service = OnDemand()

    def __enter__(self) -> Decoder:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    @property
    def engine(self) -> Engine:
        """Target, drafter and scheduler."""
        return self._engine

    @property
    def kept_prompts(self) -> KeptPrompts | None:
        """What is kept of earlier requests' prompts and answers; None where nothing is."""
        return self._engine.kept

    @property
    def target_folder(self) -> Path:
        """The folder that the target was loaded from; of a given network a name, no folder."""
        return self._folder

    @property
    def is_given(self) -> bool:
        """Whether the target was given as a network and a tokenizer."""
        return self._given is not None

    @property
    def adapter_folder(self) -> Path | None:
        """The folder of the target's adapter; None without one."""
        return self._adapter

    @property
    def drafter_folder(self) -> Path | None:
        """The folder of the drafter in canonical form; None without a drafter."""
        return self._drafter_folder

    @property
    def config(self) -> dict[str, Any]:
        """The target's config.json."""
        return self._config

    @property
    def precision(self) -> str:
        """The type that the weights are held in: "stored", "float32", "bfloat16" or "float16"."""
        return self._precision

    @property
    def tokenizer(self) -> Tokenizer:
        """The target's tokenizer, loaded when first needed.

        Raises:
            InputError: see `Tokenizer.load`.
        """
        if self._tokenizer is None:
            self._tokenizer = Tokenizer.load(self._folder, self._configured_ends)
        return self._tokenizer

    @property
    def stop_tokens(self) -> frozenset[int]:
        """Token ids that end a text, where a request names no others in its own `stop_tokens`.

        They are the union of what the target's config.json, generation_config.json and tokenizer
        name; a folder without a tokenizer has what its configs name.

        Raises:
            InputError: see `end_tokens.end_tokens` and `Tokenizer.load`.
        """
        if self._tokenizer is None and not has_tokenizer(self._folder):
            return self._configured_ends
        return self._configured_ends | self.tokenizer.end_tokens

    @property
    def _configured_ends(self) -> frozenset[int]:
        return end_tokens(self._folder, self._config, self._engine.target.vocab_size)

    @property
    def max_length(self) -> int | None:
        """Number of positions that the target was made for; None where its config does not say.

        Raises:
            InputError: see `positions.max_length`.
        """
        return max_length(self._folder, self._config)

    @property
    def generation_defaults(self) -> dict[str, Any]:
        """Settings that the target's makers recommend, of its generation_config.json.

        They are keyword arguments of `stream`, `submit` and `rounds`, which do not use them unless
        they are given; empty where the file names none.

        Raises:
            InputError: see `generation_config.generation_defaults`.
        """
        return generation_defaults(self._folder)

    def plain(self) -> Decoder:
        """A decoder of the same target without the drafter; it runs the same loop."""
        kept = self._engine.kept and self._engine.kept.fresh()
        engine = dataclasses.replace(
            self._engine, drafter=None, scheduler=FullScheduler(), kept=kept
        )
        return self._with(engine, None)

    def with_scheduler(
        self, scheduler: str | Scheduler, profile: SpeedProfile | None = None
    ) -> Decoder:
        """A decoder of the same pair under another scheduler; nothing is measured.

        Args:
            scheduler: a name as `load` takes it, or an object with the methods of
                `schedulers.Scheduler`.
            profile: speed profile of the pair on this device. With it a verify forward is padded to
                a wider one where that is cheaper. None for the one that this decoder has, if any.

        Raises:
            InputError: `scheduler` or `profile` is of another type; the scheduler needs a profile
                and there is none; or it reads confidences and the drafter has no confidence head.
        """
        check_scheduler(scheduler)
        if not isinstance(profile, SpeedProfile | None):
            expected = "a SpeedProfile, as schedulers.speed_profile.read_profile returns"
            raise InputError("profile", shown(profile), expected)
        profile, drafter = profile or self._engine.profile, self._engine.drafter
        if isinstance(scheduler, str):
            if drafter is None:  # there is nothing to schedule, as for `load`
                return self
            if profile is None and needs_profile(scheduler):
                where, found = f"scheduler {scheduler}", "no speed profile in this decoder"
                hint = "load and add_drafter measure one when they are asked for this scheduler."
                raise InputError(where, found, "profile=, a speed profile of this pair", hint)
            has_confidence = drafter.config.has_confidence
            scheduler = make_scheduler(scheduler, profile, drafter.calibrations, has_confidence)
        engine = make_engine(self._engine.target, drafter, scheduler, profile)
        kept = self._engine.kept
        return self._with(dataclasses.replace(engine, kept=kept), self._drafter_folder)

    def with_engine(self, engine: Engine, drafter_folder: Path | None) -> Decoder:
        """A decoder of the same target with another engine; folder and tokenizer are shared."""
        return self._with(engine, drafter_folder)

    def _with(self, engine: Engine, drafter_folder: Path | None) -> Decoder:
        about = self._precision, self._adapter, self._given, self._encoder
        other = Decoder(engine, self._folder, self._config, drafter_folder, *about)
        other._tokenizer = self._tokenizer
        return other

    def json_schema(self, schema: Mapping[str, Any]) -> JsonSchema:
        """A logits processor that keeps a text to a JSON schema; one serves many requests.

        Args:
            schema: the JSON schema. Without bounds on its strings and arrays a text can reach
                `max_tokens` before it is complete.

        Raises:
            InputError: see `json_schema.JsonSchema`.
        """
        vocabulary = self._engine.target.vocab_size
        return JsonSchema(schema, self.tokenizer.hugging_face, vocabulary, self.stop_tokens)

    @with_settings("Settings", TEMPLATE_SETTINGS.values())
    def encode(
        self,
        prompt: Prompt,
        *,
        thinking: bool | None = None,
        tools: Sequence[Mapping[str, Any]] | None = None,
        chat_template_kwargs: Mapping[str, Any] = _NO_VARIABLES,
        prefill_response: str | None = None,
    ) -> list[int]:
        """Token ids of a prompt.

        Args:
            prompt: text, which is encoded as it is; chat messages, which the target's chat template
                turns into text; or token ids, which are returned. Messages with images are for
                `stream` and its like, since token ids do not hold them.
            thinking, tools, chat_template_kwargs, prefill_response: see Settings below; for chat
                messages only.

        Raises:
            InputError: the chat template does not take the messages, or the prompt or a setting has
                another type.
        """
        settings = TemplateSettings(thinking, tools, chat_template_kwargs, prefill_response)
        return self._encode(prompt, settings)

    def _encode(self, prompt: Prompt, settings: TemplateSettings) -> list[int]:
        settings.variables()
        settings.answer()
        if isinstance(prompt, str):
            settings.check_unused()
            return self.tokenizer.encode_prompt(prompt)
        taken = listed(prompt)
        if not isinstance(taken, Sequence) or isinstance(taken, bytes | bytearray | memoryview):
            found = type(prompt).__name__
            raise InputError("prompt", found, "a string, a list of messages or of token ids")
        if taken and not _is_number(taken[0]):
            return list(self._write(taken, settings))
        settings.check_unused(("tools",))
        return token_ids("prompt", taken, self._engine.target.vocab_size)

    def _write(self, messages: Messages, settings: TemplateSettings, **options: Any) -> Any:
        """What the chat template makes of messages; `options` are of `apply_chat_template`."""
        answer = settings.answer()
        continues = answer is not None
        if continues:
            messages = [*messages, {"role": "assistant", "content": answer}]
        return self.tokenizer.apply_chat_template(
            messages,
            add_generation_prompt=not continues,
            continue_final_message=continues,
            **options,
            **settings.variables(),
        )

    def _read(
        self, prompt: Prompt, settings: TemplateSettings
    ) -> tuple[list[int], ImagePrompt | None]:
        """Token ids of a prompt, and the prompt with its images where it has some."""
        messages, images = take_images(prompt)
        if not images:
            return self._encode(prompt, settings), None
        if self.is_given:
            hint = "Load the target from its folder."
            raise InputError("messages", "images", "text, for a network that was given", hint)
        text = self._write(messages, settings, tokenize=False, images=True)
        read = self._encoder.read(text, images)
        return read.ids, read

    @with_settings("Settings", [row for row in SETTINGS.values() if row.name not in TEXT_SETTINGS])
    def rounds(
        self,
        prompt_ids: Sequence[int],
        max_tokens: int = 256,
        *,
        stop_tokens: Collection[int] | None = None,
        progress: ProgressCallback | None = None,
        **settings: Unpack[Settings],
    ) -> Generator[Round, None, None]:
        """Decode token ids, one `Round` at a time; needs no tokenizer.

        Args:
            prompt_ids: at least one token id; a list or an array of NumPy or MLX.
            max_tokens, stop_tokens, settings: see Settings below.
            progress: called with the number of prompt tokens read so far and of all.

        Returns:
            A generator; the first `Round` holds the prefill's token. Closing it frees the caches.

        Raises:
            InputError: at once, for a prompt or setting that cannot be used.

        Warns:
            UserWarning: the target's positions end a text before `max_tokens`, or drafts are not
                finite.
        """
        request = Request.make(max_tokens, (), settings, stop_tokens)
        stops = self._stops(request)
        ids = token_ids("prompt", prompt_ids, self._engine.target.vocab_size)
        return self._rounds(ids, request, stops, progress)

    @with_settings("Settings", SETTINGS.values())
    def stream(
        self,
        prompt: Prompt,
        max_tokens: int = 256,
        *,
        stop: str | Sequence[str] = (),
        stop_tokens: Collection[int] | None = None,
        thinking: bool | None = None,
        tools: Sequence[Mapping[str, Any]] | None = None,
        chat_template_kwargs: Mapping[str, Any] = _NO_VARIABLES,
        prefill_response: str | None = None,
        progress: ProgressCallback | None = None,
        on_round: Callable[[Round], None] | None = None,
        **settings: Unpack[Settings],
    ) -> Iterator[Chunk]:
        """Decode text, one `Chunk` per token.

        Args:
            prompt: text, chat messages (with images too) or token ids, see `encode`.
            max_tokens, stop_tokens, settings: see Settings below.
            stop: one string or several, see Settings below.
            thinking, tools, chat_template_kwargs, prefill_response: see Settings below; for chat
                messages only.
            progress: called with the number of prompt tokens read so far and of all.
            on_round: called with every `Round` before its chunks.

        Returns:
            An iterator; the text ends with the chunk that has a `finish_reason`. A stop token has a
            chunk but adds no text.

        Raises:
            InputError: at once, for a prompt or setting that cannot be used.

        Warns:
            UserWarning: as `rounds` does.
        """
        request = Request.make(max_tokens, _strings(stop), settings, stop_tokens)
        template = TemplateSettings(thinking, tools, chat_template_kwargs, prefill_response)
        ids, images = self._read(prompt, template)
        stops = self._stops(request)
        rounds_ = self._rounds(ids, request, stops, progress, images)
        return stream(rounds_, self._text(ids, request, stops, tools), on_round)

    @with_settings("Settings", SETTINGS.values())
    def submit(
        self,
        prompt: Prompt,
        max_tokens: int = 256,
        *,
        stop: str | Sequence[str] = (),
        stop_tokens: Collection[int] | None = None,
        thinking: bool | None = None,
        tools: Sequence[Mapping[str, Any]] | None = None,
        chat_template_kwargs: Mapping[str, Any] = _NO_VARIABLES,
        prefill_response: str | None = None,
        parts: bool = True,
        **settings: Unpack[Settings],
    ) -> RequestHandle:
        """Queue a request, which a thread of this decoder runs beside others.

        The thread begins with the first request and ends with `close`. Any thread may submit.

        Args:
            prompt: text, chat messages (with images too) or token ids, see `encode`.
            max_tokens, stop_tokens, settings: see Settings below.
            stop: one string or several, see Settings below.
            thinking, tools, chat_template_kwargs, prefill_response: see Settings below; for chat
                messages only.
            parts: whether reasoning and tool calls are told from the content; False where the text
                follows a grammar of its own.

        Returns:
            A handle, to be iterated for chunks by `for` or `async for`; `cancel()` ends the request
            before its next round, and `result()` waits for the whole answer.

        Raises:
            InputError: at once, for a prompt or setting that cannot be used.
            BusyError: as many requests wait as `limits` allows.
            ClosedError: the decoder was closed.
        """
        request = Request.make(max_tokens, _strings(stop), settings, stop_tokens)
        template = TemplateSettings(thinking, tools, chat_template_kwargs, prefill_response)
        ids, images = self._read(prompt, template)
        stops = self._stops(request)
        self._check(ids, request)
        text = self._warned_text(ids, request, stops, tools, parts)

        # Made in the thread that runs it: arrays belong to the thread that makes them.
        def start(active: ActiveRequests) -> ActiveRequest:
            return active.add(ids, **self._begun(ids, request, stops, None, images))

        return self._service.submit(self, self._engine, start, text)

    @property
    def limits(self) -> Limits:
        """How many requests `submit` runs and keeps waiting; to be set before the first one."""
        return self._service.limits

    @limits.setter
    def limits(self, limits: Limits) -> None:
        self._service.limits = limits

    @property
    def requests_now(self) -> tuple[int, int]:
        """Numbers of submitted requests that decode and that wait."""
        return self._service.counts

    def close(self, timeout: float = 0.0) -> None:
        """End the thread of `submit`, if there is one, and let go of the files of kept prompts.

        `stream` and `rounds` go on working.

        Args:
            timeout: seconds that submitted requests get to end; those that have not are cancelled.
        """
        self._service.close(timeout)
        if self._engine.kept is not None:
            self._engine.kept.close()

    def _text(
        self,
        ids: Sequence[int],
        request: Request,
        stop_tokens: Collection[int],
        tools: Sequence[Mapping[str, Any]] | None,
        parts: bool = True,
    ) -> TextStream:
        """The text of a request that begins."""
        tokenizer = self.tokenizer
        return TextStream(
            tokenizer.detokenizer_after(ids),
            prompt_tokens=len(ids),
            max_tokens=self._max_tokens(ids, request),
            stop_tokens=stop_tokens,
            stop=request.stop,
            parts=AnswerParts(answer_format(tokenizer, ids, tools)) if parts else None,
        )

    def _warned_text(
        self,
        ids: Sequence[int],
        request: Request,
        stop_tokens: Collection[int],
        tools: Sequence[Mapping[str, Any]] | None,
        parts: bool = True,
    ) -> _WarnedText:
        return _WarnedText(
            lambda made: self._warned(made, ids, request, stop_tokens),
            self._text(ids, request, stop_tokens, tools, parts),
        )

    @with_settings("Settings", SETTINGS.values())
    def generate(self, prompt: Prompt, max_tokens: int = 256, **settings: Any) -> str:
        """The text that the target writes after a prompt, whole.

        It is `stream`, joined: a method of the decoder, where mlx-lm has a function
        `generate(model, tokenizer, prompt)`. `dspark_mlx.generate` is the command.

        Args:
            prompt: text, chat messages or token ids, see `encode`.
            max_tokens: see Settings below.
            settings: keyword arguments of `stream`.

        Raises:
            InputError: for a prompt or setting that cannot be used.

        Warns:
            UserWarning: as `rounds` does.
        """
        return "".join(chunk.text for chunk in self.stream(prompt, max_tokens, **settings))

    @with_settings("Settings", SETTINGS.values())
    def generate_batch(
        self,
        prompts: Sequence[Prompt],
        max_tokens: int = 256,
        *,
        at_once: int = 8,
        stop: str | Sequence[str] = (),
        stop_tokens: Collection[int] | None = None,
        thinking: bool | None = None,
        tools: Sequence[Mapping[str, Any]] | None = None,
        chat_template_kwargs: Mapping[str, Any] = _NO_VARIABLES,
        prefill_response: str | None = None,
        progress: ProgressCallback | None = None,
        **settings: Unpack[Settings],
    ) -> list[str]:
        """The texts that the target writes after several prompts, decoded together.

        Args:
            prompts: each is text, chat messages or token ids, see `encode`.
            max_tokens, stop_tokens, settings: of each text, see Settings below.
            at_once: number of prompts that decode at the same time; each has caches.
            stop: one string or several, see Settings below.
            thinking, tools, chat_template_kwargs, prefill_response: see Settings below; for chat
                messages only.
            progress: called with the number of texts that are complete and of all.

        Returns:
            The texts, in the order of the prompts.

        Raises:
            InputError: for a prompt or setting that cannot be used, before anything is decoded.

        Warns:
            UserWarning: as `rounds` does, and where the target decodes its requests one by one.
        """
        check_whole("at_once", at_once, 1)
        request = Request.make(max_tokens, _strings(stop), settings, stop_tokens)
        template = TemplateSettings(thinking, tools, chat_template_kwargs, prefill_response)
        stops = self._stops(request)
        read = [self._read(prompt, template) for prompt in prompts]
        encoded = [ids for ids, _ in read]
        begun = [self._begun(ids, request, stops, None, images) for ids, images in read]
        texts, waiting = [""] * len(encoded), deque(range(len(encoded)))
        running: dict[ActiveRequest, tuple[int, _WarnedText]] = {}
        with contextlib.closing(ActiveRequests(self._engine)) as active:
            while waiting or running:
                while waiting and len(running) < at_once:
                    i = waiting.popleft()
                    text = self._warned_text(encoded[i], request, stops, tools)
                    running[active.add(encoded[i], **begun[i])] = i, text
                for one, round_ in active.step():
                    if isinstance(round_, Exception):
                        raise round_
                    i, text = running[one]
                    chunks = text.push(round_)
                    texts[i] += "".join(chunk.text for chunk in chunks)
                    if chunks[-1].finish_reason:
                        active.remove(one)
                        del running[one]
                        if progress:
                            progress(len(texts) - len(waiting) - len(running), len(texts))
        return texts

    @with_settings("Settings", [row for row in SETTINGS.values() if row.name not in TEXT_SETTINGS])
    def add(
        self,
        active: ActiveRequests,
        prompt_ids: Sequence[int],
        max_tokens: int = 256,
        *,
        stop_tokens: Collection[int] | None = None,
        progress: ProgressCallback | None = None,
        **settings: Unpack[Settings],
    ) -> ActiveRequest:
        """Add a request to others that decode at the same time; needs no tokenizer.

        Args:
            active: requests of this decoder, made as `ActiveRequests(decoder.engine)`.
            prompt_ids, max_tokens, stop_tokens, progress, settings: as for `rounds`.

        Returns:
            The request, which `ActiveRequests.step` gives its rounds from now on.

        Raises:
            InputError: for a prompt or setting that cannot be used.
        """
        request = Request.make(max_tokens, (), settings, stop_tokens)
        ids = token_ids("prompt", prompt_ids, self._engine.target.vocab_size)
        return active.add(ids, **self._begun(ids, request, self._stops(request), progress))

    def conversation(self, messages: Messages = (), **settings: Any) -> Conversation:
        """A conversation, which keeps its messages: `send` takes one and yields the answer.

        Args:
            messages: what it begins with, a system message for example.
            settings: keyword arguments of `stream` for every answer.
        """
        return Conversation(self.stream, messages, settings)

    def _check(self, ids: Sequence[int], request: Request) -> None:
        vocabulary = self._engine.target.vocab_size
        check_prompt(ids, vocabulary, self.max_length)
        request.sampling.check_tokens(vocabulary)

    def _rounds(
        self,
        ids: Sequence[int],
        request: Request,
        stop_tokens: Collection[int],
        progress: ProgressCallback | None,
        images: ImagePrompt | None = None,
    ) -> Generator[Round, None, None]:
        begun = self._begun(ids, request, stop_tokens, progress, images)
        made = rounds(self._engine, ids, **begun)
        return self._warned(made, ids, request, stop_tokens)

    def _begun(
        self,
        ids: Sequence[int],
        request: Request,
        stop_tokens: Collection[int],
        progress: ProgressCallback | None,
        images: ImagePrompt | None = None,
    ) -> Begun:
        """A checked request as the engine takes it."""
        self._check(ids, request)
        vocabulary = self._engine.target.vocab_size
        return {
            "max_tokens": self._max_tokens(ids, request),
            "stop_tokens": stop_tokens,
            "sampler": make_sampler(request.sampling, vocabulary, len(ids), request.sample),
            "prefill_step_size": request.prefill_step_size,
            "progress": progress,
            "images": images,
            "lookup": Lookup(self._references(request)) if request.copies else None,
        }

    def _warned(
        self,
        made: Iterator[Round],
        ids: Sequence[int],
        request: Request,
        stop_tokens: Collection[int],
    ) -> Generator[Round, None, None]:
        """The same rounds, with what there is to warn of."""
        said, limit = self._said_when_not_finite(made), self._max_tokens(ids, request)
        if limit == request.max_tokens:
            return said
        return warn_when_cut(said, limit, request.max_tokens, stop_tokens)

    def _references(self, request: Request) -> list[list[int]]:
        """Token ids of the request's references.

        Raises:
            InputError: an id that the target does not have, or a text without a tokenizer.
        """
        vocabulary = self._engine.target.vocab_size
        return [
            self.tokenizer.encode(each, add_special_tokens=False)
            if isinstance(each, str)
            else token_ids("reference", each, vocabulary)
            for each in request.reference
        ]

    def _stops(self, request: Request) -> frozenset[int]:
        if request.stop_tokens is None:
            return self.stop_tokens
        return frozenset(request.stop_tokens)

    def _said_when_not_finite(self, made: Iterator[Round]) -> Generator[Round, None, None]:
        """The same rounds; the first draft that is not finite is warned of."""
        for round_ in made:
            if not round_.drafts_finite and not self._said_not_finite:
                self._said_not_finite = True
                message = (
                    "drafts that are not finite (NaN or infinite) are rejected; the text is right"
                )
                warnings.warn(f"{self._drafter_folder or 'drafter'}: {message}", stacklevel=3)
            yield round_

    def _max_tokens(self, ids: Sequence[int], request: Request) -> int:
        positions = self.max_length
        if positions is None:
            return request.max_tokens
        return min(request.max_tokens, positions - len(ids))


class _WarnedText:
    """A text to which rounds are pushed, as `TextStream`, with what there is to warn of.

    Args:
        warned: makes of rounds the same rounds, and warns.
        text: makes chunks of them.
    """

    def __init__(
        self, warned: Callable[[Iterator[Round]], Iterator[Round]], text: TextStream
    ) -> None:
        self._feed: deque[Round] = deque()
        self._rounds = warned(iter(self._feed.popleft, None))
        self._text = text

    def push(self, round_: Round) -> list[Chunk]:
        """See `TextStream.push`."""
        self._feed.append(round_)
        return self._text.push(next(self._rounds))


def _strings(stop: str | Sequence[str]) -> tuple[str, ...]:
    if isinstance(stop, str):
        return (stop,)
    if not isinstance(stop, Collection):
        raise InputError("stop", shown(stop), "a string or several")
    return tuple(stop)


def _is_number(value: object) -> bool:
    return isinstance(plain(value), int | float)

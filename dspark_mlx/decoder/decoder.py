"""The decoder: what `load` returns and applications call."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Collection, Generator, Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Self, Unpack

from ..engine.active import ActiveRequest, ActiveRequests
from ..engine.request import SETTINGS, TEXT_SETTINGS, Settings, TextSettings
from ..engine.rounds import rounds
from ..engine.state import Engine
from ..engine.stream import stream
from ..numbers import check_callback, check_whole
from ..progress import ProgressCallback
from ..sampling.setting_table import with_settings
from ..serving.admission import Admission, Need, Reservation
from ..serving.conversation import Conversation
from ..serving.footprint import Footprint
from ..serving.handle import RequestHandle, check_timeout
from ..serving.on_demand import OnDemand
from ..serving.service import Limits
from ..text.tokenizer import Tokenizer
from ..types import Chunk, Round
from ..vision.encoder import ImageEncoder
from .loaded_pair import LoadedPair
from .not_finite import NotFiniteWarning
from .prepared import PreparedRequest, TextRequest
from .target_text import Messages, Prompt, TargetText
from .together import texts_of

_ROUND_SETTINGS = [row for row in SETTINGS.values() if row.name not in TEXT_SETTINGS]


class Decoder(LoadedPair):
    """A target and its drafter, ready to decode; `load` makes one.

    Requests may overlap, in one thread or in several: requests of the same target take turns, one
    round each. Different threads may ask for the rounds of one request, one thread at a time.
    `LoadedTarget` says what was loaded and encodes prompts; `LoadedPair` has the drafter, and the
    same pair under another scheduler.

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
        admission: gives requests their memory; None to make one.
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
        admission: Admission | None = None,
    ) -> None:
        target = engine.target
        encoder = encoder or ImageEncoder(folder, config, precision, target.model)
        text = TargetText(folder, config, target.vocab_size, encoder, given)
        super().__init__(engine, drafter_folder, text, precision, adapter)
        self._not_finite = NotFiniteWarning(str(drafter_folder or "drafter"))
        self._admission = admission or Admission()
        self._service = OnDemand(self._admission)

    def __enter__(self) -> Decoder:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def with_engine(self, engine: Engine, drafter_folder: Path | None) -> Self:
        """See `LoadedPair.with_engine`."""
        text = self._text
        about = self._precision, self._adapter, text.given, text.encoder, self._admission
        other = type(self)(engine, text.folder, text.config, drafter_folder, *about)
        other._text = text
        return other

    @with_settings("Settings", _ROUND_SETTINGS)
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
            MemoryLimitError: at once, or at the first round, for a request that needs more memory
                than there is.

        Warns:
            UserWarning: the target's positions end a text before `max_tokens`, or drafts are not
                finite.
        """
        prepared = self._of_ids(prompt_ids, max_tokens, settings, stop_tokens)
        return self._rounds(prepared, progress)

    @with_settings("Settings", SETTINGS.values())
    def stream(
        self,
        prompt: Prompt,
        max_tokens: int = 256,
        *,
        progress: ProgressCallback | None = None,
        on_round: Callable[[Round], None] | None = None,
        **settings: Unpack[TextSettings],
    ) -> Iterator[Chunk]:
        """Decode text, one `Chunk` per token.

        Args:
            prompt: text, chat messages (with images too) or token ids, see `encode`.
            max_tokens, settings: see Settings below; those of chat templates are for chat
                messages only.
            progress: called with the number of prompt tokens read so far and of all.
            on_round: called with every `Round` before its chunks.

        Returns:
            An iterator; the text ends with the chunk that has a `finish_reason`. A stop token has a
            chunk but adds no text.

        Raises:
            InputError: at once, for a prompt or setting that cannot be used.
            MemoryLimitError: as `rounds` does.

        Warns:
            UserWarning: as `rounds` does.
        """
        check_callback("on_round", on_round)
        prepared = self._prepare(prompt, max_tokens, settings)
        return stream(self._rounds(prepared, progress), prepared.text_stream(), on_round)

    @with_settings("Settings", SETTINGS.values())
    def submit(
        self,
        prompt: Prompt,
        max_tokens: int = 256,
        *,
        parts: bool = True,
        **settings: Unpack[TextSettings],
    ) -> RequestHandle:
        """Queue a request, which a thread of this decoder runs beside others.

        The thread begins with the first request and ends with `close`. Any thread may submit.

        Args:
            prompt: text, chat messages (with images too) or token ids, see `encode`.
            max_tokens, settings: see Settings below; those of chat templates are for chat
                messages only.
            parts: whether reasoning and tool calls are told from the content; False where the text
                follows a grammar of its own.

        Returns:
            A handle, to be iterated for chunks by `for` or `async for`; `cancel()` ends the request
            before its next round, and `result()` waits for the whole answer.

        Raises:
            InputError: at once, for a prompt or setting that cannot be used.
            MemoryLimitError: it needs more memory than there will be when others have ended. One
                that others have to end for waits.
            BusyError: as many requests wait as `limits` allows.
            ClosedError: the decoder was closed.
        """
        prepared = self._prepare(prompt, max_tokens, settings)

        memory = self._reservation(prepared, batched=True)

        # Made in the thread that runs it: arrays belong to the thread that makes them.
        def start(active: ActiveRequests) -> ActiveRequest:
            return active.add(prepared.ids, **prepared.begun(memory.reading(None)))

        text = prepared.warned_text(parts)
        return self._service.submit(self, self._engine, start, text, memory)

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

        The target's modules are again as they were loaded, without kernels of this package's own
        and not exact; `stream` and `rounds` go on working.

        Args:
            timeout: seconds that submitted requests get to end; those that have not are cancelled.

        Raises:
            InputError: the timeout is no number of seconds.
        """
        check_timeout(timeout)
        self._service.close(timeout)
        self._engine.target.drop_kernels()
        self._engine.target.drop_rows()
        if self._engine.kept is not None:
            self._engine.kept.close()

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
        progress: ProgressCallback | None = None,
        **settings: Unpack[TextSettings],
    ) -> list[str]:
        """The texts that the target writes after several prompts, decoded together.

        Args:
            prompts: each is text, chat messages or token ids, see `encode`.
            max_tokens, settings: of each text, see Settings below.
            at_once: number of prompts that decode at the same time; each has caches.
            progress: called with the number of texts that are complete and of all.

        Returns:
            The texts, in the order of the prompts.

        Raises:
            InputError: for a prompt or setting that cannot be used, before anything is decoded.
            MemoryLimitError: a text needs more memory than there is, before anything is decoded.
                Where not all fit at once, fewer decode at the same time.

        Warns:
            UserWarning: as `rounds` does, and where the target decodes its requests one by one.
        """
        check_whole("at_once", at_once, 1)
        check_callback("progress", progress)
        request = TextRequest.make(max_tokens, settings)
        prepared = request.prepare_all(prompts, self._text, self._not_finite)
        memory = [self._reservation(each, batched=True) for each in prepared]
        return texts_of(self._engine, prepared, memory, at_once, progress)

    @with_settings("Settings", _ROUND_SETTINGS)
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
            MemoryLimitError: it needs more memory than there is.
        """
        prepared = self._of_ids(prompt_ids, max_tokens, settings, stop_tokens)
        memory = self._reservation(prepared, batched=True)
        with contextlib.ExitStack() as resources:
            resources.enter_context(memory)
            added = active.add(prepared.ids, **prepared.begun(memory.reading(progress)))
            added.resources.push(resources.pop_all())
        return added

    def conversation(self, messages: Messages = (), **settings: Any) -> Conversation:
        """A conversation, which keeps its messages: `send` takes one and yields the answer.

        Args:
            messages: what it begins with, a system message for example.
            settings: keyword arguments of `stream` for every answer.

        Raises:
            InputError: a message is none, or a setting cannot be used.
        """
        own = ("max_tokens", "progress", "on_round")
        others = {name: value for name, value in settings.items() if name not in own}
        TextRequest.make(settings.get("max_tokens", 256), others)
        return Conversation(self.stream, messages, settings)

    def _prepare(
        self, prompt: Prompt, max_tokens: int, settings: Mapping[str, Any]
    ) -> PreparedRequest:
        request = TextRequest.make(max_tokens, settings)
        return request.prepare(prompt, self._text, self._not_finite)

    def _of_ids(
        self,
        prompt_ids: Sequence[int],
        max_tokens: int,
        settings: Mapping[str, Any],
        stop_tokens: Collection[int] | None,
    ) -> PreparedRequest:
        about = self._text, self._not_finite
        return PreparedRequest.of_ids(prompt_ids, max_tokens, settings, stop_tokens, *about)

    def _rounds(
        self, prepared: PreparedRequest, progress: ProgressCallback | None
    ) -> Generator[Round, None, None]:
        check_callback("progress", progress)
        memory = self._reservation(prepared)
        memory.check(waits=False)
        begun = prepared.begun(memory.reading(progress))
        return prepared.warned(memory.during(rounds(self._engine, prepared.ids, **begun)))

    def _reservation(self, prepared: PreparedRequest, batched: bool = False) -> Reservation:
        """The memory of a request, which it does not hold yet."""
        step = prepared.request.prefill_step_size
        # Where requests run one by one, each has caches of its own length.
        batched = batched and self._engine.target.batches is not False
        need = Need(len(prepared.ids), prepared.max_tokens, step, batched)
        return Reservation(self._admission, need, self._footprint, self._engine.kept)

    @cached_property
    def _footprint(self) -> Footprint:
        return Footprint(self._engine, self.config)

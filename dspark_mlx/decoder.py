"""The decoder: what `load` returns and applications call."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from .engine.request import Request, Settings, check_prompt
from .engine.rounds import rounds
from .engine.state import Engine, make_engine
from .engine.stream import stream
from .errors import InputError
from .numbers import listed, plain, shown, token_ids
from .progress import ProgressCallback
from .sampling.json_schema import JsonSchema
from .sampling.make import make_sampler
from .schedulers import Scheduler
from .schedulers.speed_profile import SpeedProfile
from .targets.positions import max_length, said_when_cut
from .text.end_tokens import end_tokens
from .text.tokenizer import Tokenizer
from .text.tokenizer_files import has_tokenizer
from .types import Chunk, Round

if TYPE_CHECKING:
    from typing_extensions import Unpack

Messages: TypeAlias = Sequence[dict[str, Any]]
Prompt: TypeAlias = str | Messages | Sequence[int]


class Decoder:
    """A target and its drafter, ready to decode.

    Made by `load`. Requests may overlap, in one thread or in several: those of one target take
    turns, a round each. One request's rounds may be asked for by different threads, one after the
    other.

    Args:
        engine: target, drafter and scheduler.
        folder: the target's folder, for its tokenizer.
        config: the target's config.json.
        drafter_folder: the drafter's canonical folder; None without a drafter.
        precision: what the weights are held in, one of `precision.NAMES` but "auto".
    """

    def __init__(
        self,
        engine: Engine,
        folder: Path,
        config: dict[str, Any],
        drafter_folder: Path | None = None,
        precision: str = "stored",
    ) -> None:
        self._engine = engine
        self._folder = folder
        self._config = config
        self._drafter_folder = drafter_folder
        self._precision = precision
        self._tokenizer: Tokenizer | None = None
        self._said_not_finite = False

    @property
    def engine(self) -> Engine:
        """Target, drafter and scheduler."""
        return self._engine

    @property
    def target_folder(self) -> Path:
        """Where the target is."""
        return self._folder

    @property
    def drafter_folder(self) -> Path | None:
        """Where the drafter is, in canonical form; None without one."""
        return self._drafter_folder

    @property
    def config(self) -> dict[str, Any]:
        """The target's config.json."""
        return self._config

    @property
    def precision(self) -> str:
        """What the weights are held in: "stored", "float32", "bfloat16" or "float16"."""
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
        """The ids that end a text: all that the target's configs and its tokenizer name.

        A folder without a tokenizer has its configs' alone.

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
        """Positions the target was made for; None when its config does not say.

        Raises:
            InputError: see `positions.max_length`.
        """
        return max_length(self._folder, self._config)

    def plain(self) -> Decoder:
        """The same target decoding without the drafter, through the same loop."""
        return self._with(dataclasses.replace(self._engine, drafter=None), None)

    def with_scheduler(self, scheduler: Scheduler, profile: SpeedProfile | None = None) -> Decoder:
        """The same pair under another scheduler.

        Args:
            scheduler: see `schedulers.make.make_scheduler`.
            profile: of the pair and device; verify forwards then run as many rows as is cheapest.

        Raises:
            InputError: it reads confidences that the drafter does not have.
        """
        engine = make_engine(self._engine.target, self._engine.drafter, scheduler, profile)
        return self._with(engine, self._drafter_folder)

    def with_engine(self, engine: Engine, drafter_folder: Path | None) -> Decoder:
        """The same target's files and tokenizer under another engine of it."""
        return self._with(engine, drafter_folder)

    def _with(self, engine: Engine, drafter_folder: Path | None) -> Decoder:
        other = Decoder(engine, self._folder, self._config, drafter_folder, self._precision)
        other._tokenizer = self._tokenizer
        return other

    def json_schema(self, schema: Mapping[str, Any]) -> JsonSchema:
        """A logits processor that keeps a text to a JSON schema; made once, for many requests.

        Args:
            schema: the JSON schema. Bound its strings and arrays, or `max_tokens` may cut the text.

        Raises:
            InputError: see `grammar.JsonSchema`.
        """
        vocabulary = self._engine.target.vocab_size
        return JsonSchema(schema, self.tokenizer.hugging_face, vocabulary, self.stop_tokens)

    def encode(self, prompt: Prompt, *, thinking: bool | None = None) -> list[int]:
        """Token ids of a prompt.

        Args:
            prompt: text, encoded as it is; chat messages, put through the target's chat template;
                or token ids, passed through.
            thinking: whether the chat template opens the target's thinking, where it can; None
                leaves that to mlx-lm.

        Raises:
            InputError: messages that the chat template does not take, or another type.
        """
        if isinstance(prompt, str):
            return self.tokenizer.encode_prompt(prompt)
        taken = listed(prompt)
        if not isinstance(taken, Sequence) or isinstance(taken, bytes | bytearray | memoryview):
            found = type(prompt).__name__
            raise InputError("prompt", found, "a string, a list of messages or of token ids")
        if taken and not _is_number(taken[0]):
            switch: dict[str, Any] = {} if thinking is None else {"enable_thinking": thinking}
            ids = self.tokenizer.apply_chat_template(taken, add_generation_prompt=True, **switch)
            return list(ids)
        return token_ids("prompt", taken, self._engine.target.vocab_size)

    def rounds(
        self,
        prompt_ids: Sequence[int],
        max_tokens: int = 256,
        *,
        stop_tokens: Collection[int] | None = None,
        progress: ProgressCallback | None = None,
        **settings: Unpack[Settings],
    ) -> Iterator[Round]:
        """Decode token ids, one `Round` at a time; needs no tokenizer.

        Args:
            prompt_ids: at least one token id; a list or an array of NumPy or MLX.
            max_tokens: tokens to generate at most; never one more, and never past the positions
                the target was made for (a text that these cut short warns of it).
            stop_tokens: ids that end the request and are its last token; None means the target's
                own end tokens.
            progress: called with prompt tokens processed and in all.
            settings: temperature, top_p, seed and all others of `request.Settings`.

        Returns:
            An iterator; the first `Round` holds the prefill's token. Closing it frees the caches.

        Raises:
            InputError: at once, for a prompt or setting that cannot be used.
        """
        request = Request.make(max_tokens, (), settings)
        stops = self._stops(stop_tokens)
        ids = token_ids("prompt", prompt_ids, self._engine.target.vocab_size)
        return self._rounds(ids, request, stops, progress)

    def stream(
        self,
        prompt: Prompt,
        max_tokens: int = 256,
        *,
        stop: str | Sequence[str] = (),
        progress: ProgressCallback | None = None,
        on_round: Callable[[Round], None] | None = None,
        **settings: Unpack[Settings],
    ) -> Iterator[Chunk]:
        """Decode text, one `Chunk` per token.

        Args:
            prompt: see `encode`.
            max_tokens, progress, settings: see `rounds`.
            stop: strings that end the text; cut exactly, none is part of it.
            on_round: called with every `Round` before its chunks.

        Raises:
            InputError: at once, for a prompt or setting that cannot be used.
        """
        request = Request.make(max_tokens, _strings(stop), settings)
        ids = self.encode(prompt)
        stops = self.stop_tokens
        return stream(
            self._rounds(ids, request, stops, progress),
            self.tokenizer.detokenizer_after(ids),
            prompt_tokens=len(ids),
            max_tokens=self._max_tokens(ids, request),
            stop_tokens=stops,
            stop=request.stop,
            on_round=on_round,
        )

    def _rounds(
        self,
        ids: Sequence[int],
        request: Request,
        stop_tokens: Collection[int],
        progress: ProgressCallback | None,
    ) -> Iterator[Round]:
        vocabulary = self._engine.target.vocab_size
        check_prompt(ids, vocabulary, self.max_length)
        request.sampling.check_tokens(vocabulary)
        limit = self._max_tokens(ids, request)
        made = rounds(
            self._engine,
            ids,
            max_tokens=limit,
            stop_tokens=stop_tokens,
            sampler=make_sampler(request.sampling, vocabulary, len(ids), request.sample),
            prefill_step_size=request.prefill_step_size,
            progress=progress,
        )
        made = self._said_when_not_finite(made)
        if limit == request.max_tokens:
            return made
        return said_when_cut(made, limit, request.max_tokens, stop_tokens)

    def _stops(self, stop_tokens: Collection[int] | None) -> frozenset[int]:
        if stop_tokens is None:
            return self.stop_tokens
        return frozenset(token_ids("stop_tokens", stop_tokens))

    def _said_when_not_finite(self, made: Iterator[Round]) -> Iterator[Round]:
        """The same rounds; drafts that are not finite are warned of once."""
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


def _strings(stop: str | Sequence[str]) -> tuple[str, ...]:
    if isinstance(stop, str):
        return (stop,)
    if not isinstance(stop, Collection):
        raise InputError("stop", shown(stop), "a string or several")
    return tuple(stop)


def _is_number(value: object) -> bool:
    return isinstance(plain(value), int | float)

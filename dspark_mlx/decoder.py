"""The decoder: what `load` returns and applications call."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from mlx_lm.utils import load_tokenizer

from .checkpoint import check_tokenizer
from .engine import Engine, make_engine
from .errors import InputError
from .grammar import JsonSchema
from .request import Request, Settings, check_prompt
from .rounds import Progress, rounds
from .sampling.make import make_sampler
from .schedulers import Scheduler
from .speed import SpeedProfile
from .stream import stream
from .types import Chunk, Round

if TYPE_CHECKING:
    from typing_extensions import Unpack

Messages: TypeAlias = Sequence[dict[str, Any]]
Prompt: TypeAlias = str | Messages | Sequence[int]


class Decoder:
    """A target and its drafter, ready to decode.

    Made by `load`. One request runs at a time.

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
        self._tokenizer: Any = None

    @property
    def engine(self) -> Engine:
        """Target, drafter and scheduler."""
        return self._engine

    @property
    def sources(self) -> tuple[Path, Path | None]:
        """The folders of the target and of the drafter."""
        return self._folder, self._drafter_folder

    @property
    def config(self) -> dict[str, Any]:
        """The target's config.json."""
        return self._config

    @property
    def precision(self) -> str:
        """What the weights are held in: "stored", "float32", "bfloat16" or "float16"."""
        return self._precision

    @property
    def tokenizer(self) -> Any:
        """The target's tokenizer (mlx-lm's wrapper), loaded when first needed."""
        if self._tokenizer is None:
            check_tokenizer(self._folder)
            self._tokenizer = load_tokenizer(
                self._folder, eos_token_ids=self._config.get("eos_token_id")
            )
        return self._tokenizer

    @property
    def stop_tokens(self) -> frozenset[int]:
        """The target's own end tokens, from its config."""
        ids = self._config.get("eos_token_id")
        if ids is None:
            ids = self._text_config.get("eos_token_id")
        if ids is None:
            return frozenset()
        return frozenset([ids] if isinstance(ids, int) else ids)

    @property
    def end_tokens(self) -> frozenset[int]:
        """What ends a text: the stop tokens and those that the tokenizer calls its ends."""
        return self.stop_tokens | set(self.tokenizer.eos_token_ids)

    @property
    def max_length(self) -> int | None:
        """Positions the target was made for; None when its config does not say."""
        for key in ("max_position_embeddings", "n_positions", "max_seq_len"):
            value = self._config.get(key, self._text_config.get(key))
            if isinstance(value, int):
                return value
        return None

    @property
    def _text_config(self) -> dict[str, Any]:
        return self._config.get("text_config") or {}

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
        return JsonSchema(schema, self.tokenizer._tokenizer, vocabulary, self.end_tokens)

    def encode(self, prompt: Prompt, *, thinking: bool | None = None) -> list[int]:
        """Token ids of a prompt.

        Args:
            prompt: text, encoded as it is; chat messages, put through the target's chat template;
                or token ids, passed through.
            thinking: whether the chat template opens the target's thinking, where it can; None
                leaves that to mlx-lm.

        Raises:
            InputError: messages for a target without a chat template, or another type.
        """
        if isinstance(prompt, str):
            bos = self.tokenizer.bos_token
            special = bos is None or not prompt.startswith(bos)
            return list(self.tokenizer.encode(prompt, add_special_tokens=special))
        if not isinstance(prompt, Sequence):
            found = type(prompt).__name__
            raise InputError("prompt", found, "a string, a list of messages or of token ids")
        if prompt and isinstance(prompt[0], dict):
            if not self.tokenizer.has_chat_template:
                raise InputError(self._folder, "no chat template", "one, for chat messages")
            switch = {} if thinking is None else {"enable_thinking": thinking}
            ids = self.tokenizer.apply_chat_template(prompt, add_generation_prompt=True, **switch)
            return list(ids)
        return list(prompt)  # type: ignore[arg-type]

    def rounds(
        self,
        prompt_ids: Sequence[int],
        max_tokens: int = 256,
        *,
        stop_tokens: Collection[int] | None = None,
        progress: Progress | None = None,
        **settings: Unpack[Settings],
    ) -> Iterator[Round]:
        """Decode token ids, one `Round` at a time; needs no tokenizer.

        Args:
            prompt_ids: at least one token id.
            max_tokens: tokens to generate at most; never one more, and never past the positions
                the target was made for.
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
        stops = self.stop_tokens if stop_tokens is None else stop_tokens
        if not isinstance(stops, Collection) or not all(isinstance(t, int) for t in stops):
            raise InputError("stop_tokens", repr(stops), "a collection of token ids")
        return self._rounds(prompt_ids, request, stops, progress)

    def stream(
        self,
        prompt: Prompt,
        max_tokens: int = 256,
        *,
        stop: str | Sequence[str] = (),
        progress: Progress | None = None,
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
        stops = self.end_tokens
        return stream(
            self._rounds(ids, request, stops, progress),
            self.tokenizer.detokenizer,
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
        progress: Progress | None,
    ) -> Iterator[Round]:
        vocabulary = self._engine.target.vocab_size
        check_prompt(ids, vocabulary, self.max_length)
        request.sampling.check_tokens(vocabulary)
        return rounds(
            self._engine,
            ids,
            max_tokens=self._max_tokens(ids, request),
            stop_tokens=stop_tokens,
            sampler=make_sampler(request.sampling, vocabulary, len(ids), request.sample),
            prefill_step_size=request.prefill_step_size,
            progress=progress,
        )

    def _max_tokens(self, ids: Sequence[int], request: Request) -> int:
        if self.max_length is None:
            return request.max_tokens
        return min(request.max_tokens, self.max_length - len(ids))


def _strings(stop: str | Sequence[str]) -> tuple[str, ...]:
    if isinstance(stop, str):
        return (stop,)
    if not isinstance(stop, Collection):
        raise InputError("stop", repr(stop), "a string or several")
    return tuple(stop)

"""A request whose prompt was read and whose settings were checked, as the engine takes it."""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from ..engine.request import Request, check_prompt
from ..engine.rounds import Begun
from ..engine.stream import TextStream
from ..engine.template_settings import TEMPLATE_SETTINGS, TemplateSettings
from ..errors import InputError
from ..lookup.lookup import Lookup
from ..numbers import shown, token_ids
from ..progress import ProgressCallback
from ..sampling.make import make_sampler
from ..targets.positions import warn_when_cut
from ..text.answer_parts import AnswerParts, answer_format
from ..types import Chunk, Round
from ..vision.encoder import ImagePrompt
from .not_finite import NotFiniteWarning
from .target_text import Prompt, TargetText


@dataclass(frozen=True)
class TextRequest:
    """Settings of a request for text, checked.

    Attributes:
        request: settings of the engine.
        template: settings of the chat template.
    """

    request: Request
    template: TemplateSettings

    @classmethod
    def make(cls, max_tokens: int, settings: Mapping[str, Any]) -> TextRequest:
        """The checked settings of `Decoder.stream` and its like.

        Args:
            max_tokens: see `Request`.
            settings: see `request.TextSettings`.

        Raises:
            InputError: see `Request.make`.
        """
        others = dict(settings)
        template = {name: others.pop(name) for name in TEMPLATE_SETTINGS if name in others}
        stop, stop_tokens = _strings(others.pop("stop", ())), others.pop("stop_tokens", None)
        request = Request.make(max_tokens, stop, others, stop_tokens)
        return cls(request, TemplateSettings(**template))

    def prepare(
        self, prompt: Prompt, text: TargetText, not_finite: NotFiniteWarning
    ) -> PreparedRequest:
        """This request for a prompt.

        Args:
            prompt: see `Decoder.encode`; messages may have images.
            text: of the target.
            not_finite: warns of drafts.

        Raises:
            InputError: the prompt cannot be used.
        """
        ids, images = text.read(prompt, self.template)
        prepared = PreparedRequest(ids, self.request, text, not_finite, images, self.template.tools)
        prepared.check()
        return prepared

    def prepare_all(
        self, prompts: Iterable[Prompt], text: TargetText, not_finite: NotFiniteWarning
    ) -> list[PreparedRequest]:
        """This request for several prompts, see `prepare`.

        Raises:
            InputError: the prompts are no list, or one cannot be used; it is named by its index.
        """
        if not isinstance(prompts, Iterable) or isinstance(prompts, str | bytes | Mapping):
            raise InputError("prompts", shown(prompts), "a list of prompts")
        found = []
        for index, prompt in enumerate(prompts):
            try:
                found.append(self.prepare(prompt, text, not_finite))
            except InputError as error:
                where = f"prompts[{index}]: {error.where}"
                raise InputError(where, error.found, error.expected, error.hint) from error
        return found


@dataclass(frozen=True)
class PreparedRequest:
    """A prompt and what is asked for it.

    Attributes:
        ids: the prompt's token ids.
        request: checked settings.
        text: of the target.
        not_finite: warns of drafts that are not finite.
        images: the prompt with its images; None without images.
        tools: tools that the answer may call.
    """

    ids: list[int]
    request: Request
    text: TargetText
    not_finite: NotFiniteWarning
    images: ImagePrompt | None = None
    tools: Sequence[Mapping[str, Any]] | None = None

    @classmethod
    def of_ids(
        cls,
        prompt_ids: Sequence[int],
        max_tokens: int,
        settings: Mapping[str, Any],
        stop_tokens: Collection[int] | None,
        text: TargetText,
        not_finite: NotFiniteWarning,
    ) -> PreparedRequest:
        """A request of token ids, which needs no tokenizer.

        Raises:
            InputError: for a prompt or setting that cannot be used.
        """
        request = Request.make(max_tokens, (), settings, stop_tokens)
        ids = token_ids("prompt", prompt_ids, text.vocab_size)
        prepared = cls(ids, request, text, not_finite)
        prepared.check()
        return prepared

    def check(self) -> None:
        """Refuse a prompt that the target cannot take, or settings that it does not have.

        Raises:
            InputError: see `check_prompt` and `Sampling.check_tokens`.
        """
        check_prompt(self.ids, self.text.vocab_size, self.text.max_length)
        self.request.sampling.check_tokens(self.text.vocab_size)
        # Read here: in the thread that decodes, other requests would wait for long references.
        self.lookup  # noqa: B018

    @cached_property
    def stop_tokens(self) -> frozenset[int]:
        """Token ids that end the text."""
        if self.request.stop_tokens is None:
            return self.text.stop_tokens
        return frozenset(self.request.stop_tokens)

    @cached_property
    def lookup(self) -> Lookup | None:
        """What the answer copies from, for one run; None where it copies nothing."""
        if not self.request.copies:
            return None
        return Lookup(self.text.references(self.request.reference))

    @cached_property
    def max_tokens(self) -> int:
        """Number of tokens at most; positions of the target may allow fewer than are asked."""
        positions = self.text.max_length
        if positions is None:
            return self.request.max_tokens
        return min(self.request.max_tokens, positions - len(self.ids))

    def begun(self, progress: ProgressCallback | None = None) -> Begun:
        """Arguments of `rounds.rounds`, made in the thread that decodes."""
        request, vocabulary = self.request, self.text.vocab_size
        return {
            "max_tokens": self.max_tokens,
            "stop_tokens": self.stop_tokens,
            "sampler": make_sampler(request.sampling, vocabulary, len(self.ids), request.sample),
            "prefill_step_size": request.prefill_step_size,
            "progress": progress,
            "images": self.images,
            "lookup": self.lookup,
        }

    def text_stream(self, parts: bool = True) -> TextStream:
        """The text of the answer, which takes rounds.

        Args:
            parts: whether reasoning and tool calls are told from the content.
        """
        tokenizer = self.text.tokenizer
        split = AnswerParts(answer_format(tokenizer, self.ids, self.tools)) if parts else None
        return TextStream(
            tokenizer.detokenizer_after(self.ids),
            prompt_tokens=len(self.ids),
            max_tokens=self.max_tokens,
            stop_tokens=self.stop_tokens,
            stop=self.request.stop,
            parts=split,
        )

    def warned(self, rounds: Iterator[Round]) -> Generator[Round, None, None]:
        """The same rounds, with what there is to warn of."""
        said, limit = self.not_finite.watch(rounds), self.max_tokens
        if limit == self.request.max_tokens:
            return said
        return warn_when_cut(said, limit, self.request.max_tokens, self.stop_tokens)

    def warned_text(self, parts: bool = True) -> WarnedText:
        """As `text_stream`, with the warnings of `warned`."""
        return WarnedText(self, parts)


class WarnedText:
    """A text to which rounds are pushed, as `TextStream`, with what there is to warn of.

    Args:
        prepared: the request.
        parts: see `PreparedRequest.text_stream`.
    """

    def __init__(self, prepared: PreparedRequest, parts: bool = True) -> None:
        self._feed: deque[Round] = deque()
        self._rounds = prepared.warned(iter(self._feed.popleft, None))
        self._text = prepared.text_stream(parts)

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

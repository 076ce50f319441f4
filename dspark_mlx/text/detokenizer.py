"""Token ids to text, piece by piece: the pieces together are what decoding all ids gives."""

from __future__ import annotations

from collections.abc import Callable, Sequence

_UNKNOWN = "\ufffd"
# Decoded again with each token: enough for decoders that look back.
_WINDOW = 16
_CONTEXT = 8
# Nothing that is a character takes so many tokens; what is behind is no text.
_MAX_HELD = 256


class Detokenizer:
    """Streams the text of ids that follow others.

    mlx-lm's detokenizers begin a text anew: they drop the space in front of its first word, and
    show ids that the tokenizer does not have as "!". Here a window of the last ids is decoded by
    the tokenizer itself, and what grew is the piece.

    Args:
        decode: ids to text, as the tokenizer does it; ids without a token are nothing.
        before: the ids that the text follows; not part of it.
    """

    def __init__(self, decode: Callable[[list[int]], str], before: Sequence[int] = ()) -> None:
        self._decode = decode
        self._ids = list(before[-_CONTEXT:])
        # A character that the prompt began is shown whole.
        self._shown = len(self._decode(self._ids).rstrip(_UNKNOWN))
        self._clean = len(self._ids)
        self._segment = ""

    @property
    def last_segment(self) -> str:
        """Text that became final since the last look."""
        segment, self._segment = self._segment, ""
        return segment

    def add_token(self, token: int) -> None:
        """Take in one token id."""
        self._ids.append(token)
        text = self._decode(self._ids)
        whole = text.rstrip(_UNKNOWN)
        if len(self._ids) - self._clean > _MAX_HELD:
            whole = text
        self._show(whole)
        if len(whole) == len(text):
            self._advance()

    def finalize(self) -> None:
        """Release what was held back."""
        self._show(self._decode(self._ids))

    def _show(self, text: str) -> None:
        if len(text) > self._shown:
            self._segment += text[self._shown :]
            self._shown = len(text)

    def _advance(self) -> None:
        """Drop ids that are shown, up to a place where a character ended."""
        if self._clean >= _WINDOW:
            self._ids = self._ids[self._clean :]
            self._shown = len(self._decode(self._ids))
            self._clean = 0
        if len(self._ids) - self._clean >= _CONTEXT:
            self._clean = len(self._ids)

"""Turns a stream of token ids into pieces of text, which joined are the text of all ids."""

from __future__ import annotations

from collections.abc import Callable, Sequence

_UNKNOWN = "\ufffd"
# Ids that are decoded again with each new token; some decoders look back at earlier ones.
_WINDOW = 16
_CONTEXT = 8
# No character takes so many tokens: after so many undecodable ones, they are shown as they are.
_MAX_HELD = 256


class Detokenizer:
    """Streams the text of token ids that continue other ids.

    mlx-lm's detokenizers treat the ids as the start of a text: they drop the space in front of the
    first word, and show ids that the tokenizer does not have as "!". Here the tokenizer decodes a
    window of the last ids, and the text that the window gained is the new piece.

    Args:
        decode: the tokenizer's function from ids to text; it ignores ids without a token.
        before: the ids before the streamed ones, whose text is not shown.
    """

    def __init__(self, decode: Callable[[list[int]], str], before: Sequence[int] = ()) -> None:
        self._decode = decode
        self._ids = list(before[-_CONTEXT:])
        # A character whose first bytes are in `before` is shown whole.
        self._shown = len(self._decode(self._ids).rstrip(_UNKNOWN))
        self._clean = len(self._ids)
        self._segment = ""

    @property
    def last_segment(self) -> str:
        """The text that became final since this property was last read."""
        segment, self._segment = self._segment, ""
        return segment

    def add_token(self, token: int) -> None:
        """Add one token id to the stream."""
        self._ids.append(token)
        text = self._decode(self._ids)
        whole = text.rstrip(_UNKNOWN)
        if len(self._ids) - self._clean > _MAX_HELD:
            whole = text
        self._show(whole)
        if len(whole) == len(text):
            self._advance()

    def finalize(self) -> None:
        """Add the text that was held back to the last segment; the stream has ended."""
        self._show(self._decode(self._ids))

    def _show(self, text: str) -> None:
        if len(text) > self._shown:
            self._segment += text[self._shown :]
            self._shown = len(text)

    def _advance(self) -> None:
        """Drop ids whose text is shown, up to an id that ended a character."""
        if self._clean >= _WINDOW:
            self._ids = self._ids[self._clean :]
            self._shown = len(self._decode(self._ids))
            self._clean = 0
        if len(self._ids) - self._clean >= _CONTEXT:
            self._clean = len(self._ids)


class TokenIds:
    """Shows token ids as numbers, for targets without a tokenizer; used as a `Detokenizer` is."""

    def __init__(self) -> None:
        self._segment = ""
        self._any = False

    @property
    def last_segment(self) -> str:
        """What was added since this property was last read."""
        segment, self._segment = self._segment, ""
        return segment

    def add_token(self, token: int) -> None:
        """Add one token id."""
        self._segment += f" {token}" if self._any else str(token)
        self._any = True

    def finalize(self) -> None:
        """Nothing is held back."""

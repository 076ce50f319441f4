"""How generated text and its statistics look in a terminal."""

from __future__ import annotations

from ..types import Chunk, Statistics

# Two greens that alternate by round show where one block ends and the next begins.
_DRAFT_COLOURS = ("\x1b[38;5;40m", "\x1b[38;5;36m")
_RESET = "\x1b[0m"


class DraftPainter:
    """Marks accepted drafts in streamed text.

    Args:
        colour: colour them by round; otherwise, for pipes and files, put them in brackets.
    """

    def __init__(self, color: bool) -> None:
        self._color = color
        self._open: int | None = None

    def paint(self, chunk: Chunk) -> str:
        """The chunk's text with the marks that begin or end at it."""
        marked = chunk.round if chunk.from_draft else None
        text = chunk.text
        if text and marked != self._open:
            text = self._end() + self._begin(marked) + text
            self._open = marked
        if chunk.finish_reason:
            text += self.close()
        return text

    def close(self) -> str:
        """The mark that ends an open run."""
        text, self._open = self._end(), None
        return text

    def _begin(self, marked: int | None) -> str:
        if marked is None:
            return ""
        return _DRAFT_COLOURS[marked % 2] if self._color else "["

    def _end(self) -> str:
        if self._open is None:
            return ""
        return _RESET if self._color else "]"


def statistics_line(statistics: Statistics) -> str:
    """One line: speeds, accepted length, rounds, drafted/scheduled/accepted, peak memory."""
    s = statistics
    parts = [
        f"prompt {s.prompt_tokens} tokens, {s.prompt_tps:.1f} tokens/s",
        f"generation {s.generation_tokens} tokens, {s.generation_tps:.1f} tokens/s",
    ]
    if s.rounds:
        parts.append(f"accepted length {s.accepted_length:.2f} in {s.rounds} rounds")
    if s.blocks:
        lengths = "/".join(f"{n / s.blocks:.1f}" for n in (s.drafted, s.scheduled, s.accepted))
        parts.append(f"drafted/scheduled/accepted {lengths} in {s.blocks} blocks")
    parts.append(f"peak memory {s.peak_memory / 1e9:.2f} GB")
    return " | ".join(parts)

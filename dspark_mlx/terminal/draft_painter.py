"""Displays generated text with its drafts marked, and its statistics, in a terminal."""

from __future__ import annotations

from ..types import Chunk, Round, Statistics

# Two greens alternate by round, to show where one block ends and the next begins.
_DRAFT_COLOURS = ("\x1b[38;5;40m", "\x1b[38;5;36m")
_RESET = "\x1b[0m"

EXPLANATION = """\
A line for each round: what proposed its tokens (the drafter; lookup, a copy; or
nothing, a plain step), how many of them were verified and accepted, the time it
took, the time predicted, and why it drafted or did not (parked: plain steps for
a while). survival: chances that the first 1, 2, ... proposed tokens are all
accepted. ms by length: predicted time with 0, 1, 2, ... of them verified."""
"""What the lines of `explained` say."""


class DraftPainter:
    """Marks accepted drafts in streamed text.

    Args:
        color: True to colour them by round, for terminals; False to put them in brackets.
    """

    def __init__(self, color: bool) -> None:
        self._color = color
        self._open: int | None = None

    def paint(self, chunk: Chunk) -> str:
        """The chunk's text, with the marks of drafts that begin or end there."""
        marked = chunk.round if chunk.from_draft else None
        text = chunk.text
        if text and marked != self._open:
            text = self._end() + self._begin(marked) + text
            self._open = marked
        if chunk.finish_reason:
            text += self.close()
        return text

    def close(self) -> str:
        """The mark that ends the current draft; "" where none is open."""
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


def statistics_line(statistics: Statistics, exact: bool = False) -> str:
    """One line: speeds, accepted length, rounds by proposer, predicted and real time, memory.

    The share of the time that cutting caches back took is told from 1 % on.

    Args:
        statistics: of the request.
        exact: whether its decoder is.
    """
    s = statistics
    cached = f" ({s.cached_tokens} kept from before)" if s.cached_tokens else ""
    parts = [
        f"prompt {s.prompt_tokens} tokens{cached}, {s.prompt_tps:.1f} tokens/s",
        f"generation {s.generation_tokens} tokens, {s.generation_tps:.1f} tokens/s",
    ]
    if s.rounds:
        parts.append(f"accepted length {s.accepted_length:.2f} in {s.rounds} rounds")
    if s.blocks:
        lengths = "/".join(f"{n / s.blocks:.1f}" for n in (s.drafted, s.scheduled, s.accepted))
        parts.append(f"drafted/scheduled/accepted {lengths} in {s.blocks} blocks")
        by = ", ".join(f"{count} {name}" for name, count in sorted(s.blocks_by.items()))
        parts.append(f"rounds by proposer: {by}, {s.rounds - s.blocks} plain")
    if s.rounds:
        parts.append(f"parked {s.parked_share:.0%}")
    if exact:
        parts.append("exact")
    if s.predicted_seconds:
        parts.append(f"predicted {s.predicted_seconds:.2f} s, took {s.taken_seconds:.2f} s")
    if s.rollback_share >= 0.01:
        parts.append(f"rollback {s.rollback_share:.0%}")
    held = f"{s.target_bytes_per_token / 1e3:.1f} + {s.drafter_bytes_per_token / 1e3:.1f} kB"
    parts.append(f"context {held} a token")
    parts.append(f"peak memory {s.peak_memory / 1e9:.2f} GB")
    return " | ".join(parts)


def explained(round_: Round, number: int) -> str:
    """One line with what a round decided and why: survival, cost, verify length, outcome.

    Args:
        round_: a round after the prefill.
        number: its number, from 1.
    """
    decision = round_.decision
    taken = f"took {1e3 * round_.seconds:.1f} ms"
    if decision is not None:
        taken += f", predicted {1e3 * decision.seconds:.1f}"
    reason = f"; {decision.reason}" if decision else ""
    if not round_.drafted:
        return f"round {number}: plain, {taken}{reason}"
    line = f"round {number}: {round_.proposer}, {round_.scheduled} of {round_.drafted} verified, "
    line += f"{round_.accepted} accepted, {taken}{reason}"
    if decision and decision.survival:
        survival = " ".join(f"{chance:.2f}" for chance in decision.survival)
        costs = " ".join(f"{ms:.1f}" for ms in decision.milliseconds)
        line += f"; survival {survival}; ms by length {costs}"
    return line

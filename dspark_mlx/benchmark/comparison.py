"""Compares speculative decoding with mlx-lm's plain decoding, prompt by prompt."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..decoder import Decoder
from ..engine.request import Request, Settings
from ..errors import InputError
from ..types import Round
from .plain import first_difference, plain_run
from .turns import Turn, take_turn


@dataclass(frozen=True)
class Row:
    """One prompt's result; times are medians over the repeats, without the prefill.

    Attributes:
        task: the prompt's group.
        prompt_tokens: tokens of the prompt.
        tokens: tokens generated in the last repeat.
        plain_seconds_per_token, speculative_seconds_per_token: by tokens after the first
            one.
        accepted_length: tokens per round.
        host_ms: milliseconds of Python per round, beyond the target's forward.
        equal: True when both sides gave the same tokens; None where tokens are sampled.
        margin: the target's top-two logit margin at the first difference; None when equal.
    """

    task: str
    prompt_tokens: int
    tokens: int
    plain_seconds_per_token: float
    speculative_seconds_per_token: float
    accepted_length: float
    host_ms: float
    equal: bool | None
    margin: float | None

    @property
    def speedup(self) -> float:
        """Plain time over speculative time."""
        return self.plain_seconds_per_token / self.speculative_seconds_per_token


def bench_row(
    decoder: Decoder,
    task: str,
    prompt: Sequence[int],
    max_tokens: int,
    repeats: int,
    settings: Mapping[str, Any],
) -> Row:
    """Decode one prompt both ways, `repeats` times, and compare.

    Args:
        decoder: a decoder with a drafter.
        task: name of the prompt's group.
        prompt: token ids.
        max_tokens: tokens of a run.
        repeats: runs of each side, which alternate, so that both see the same noise of the machine.
        settings: see `request.Settings`; each repeat has a seed of its own.

    Raises:
        InputError: the texts are too short to be timed.
    """
    seed, stops = settings.get("seed") or 0, decoder.stop_tokens
    turns = [
        take_turn((decoder,), prompt, max_tokens, {**settings, "seed": seed + repeat}, stops)
        for repeat in range(repeats)
    ]
    greedy = Request.make(max_tokens, (), settings).sampling.temperature == 0
    row = make_row(decoder, task, prompt, max_tokens, turns, 0, greedy)
    if row is None:
        raise InputError(f"prompt of {task}", "texts of one token", "longer texts, to be timed")
    return row


def make_row(
    decoder: Decoder,
    task: str,
    prompt: Sequence[int],
    max_tokens: int,
    turns: Sequence[Turn],
    index: int,
    greedy: bool,
) -> Row | None:
    """The result of one decoder on one prompt; None where its texts have one token.

    Args:
        decoder: the decoder, whose target gives the margin at the first difference.
        task: name of the prompt's group.
        prompt: token ids.
        max_tokens: tokens that each side was asked for.
        turns: the repeats, each with plain decoding.
        index: the decoder's place among the runs of a turn.
        greedy: whether decoding was greedy, so that both sides' tokens can be equal.
    """
    plains = [turn.plain for turn in turns if turn.plain]
    runs = [turn.runs[index] for turn in turns]
    # A text of one token takes no time after its first token, so it cannot be timed.
    slow = [plain.seconds / (len(plain.tokens) - 1) for plain in plains if len(plain.tokens) > 1]
    timed = [run for run in runs if len(run.tokens) > 1]
    if not slow or not timed:
        return None
    # Rounds that are not cut may commit more tokens than plain decoding did.
    tokens, expected = runs[-1].tokens[:max_tokens], plains[-1].tokens
    difference = None
    if greedy:
        difference = first_difference(decoder.engine.target, prompt, tokens, expected)
    host = [round_.host_seconds for round_ in runs[-1].rounds[1:]]
    return Row(
        task=task,
        prompt_tokens=len(prompt),
        tokens=len(tokens),
        plain_seconds_per_token=statistics.median(slow),
        speculative_seconds_per_token=statistics.median(
            run.seconds / (len(run.tokens) - 1) for run in timed
        ),
        accepted_length=statistics.mean(
            (len(run.tokens) - 1) / (len(run.rounds) - 1) for run in timed
        ),
        host_ms=1e3 * statistics.median(host or [0.0]),
        equal=difference is None if greedy else None,
        margin=difference.margin if difference else None,
    )


def compare(
    decoder: Decoder,
    prompt: Sequence[int],
    rounds: Sequence[Round],
    settings: Mapping[str, Any],
) -> str:
    """Decode a request again, plainly, and describe both speeds and the tokens in one line.

    Tokens are compared where both sides can be equal: greedy, or sampled with a reproducible seed.

    Args:
        decoder: the decoder that made the rounds.
        prompt: token ids.
        rounds: the rounds of the request.
        settings: the settings of the request, see `request.Settings`, and its `stop_tokens`.
    """
    target = decoder.engine.target
    tokens = [token for round_ in rounds for token in round_.tokens]
    stops = settings.get("stop_tokens", decoder.stop_tokens)
    names = Settings.__annotations__
    asked = {name: value for name, value in settings.items() if name in names}
    request = Request.make(len(tokens), (), asked)
    step = request.prefill_step_size
    plain = plain_run(target, prompt, len(tokens), stops, step, request.sampling)
    parts = []
    seconds = sum(round_.seconds for round_ in rounds[1:])
    if len(tokens) < 2 or len(plain.tokens) < 2:
        return "too few tokens to compare"
    if seconds and plain.seconds:
        fast = (len(tokens) - 1) / seconds
        slow = (len(plain.tokens) - 1) / plain.seconds
        speeds = f"{fast:.1f} against {slow:.1f} tokens/s, {fast / slow:.2f}x"
        parts.append(f"speculative against plain: {speeds}")
    if request.sampling.temperature == 0:
        parts.append(_greedy_difference(decoder, prompt, tokens, plain.tokens))
    elif request.sampling.reproducible and request.sampling.seed is not None:
        again = decoder.plain().rounds(prompt, len(tokens), stop_tokens=stops, **asked)
        other = [token for round_ in again for token in round_.tokens]
        pairs = enumerate(zip(tokens, other, strict=False))
        at = next((i for i, (a, b) in pairs if a != b), None)
        agree = f"all {len(tokens)} tokens agree" if tokens == other else ""
        parts.append(agree or f"the same seed without drafts differs from token {at} on")
    return " | ".join(parts)


def _greedy_difference(
    decoder: Decoder, prompt: Sequence[int], tokens: Sequence[int], plain: Sequence[int]
) -> str:
    difference = first_difference(decoder.engine.target, prompt, tokens, plain)
    if difference is None:
        return f"all {len(tokens)} tokens agree"
    speculative, other = difference.tokens
    return (
        f"first difference at token {difference.index}: {speculative} against {other}, "
        f"top-two logit margin {difference.margin:.2e}"
    )


def comparison_table(rows: Sequence[Row]) -> str:
    """The results as text: a line for each prompt, and the total."""
    head = f"{'task':<12}{'tokens':>7}{'plain tok/s':>13}{'spec tok/s':>12}{'speedup':>9}"
    lines = [head + f"{'tau':>7}{'host ms':>9}  tokens agree"]
    for row in rows:
        agree = "all" if row.equal else "(sampled)" if row.equal is None else ""
        agree = agree or f"to a tie of {row.margin:.1e}"
        line = f"{row.task:<12}{row.tokens:>7}{1 / row.plain_seconds_per_token:>13.1f}"
        line += f"{1 / row.speculative_seconds_per_token:>12.1f}{row.speedup:>8.2f}x"
        lines.append(line + f"{row.accepted_length:>7.2f}{row.host_ms:>9.2f}  {agree}")
    total, slowest = speedups(rows)
    lines.append(f"total tokens over total seconds: {total:.2f}x; slowest prompt {slowest:.2f}x")
    return "\n".join(lines)


def speedups(rows: Sequence[Row]) -> tuple[float, float]:
    """Speedup of all tokens together, and the smallest speedup of a prompt."""
    plain = sum(row.tokens * row.plain_seconds_per_token for row in rows)
    fast = sum(row.tokens * row.speculative_seconds_per_token for row in rows)
    return plain / fast, min(row.speedup for row in rows)

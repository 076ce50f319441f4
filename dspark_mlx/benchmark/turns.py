"""Plain decoding and one or more drafters taking turns on a prompt, so that all see the same noise.

What the bench and the evaluation time.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from time import perf_counter
from typing import Any

from ..decoder import Decoder
from ..engine.request import Request
from ..types import Round
from .plain import PlainRun, plain_run


@dataclass(frozen=True)
class TimedRun:
    """One request decoded by our loop.

    Attributes:
        rounds: all of them, the prefill's first.
        seconds: wall-clock time after the first token.
    """

    rounds: tuple[Round, ...]
    seconds: float

    @property
    def tokens(self) -> list[int]:
        """Everything committed."""
        return [token for round_ in self.rounds for token in round_.tokens]


@dataclass(frozen=True)
class Turn:
    """A prompt decoded once by each side.

    Attributes:
        plain: by mlx-lm's own loop; None where it was left out.
        runs: by our loop, a decoder each.
    """

    plain: PlainRun | None
    runs: tuple[TimedRun, ...]


def take_turn(
    decoders: Sequence[Decoder],
    prompt: Sequence[int],
    max_tokens: int,
    settings: Mapping[str, Any],
    stop_tokens: Collection[int],
    *,
    plain: bool = True,
    whole: bool = False,
) -> Turn:
    """Decode a prompt plainly, then by each decoder.

    Args:
        decoders: of one target.
        prompt: token ids.
        max_tokens: per run.
        settings: see `request.Settings`.
        stop_tokens: ids that end a text.
        plain: whether plain decoding has a turn.
        whole: let the last round commit its whole block, past `max_tokens`; see `decode`.
    """
    slow = None
    if plain:
        sampling = Request.make(max_tokens, (), settings).sampling
        target = decoders[0].engine.target
        slow = plain_run(target, prompt, max_tokens, stop_tokens, sampling=sampling)
    runs = [decode(each, prompt, max_tokens, settings, stop_tokens, whole) for each in decoders]
    return Turn(slow, tuple(runs))


def decode(
    decoder: Decoder,
    prompt: Sequence[int],
    max_tokens: int,
    settings: Mapping[str, Any],
    stop_tokens: Collection[int],
    whole: bool = False,
) -> TimedRun:
    """Decode a prompt by our loop.

    Args:
        decoder, prompt, max_tokens, settings, stop_tokens: see `take_turn`.
        whole: rounds go on while no more than `max_tokens` are committed, and none of them is cut:
            the loop of DeepSpec's evaluator. Up to a block more is committed.
    """
    drafter = decoder.engine.drafter
    beyond = drafter.config.gamma + 1 if whole and drafter else 0
    rounds: list[Round] = []
    count, started = 0, 0.0
    request = decoder.rounds(prompt, max_tokens + beyond, stop_tokens=stop_tokens, **settings)
    for round_ in request:
        started = started or perf_counter()
        rounds.append(round_)
        count += len(round_.tokens)
        if count > max_tokens:
            break
    seconds = perf_counter() - started
    request.close()
    return TimedRun(tuple(rounds), seconds)

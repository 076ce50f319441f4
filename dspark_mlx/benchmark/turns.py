"""Times plain decoding and one or more drafters on a prompt, for the bench and the evaluation.

They take turns, so that all of them see the same noise of the machine.
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
    """One request decoded by this package's loop.

    Attributes:
        rounds: all rounds; the first one is the prefill's.
        seconds: wall-clock time after the first token.
        beyond: what follows the rounds' tokens, not counted and not timed: enough to judge every
            slot of a block that begins within `max_tokens`, for runs of whole rounds.
    """

    rounds: tuple[Round, ...]
    seconds: float
    beyond: tuple[int, ...] = ()

    @property
    def tokens(self) -> list[int]:
        """All tokens that the rounds committed."""
        return [token for round_ in self.rounds for token in round_.tokens]


@dataclass(frozen=True)
class Turn:
    """A prompt decoded once by each side.

    Attributes:
        plain: the run of mlx-lm's own loop; None where it was left out.
        runs: the runs of this package's loop, one for each decoder.
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
        decoders: decoders that share one target.
        prompt: token ids.
        max_tokens: tokens of a run.
        settings: see `request.Settings`.
        stop_tokens: ids that end a text.
        plain: whether to decode plainly too.
        whole: whether the last round may commit more than `max_tokens`, see `decode`.
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
    """Decode a prompt with this package's loop, and time it.

    Args:
        decoder, prompt, max_tokens, settings, stop_tokens: see `take_turn`.
        whole: True as in DeepSpec's evaluator: rounds go on until more than `max_tokens` are
            committed, and none of them is cut, so that up to a block more is committed.
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
    rest = tuple(token for round_ in request for token in round_.tokens) if whole else ()
    request.close()
    return TimedRun(tuple(rounds), seconds, rest)

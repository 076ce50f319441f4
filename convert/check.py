"""Finds whether a drafter fits a target, by how likely it finds the target's texts.

A wrong tap, row, norm or pairing of rotary dimensions raises nothing and changes no output; it only
accepts less. So the drafter is read in other ways too, see `readings`, and drafts along texts that
the target wrote, each slot after the text's own tokens. The likelihood of those tokens compares
readings far more finely than accepted tokens do, which are whole numbers and depend on the slots
before.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import mlx.core as mx
import numpy as np

from ..benchmark.plain import plain_run
from ..checkpoint.base_config import CanonicalConfig
from ..drafters.base import Drafter
from ..progress import ProgressCallback
from ..replay.record import forced_drafts, text_features
from ..targets.tap import Target
from .readings import SHIFTS, Build, Reading, neighbours, own_reading

# A reading is better only by so many nats a token, and by so many standard errors: with these, one
# drafter in 20 is accused where six readings are tried and none of them makes a difference.
_CLEAR = 0.02
_ERRORS = 2.5
# Between few texts no standard error can be told; then by so much.
_FEW = 5
_CLEAR_OF_FEW = 0.1
# Texts after which a reading that is clearly worse is given up.
_GIVEN_UP_AFTER = 8
# Tokens accepted a block, below which no reading can be said to fit.
_LEAST = 0.2
# Mixed into the drafter's probabilities, so that one impossible token does not outweigh all others.
_UNIFORM = 0.01


@dataclass(frozen=True)
class Measured:
    """What a reading of a drafter's conventions makes of the texts.

    Attributes:
        reading: the reading.
        logprobs: for each text, the log-probability of each slot's token from each position,
            `[positions, gamma]`; for the first ones alone where that was enough.
        counts: for each text, how many tokens of the greedy block at each position are right.
    """

    reading: Reading
    logprobs: tuple[np.ndarray, ...]
    counts: tuple[np.ndarray, ...]

    @property
    def accepted(self) -> float:
        """How many tokens of a block the target takes, on average."""
        return float(np.mean(np.concatenate(self.counts)))

    @property
    def likelihood(self) -> float:
        """Mean log-probability of a token."""
        return float(np.mean([value for text in self.logprobs for value in text.ravel()]))


def sweep(
    target: Target,
    config: CanonicalConfig,
    build: Build,
    texts: Sequence[tuple[Sequence[int], Sequence[int]]],
    progress: ProgressCallback = lambda done, total: None,
) -> list[Measured]:
    """Measure readings, from the configuration's own towards better ones.

    Every reading that differs from the best one so far in one convention is measured, until none is
    clearly better. One that is clearly worse on the first texts is not measured on the others.

    Args:
        target: tapped at `all_taps(config)`.
        config: the drafter's.
        build: makes the drafter under another reading.
        texts: token ids of prompts, and of what the target wrote after each.
        progress: called with the readings done and those that are left before the next step.

    Returns:
        The readings that were measured, the configuration's own first.
    """
    taps = []
    for prompt, text in texts:
        recorded = text_features(target, [*prompt, *text])
        taps.append(dict(zip(all_taps(config, target.num_layers), recorded, strict=True)))
    measured: dict[Reading, Measured] = {}
    own = own_reading(config)
    tried = [own]

    def measure(reading: Reading, best: Measured | None = None) -> Measured:
        if reading not in measured:
            features = [_shifted(config, reading.shift, text) for text in taps]
            measured[reading] = _measured(reading, build(reading), texts, features, best)
            progress(len(measured), len({*measured, *tried}))
        return measured[reading]

    best = measure(own)
    while True:
        tried = list(neighbours(config, best.reading, target.num_layers))
        others = [measure(other, best) for other in tried]
        better = [other for other in others if clearly_better(other, best)]
        if not better:
            return list(measured.values())
        best = max(better, key=lambda other: _gain(other, best).mean())


def _measured(
    reading: Reading,
    drafter: Drafter,
    texts: Sequence[tuple[Sequence[int], Sequence[int]]],
    features: Sequence[Sequence[mx.array]],
    best: Measured | None,
) -> Measured:
    """What a reading makes of the texts: of the first ones alone, if clearly worse than `best`."""
    parts: list[tuple[np.ndarray, np.ndarray]] = []
    found = Measured(reading, (), ())
    for text, taps in zip(texts, features, strict=True):
        parts.append(_of_text(drafter, text, taps))
        found = Measured(reading, *zip(*parts, strict=True))
        if best and len(parts) == _GIVEN_UP_AFTER and clearly_better(best, found):
            break
    return found


def _of_text(
    drafter: Drafter, text: tuple[Sequence[int], Sequence[int]], taps: Sequence[mx.array]
) -> tuple[np.ndarray, np.ndarray]:
    """A text's log-probabilities and accepted counts, see `Measured`."""
    logprobs, hits = forced_drafts(drafter, *text, taps)
    uniform = _UNIFORM / drafter.config.vocab_size
    finite = np.where(np.isnan(logprobs), -np.inf, logprobs)
    mixed = np.log((1 - _UNIFORM) * np.exp(finite) + uniform)
    return mixed, np.cumprod(hits, axis=1).sum(axis=1)


def all_taps(config: CanonicalConfig, layers: int) -> list[int]:
    """Every target layer that any reading taps, ascending."""
    taps = {tap + shift for tap in config.taps for shift in SHIFTS}
    return sorted(tap for tap in taps if -1 <= tap < layers)


def verdict(found: Sequence[Measured]) -> tuple[bool, str]:
    """Whether the first reading, the configuration's own, fits, and a sentence that says why.

    Args:
        found: as `sweep` returns it.
    """
    own = best = found[0]
    # From step to step as `sweep` goes, since no single step may be clearly better than the first.
    while better := [one for one in found if clearly_better(one, best)]:
        best = max(better, key=lambda one: _gain(one, best).mean())
    if best.accepted < _LEAST:
        return False, (
            f"No reading accepts anything to speak of ({best.accepted:.2f} tokens a block): the "
            "drafter was made for another target, or by another recipe."
        )
    if best is own:
        return True, f"The pair fits: {own.accepted:.2f} tokens of a block are accepted."
    return False, (
        f"Read otherwise it accepts {best.accepted:.2f} tokens a block instead of "
        f"{own.accepted:.2f}, and finds a token {_gain(best, own).mean():.2f} nats likelier: "
        f"{best.reading}. Wrong: {', '.join(best.reading.unlike(own.reading))}."
    )


def clearly_better(one: Measured, other: Measured) -> bool:
    """Whether a reading finds the same tokens likelier by more than noise would explain."""
    if one.reading == other.reading:
        return False
    gains = [gain for gain in _gains(one, other) if len(gain)]
    positions = sum(len(gain) for gain in gains)
    if not positions:
        return False
    mean = sum(float(gain.sum()) for gain in gains) / positions
    if len(gains) < _FEW:
        return mean > _CLEAR_OF_FEW
    # Positions of one text are alike, so that only texts are independent (clustered standard
    # error); and the mean lies nearer to a text, the more of the positions are that text's.
    errors = [(float(g.sum()) - len(g) * mean) / (1 - len(g) / positions) for g in gains]
    error = sum(one_text**2 for one_text in errors) ** 0.5 / positions
    return mean > max(_CLEAR, _ERRORS * error)


def _gain(one: Measured, other: Measured) -> np.ndarray:
    return np.concatenate(_gains(one, other))


def _gains(one: Measured, other: Measured) -> list[np.ndarray]:
    """By text, how much likelier a token is at each position, over the slots that both have.

    Of a reading that was given up, the first texts alone.
    """
    gains = []
    for a, b in zip(one.logprobs, other.logprobs, strict=False):
        # A longer block fits into a text at fewer places.
        rows, slots = min(len(a), len(b)), min(a.shape[1], b.shape[1])
        gains.append((a[:rows, :slots] - b[:rows, :slots]).mean(axis=1))
    return gains


def written(
    target: Target, prompt: Sequence[int], tokens: int, stop_tokens: frozenset[int]
) -> list[int]:
    """Token ids that the target writes after a prompt, greedily."""
    return plain_run(target, prompt, tokens, stop_tokens).tokens


def _shifted(config: CanonicalConfig, shift: int, taps: Mapping[int, mx.array]) -> list[mx.array]:
    """Features of a reading's taps; a tap that would leave the target stays where it is."""
    return [taps.get(tap + shift, taps[tap]) for tap in config.taps]

"""Finds whether a drafter fits a target, by its acceptance under every reading of its conventions.

A wrong tap, row or pairing of rotary dimensions raises nothing and changes no output; it only
accepts less. So the drafter is tried under each reading on texts that the target wrote, and the
reading that accepts most is compared with the one in its configuration.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import mlx.core as mx
import numpy as np

from ..benchmark.plain import plain_run
from ..checkpoint.base_config import CanonicalConfig
from ..drafters.base import Drafter
from ..replay.record import judged_drafts, text_features
from ..targets.tap import Target

SHIFTS = (-1, 0, 1)
_WORDS = {
    ("logits_start", 0): "anchor's row read out",
    ("logits_start", 1): "anchor's row not read out",
    ("rope_interleaved", True): "rotary pairs neighbouring",
    ("rope_interleaved", False): "rotary pairs half a head apart",
}
# A reading is better only by so much of the tokens it accepts, and by so many standard errors.
_CLEAR = 0.03
_ERRORS = 3.0
# Between few texts no standard error can be told; then by so much.
_FEW = 5
_CLEAR_OF_FEW = 0.1
# Tokens accepted a block, below which no reading can be said to fit.
_LEAST = 0.2


@dataclass(frozen=True)
class Reading:
    """One reading of a drafter's conventions.

    Attributes:
        shift: what is added to every tap.
        fields: the configuration's fields that are read so, with their values; see
            `CanonicalConfig.alternatives`.
        counts: for each text, how many tokens of every block the target takes.
    """

    shift: int
    fields: tuple[tuple[str, Any], ...]
    counts: tuple[tuple[int, ...], ...] = ()

    @property
    def accepted(self) -> float:
        """How many tokens of a block the target takes, on average."""
        return float(np.mean([count for text in self.counts for count in text]))

    def __str__(self) -> str:
        return ", ".join([f"taps {self.shift:+d}", *(_WORDS[field] for field in self.fields)])

    def of(self, config: CanonicalConfig) -> CanonicalConfig:
        """A configuration with the fields of this reading; its taps stay."""
        return dataclasses.replace(config, **dict(self.fields))


def readings(config: CanonicalConfig) -> list[Reading]:
    """All readings of a configuration, its own first."""
    alternatives = config.alternatives()
    own = Reading(0, tuple((name, getattr(config, name)) for name in alternatives))
    others = [
        Reading(shift, tuple(zip(alternatives, values, strict=True)))
        for shift, *values in itertools.product(SHIFTS, *alternatives.values())
    ]
    return [own, *(reading for reading in others if reading != own)]


def longest_block(config: CanonicalConfig) -> int:
    """The length in tokens of the longest block that any reading drafts."""
    return max(reading.of(config).gamma for reading in readings(config))


def sweep(
    target: Target,
    config: CanonicalConfig,
    build: Callable[[CanonicalConfig], Drafter],
    texts: Sequence[tuple[Sequence[int], Sequence[int]]],
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> list[Reading]:
    """Measure the acceptance of every reading.

    Args:
        target: tapped at `all_taps(config)`.
        config: the drafter's.
        build: makes the drafter of the same tensors under another configuration.
        texts: token ids of prompts, and of what the target wrote after each.
        progress: called with the readings done and their total.

    Returns:
        The readings in the order of `readings`, with what each accepted.
    """
    taps = {}
    for i, (prompt, text) in enumerate(texts):
        recorded = text_features(target, [*prompt, *text])
        taps[i] = dict(zip(all_taps(config, target.num_layers), recorded, strict=True))
    found = []
    tried = readings(config)
    for done, reading in enumerate(tried, 1):
        drafter = build(reading.of(config))
        counts = []
        for i, (prompt, text) in enumerate(texts):
            shifted = _shifted(config, reading.shift, taps[i])
            judged = judged_drafts(drafter, prompt, text, shifted)
            counts.append(tuple(count for _, count in judged))
        found.append(dataclasses.replace(reading, counts=tuple(counts)))
        progress(done, len(tried))
    return found


def all_taps(config: CanonicalConfig, layers: int) -> list[int]:
    """Every target layer that any reading taps, ascending."""
    taps = {tap + shift for tap in config.taps for shift in SHIFTS}
    return sorted(tap for tap in taps if -1 <= tap < layers)


def verdict(found: Sequence[Reading]) -> tuple[bool, str]:
    """Whether the first reading, the configuration's own, fits, and a sentence that says why."""
    own, best = found[0], max(found, key=lambda reading: reading.accepted)
    if best.accepted < _LEAST:
        return False, (
            f"No reading accepts anything to speak of ({best.accepted:.2f} tokens a block at "
            "most): the drafter was made for another target, or by another recipe."
        )
    if not _clearly_better(best, own):
        return True, f"The pair fits: {own.accepted:.2f} tokens of a block are accepted."
    wrong = ["taps"] if own.shift != best.shift else []
    wrong += [name for (name, a), (_, b) in zip(own.fields, best.fields, strict=True) if a != b]
    return False, (
        f"Read otherwise it accepts {best.accepted:.2f} tokens a block instead of "
        f"{own.accepted:.2f}: {best}. Wrong in config.json: {', '.join(wrong)}."
    )


def _clearly_better(one: Reading, other: Reading) -> bool:
    """Whether a reading accepts more of the same blocks than noise would explain."""
    # A longer block fits into a text at fewer places; the other's last ones have no counterpart.
    pairs = [zip(a, b, strict=False) for a, b in zip(one.counts, other.counts, strict=True)]
    gains = [np.array(gain) for pair in pairs if (gain := [a - b for a, b in pair])]
    blocks = sum(len(gain) for gain in gains)
    mean = sum(float(gain.sum()) for gain in gains) / blocks
    if len(gains) < _FEW:
        return mean > _CLEAR_OF_FEW * one.accepted
    # Blocks of one text are alike, so that only texts are independent (clustered standard error);
    # and the mean lies nearer to a text, the more of the blocks are that text's.
    errors = [(float(g.sum()) - len(g) * mean) / (1 - len(g) / blocks) for g in gains]
    error = sum(one_text**2 for one_text in errors) ** 0.5 / blocks
    return mean > max(_CLEAR * one.accepted, _ERRORS * error)


def written(
    target: Target, prompt: Sequence[int], tokens: int, stop_tokens: frozenset[int]
) -> list[int]:
    """Token ids that the target writes after a prompt, greedily."""
    return plain_run(target, prompt, tokens, stop_tokens).tokens


def _shifted(config: CanonicalConfig, shift: int, taps: dict[int, mx.array]) -> list[mx.array]:
    """Features of a reading's taps; a tap that would leave the target stays where it is."""
    return [taps.get(tap + shift, taps[tap]) for tap in config.taps]

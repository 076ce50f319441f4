"""Simulated requests: texts whose drafts survive by known chances, under any confidence head.

A recording shows what one drafter's head says of its drafts. Here both are chosen: how often drafts
survive, and how far the head's confidences can be believed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from .simulate import ReplayText

Array: TypeAlias = npt.NDArray[Any]

# Standard deviations of log-odds: of a passage, of a block in it, of a slot in the block.
_PASSAGE, _BLOCK, _SLOT = 0.7, 0.7, 0.5
# Share of a passage's deviation that the next position keeps.
_KEPT = 0.95
_IMPOSSIBLE = -7.0

ACCEPTANCES = (0.0, 0.3, 0.6, 0.8, 0.95)
"""Mean chances of a draft, given that those before it survived."""


def _noise(logits: Array, rng: np.random.Generator) -> Array:
    return np.asarray(_log_odds(rng.uniform(0.3, 0.7, logits.shape)))


HEADS: Mapping[str, Callable[[Array, np.random.Generator], Array]] = {
    "exact": lambda logits, rng: logits,
    "useless": _noise,
    "overconfident": lambda logits, rng: 0.7 * logits + 2.5,
    "underconfident": lambda logits, rng: 0.7 * logits - 2.5,
    "inverted": lambda logits, rng: -logits,
}
"""What a confidence head says of drafts with the given log-odds, by the head's name."""


def simulated_texts(
    acceptance: float, head: str, count: int, tokens: int, gamma: int, seed: int = 0
) -> list[ReplayText]:
    """Requests of one drafter; equal seeds give equal drafts under every head.

    Args:
        acceptance: mean chance of a draft, given that those before it survived.
        head: name of a head in `HEADS`.
        count: number of requests.
        tokens: positions of a request.
        gamma: slots of a block.
        seed: of all random numbers.
    """
    texts = []
    for number in range(count):
        rng = np.random.default_rng((seed, number, round(1000 * acceptance)))
        logits, kept = _drafts(acceptance, tokens, gamma, rng)
        shown = HEADS[head](logits, np.random.default_rng((seed, number, 1)))
        confidence = 1 / (1 + np.exp(-shown))
        accepted = np.cumprod(kept, axis=1).sum(axis=1)
        texts.append(
            ReplayText(
                task=head,
                start=100,
                accepted=tuple(accepted.tolist()),
                confidence=tuple(map(tuple, confidence.tolist())),
            )
        )
    return texts


def _drafts(
    acceptance: float, tokens: int, gamma: int, rng: np.random.Generator
) -> tuple[Array, Array]:
    """Log-odds of every position's drafts, and whether each survives, both `[tokens, gamma]`."""
    passage = np.empty(tokens)
    level = rng.normal()
    for position, step in enumerate(rng.normal(size=tokens)):
        passage[position] = level
        level = _KEPT * level + (1 - _KEPT**2) ** 0.5 * step
    deviation = _PASSAGE * passage + _BLOCK * rng.normal(size=tokens)
    deviations = deviation[:, None] + _SLOT * rng.normal(size=(tokens, gamma))
    uniform = rng.random((tokens, gamma))
    if acceptance == 0:
        return np.minimum(_IMPOSSIBLE + deviations, _IMPOSSIBLE + 2), np.zeros(
            (tokens, gamma), dtype=bool
        )
    logits = _mean_logit(acceptance) + deviations
    return logits, uniform < 1 / (1 + np.exp(-logits))


def _mean_logit(acceptance: float) -> float:
    """The mean log-odds at which the mean chance is `acceptance`, by bisection."""
    deviation = (_PASSAGE**2 + _BLOCK**2 + _SLOT**2) ** 0.5
    quantiles = deviation * np.random.default_rng(0).normal(size=4001)
    low, high = -10.0, 10.0
    for _ in range(50):
        middle = (low + high) / 2
        if (1 / (1 + np.exp(-middle - quantiles))).mean() < acceptance:
            low = middle
        else:
            high = middle
    return middle


def _log_odds(chance: Array) -> Array:
    return np.log(chance / (1 - chance))

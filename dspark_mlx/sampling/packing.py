"""Packs a round's results into one small array, so that the host waits for the device once."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import mlx.core as mx
import numpy as np

from ..types import Draft, TokenLogProb, Verdict
from . import Judgement


@dataclass(frozen=True)
class Packed:
    """A round's results as one array.

    Attributes:
        array: the parts one after the other, each viewed as int32, `[sum of sizes]`.
        sizes: elements of each part, 0 for an absent one. The parts are accepted, last, faults,
            finite, block, confidence, chosen log-probabilities, top ids and top values.
    """

    array: mx.array
    sizes: tuple[int, ...]


def pack(judgement: Judgement, draft: Draft | None, scheduled: int) -> Packed:
    """Pack a judged round, with the drafter's confidences.

    Args:
        judgement: the rule's result.
        draft: the block; None for a plain step.
        scheduled: drafted tokens that were verified.
    """
    reported = judgement.logprobs
    parts = [
        judgement.accepted,
        judgement.last,
        judgement.faults,
        None if judgement.finite is None else judgement.finite.astype(mx.int32),
        draft.tokens[:scheduled] if draft else None,
        draft.confidence if draft else None,
        reported.chosen if reported else None,
        reported.ids.flatten() if reported else None,
        reported.values.flatten() if reported else None,
    ]
    present = [part.view(mx.int32) for part in parts if part is not None and part.size]
    return Packed(
        mx.concatenate(present), tuple(0 if part is None else part.size for part in parts)
    )


def unpack(packed: Packed) -> Verdict:
    """Wait for a packed round and return it as a `Verdict`."""
    values = np.array(packed.array)
    parts = np.split(values, np.cumsum(packed.sizes)[:-1])
    accepted, last, faults, finite, block, confidence, chosen, ids, tops = parts
    count = int(accepted[0]) if accepted.size else 0
    tokens = (*block[:count].tolist(), *last.tolist())
    logprobs: tuple[TokenLogProb, ...] = ()
    if chosen.size:
        rows = len(tokens)
        floats = chosen.view(np.float32).tolist()
        logprobs = tuple(
            TokenLogProb(token, logprob, top)
            for token, logprob, top in zip(
                tokens, floats[:rows], _tops(ids, tops, chosen.size)[:rows], strict=True
            )
        )
    confidences = confidence.view(np.float32).tolist()
    known = without_nan(confidences)
    drafts_finite = known == confidences and bool(finite.all())
    bad = tuple(faults[: len(tokens)].tolist())
    return Verdict(count, tokens, tuple(known), logprobs, bad, drafts_finite)


def without_nan(confidence: list[float]) -> list[float]:
    """Confidences with 0 in place of NaN: such a draft has no chance worth a verified row."""
    return [c if c == c else 0.0 for c in confidence]


def _tops(
    ids: np.ndarray, values: np.ndarray, rows: int
) -> Sequence[tuple[tuple[int, float], ...]]:
    shaped = zip(ids.reshape(rows, -1), values.view(np.float32).reshape(rows, -1), strict=True)
    # Tokens of probability 0 are left out, however many tokens the request asks for.
    pairs = [zip(row.tolist(), logprobs.tolist(), strict=True) for row, logprobs in shaped]
    return [
        tuple((token, logprob) for token, logprob in row if math.isfinite(logprob)) for row in pairs
    ]

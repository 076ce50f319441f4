"""The threshold sweep (the paper's offline study): shorter blocks by confidence, replayed.

A greedy text is judged at every position once; a block that ends at its first slot below a
threshold, and the rounds that follow it, are then walked through exactly, without a model.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from mlx_lm.generate import wired_limit

from ..decoder import Decoder
from ..replay.record import judged_drafts, text_features
from ..schedulers import schedule
from ..schedulers.threshold import ThresholdScheduler
from ..types import Round
from .counts import ended_inside

THRESHOLDS = (*(round(0.05 * i, 2) for i in range(20)), 0.98, 1.0)


@dataclass(frozen=True)
class Block:
    """A drafted block that was judged whole.

    Attributes:
        confidence: of each slot, calibrated.
        accepted: how many of its tokens the target takes.
    """

    confidence: tuple[float, ...]
    accepted: int


Text: TypeAlias = Sequence[Block]
"""The block after each token of a text, from its first on."""


@dataclass(frozen=True)
class SweepPoint:
    """What a threshold on the confidence gives.

    Attributes:
        threshold: blocks end before the first slot below it.
        tau: accepted length.
        verified: drafted tokens verified a round.
        acceptance_rate: share of them that are accepted; None where none is verified.
    """

    threshold: float
    tau: float
    verified: float
    acceptance_rate: float | None


def sweep(
    texts: Sequence[Text], thresholds: Sequence[float] = THRESHOLDS
) -> tuple[SweepPoint, ...]:
    """Every threshold on judged texts; nothing of no texts."""
    if not any(texts):
        return ()
    return tuple(_point(texts, value) for value in thresholds)


def judge(decoder: Decoder, prompt: Sequence[int], text: Sequence[int]) -> Text:
    """The greedy block after each token of a text that it fits into.

    Args:
        decoder: its drafter has a confidence head.
        prompt, text: token ids, the text as the target wrote it after the prompt.
    """
    target, drafter = decoder.engine.target, decoder.engine.drafter
    assert drafter is not None
    anchors = len(text) - drafter.config.gamma
    if anchors < 1:
        return ()
    with wired_limit(target.model):
        taps = text_features(target, [*prompt, *text[: anchors - 1]])
        return tuple(
            Block(tuple(np.array(draft.confidence).tolist()), accepted)
            for draft, accepted in judged_drafts(drafter, prompt, text, taps)
        )


def visited(rounds: Sequence[Round], stop_tokens: Collection[int]) -> list[Block]:
    """The blocks that rounds verified whole, prefills and plain steps left out.

    Empty where any was verified in part: a choice of blocks by their confidence would bias what is
    said of it.
    """
    blocks = [round_ for round_ in rounds if round_.drafted and round_.confidence]
    if any(round_.scheduled < round_.drafted for round_ in blocks):
        return []
    judged = [round_ for round_ in blocks if not ended_inside(round_, stop_tokens)]
    return [Block(round_.confidence, round_.accepted) for round_ in judged]


def _point(texts: Sequence[Text], threshold: float) -> SweepPoint:
    policy = ThresholdScheduler(threshold)
    rounds = verified = taken = 0
    for text in texts:
        at = 0
        while at < len(text):
            block = text[at]
            length = schedule(policy, block.confidence, len(block.confidence), deterministic=True)
            accepted = min(length, block.accepted)
            rounds, verified, taken = rounds + 1, verified + length, taken + accepted
            at += accepted + 1
    rate = taken / verified if verified else None
    return SweepPoint(threshold, 1 + taken / rounds, verified / rounds, rate)

"""The threshold sweep (the paper's offline study): rounds simulated with blocks cut by confidence.

The drafter drafts a block after every token of a greedy text once. For any threshold, the rounds
with blocks that end before their first slot below it are then simulated exactly, without a model.
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
    """A drafted block of which all slots were judged.

    Attributes:
        confidence: calibrated confidence of each slot.
        accepted: number of tokens that the target accepts.
    """

    confidence: tuple[float, ...]
    accepted: int


Text: TypeAlias = Sequence[Block]
"""The block after each token of a text, from the first token on."""


@dataclass(frozen=True)
class SweepPoint:
    """The result of one threshold on the confidence.

    Attributes:
        threshold: blocks end before their first slot whose confidence is below this.
        tau: accepted length.
        verified: draft tokens verified per round.
        acceptance_rate: share of the verified tokens that are accepted; None where none is
            verified.
    """

    threshold: float
    tau: float
    verified: float
    acceptance_rate: float | None


def sweep(
    texts: Sequence[Text], thresholds: Sequence[float] = THRESHOLDS
) -> tuple[SweepPoint, ...]:
    """The result of every threshold on texts; empty where there is no block."""
    if not any(texts):
        return ()
    return tuple(_point(texts, value) for value in thresholds)


def judge(decoder: Decoder, prompt: Sequence[int], text: Sequence[int]) -> Text:
    """The greedy block after each token of a text that a whole block follows.

    Args:
        decoder: a decoder whose drafter has a confidence head.
        prompt, text: token ids; the target wrote the text after the prompt.
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
    """The blocks that rounds verified; prefills and plain steps have none.

    The list is empty where any block was verified in part: leaving out only those would choose
    blocks by their confidence, and bias what is measured of it.
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

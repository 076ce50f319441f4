"""The threshold sweep (the paper's offline study): rounds simulated with blocks cut by confidence.

The drafter drafts a block after every token of a greedy text once. For any threshold, the rounds
with blocks that end before their first slot below it are then simulated exactly, without a model:
at threshold 0 they are those of whole blocks, to the last one.
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

# Stands behind a text that has ended: no draft equals it.
_NO_TOKEN = -1
THRESHOLDS = (*(round(0.05 * i, 2) for i in range(20)), 0.98, 1.0)


@dataclass(frozen=True)
class Block:
    """A drafted block of which all slots were judged.

    Attributes:
        confidence: calibrated confidence of each slot.
        accepted: number of tokens that the target accepts.
        ends: whether the last of them ends the text, so that no token of the target's follows.
    """

    confidence: tuple[float, ...]
    accepted: int
    ends: bool = False

    def committed(self, accepted: int) -> int:
        """Tokens of a round that accepts the first `accepted` tokens of this block."""
        return accepted + (0 if self.ends and accepted == self.accepted else 1)


Text: TypeAlias = Sequence[Block]
"""The block after each token that a round can begin at, from the text's first token on."""


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


def judge(
    decoder: Decoder,
    prompt: Sequence[int],
    text: Sequence[int],
    stop_tokens: Collection[int] = (),
    max_tokens: int | None = None,
) -> Text:
    """The greedy block after each token of a text at which a round can begin.

    These are the tokens before a stop token that ends the text; of a text without one, the tokens
    that a whole block follows.

    Args:
        decoder: a decoder whose drafter has a confidence head.
        prompt, text: token ids; the target wrote the text after the prompt.
        stop_tokens: ids that end a text.
        max_tokens: tokens of the text after which no round begins; None for all.
    """
    target, drafter = decoder.engine.target, decoder.engine.drafter
    assert drafter is not None
    gamma = drafter.config.gamma
    if text and text[-1] in stop_tokens:
        text = [*text, *[_NO_TOKEN] * (gamma - 1)]
    anchors = len(text) - gamma
    anchors = anchors if max_tokens is None else min(anchors, max_tokens)
    if anchors < 1:
        return ()
    with wired_limit(target.model):
        taps = text_features(target, [*prompt, *text[: anchors - 1]])
        judged = judged_drafts(drafter, prompt, text[: anchors + gamma], taps)
        return tuple(
            Block(
                confidence=tuple(np.array(draft.confidence).tolist()),
                accepted=accepted,
                ends=accepted > 0 and text[i + accepted] in stop_tokens,
            )
            for i, (draft, accepted) in enumerate(judged)
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
    rounds = verified = taken = tokens = 0
    for text in texts:
        at = 0
        while at < len(text):
            block = text[at]
            length = schedule(policy, block.confidence, len(block.confidence), deterministic=True)
            accepted = min(length, block.accepted)
            committed = block.committed(accepted)
            # Slots after an accepted end of the text do not count as verified, see `counts`.
            length = accepted if committed == accepted else length
            rounds, tokens = rounds + 1, tokens + committed
            verified, taken = verified + length, taken + accepted
            at += committed
    rate = taken / verified if verified else None
    return SweepPoint(threshold, tokens / rounds, verified / rounds, rate)

"""From logits to tokens: the choice per row and the accept rule. Greedy so far.

Everything stays on the device until `read_verdict`, which is a round's one host synchronisation.
"""

from __future__ import annotations

import mlx.core as mx
import numpy as np

from .types import Draft, Verdict


def greedy(logits: mx.array) -> mx.array:
    """The most likely token of each row: `[rows, vocabulary]` to int32 `[rows]`."""
    return mx.argmax(logits, axis=-1).astype(mx.int32)


def pack_greedy(best: mx.array, draft: Draft | None, scheduled: int) -> mx.array:
    """Everything the host needs of a greedy round, as one int32 array.

    Args:
        best: the target's own choice after the anchor and after each verified token, int32
            `[scheduled + 1]`.
        draft: the block, or None for a plain step.
        scheduled: drafted tokens that were verified.
    """
    if draft is None:
        return best
    parts = [best, draft.tokens[:scheduled]]
    if draft.confidence is not None:
        parts.append(draft.confidence.view(mx.int32))
    return mx.concatenate(parts)


def read_verdict(packed: mx.array, scheduled: int) -> Verdict:
    """Wait for a packed round and accept by equality with the target's choice.

    x_1..x_n survive where x_k equals the target's choice after x_1..x_{k-1}; the committed tokens
    are then that choice's first n + 1 (the last is the correction, or the bonus if all survive).
    """
    values = np.array(packed)
    best, proposed = values[: scheduled + 1].tolist(), values[scheduled + 1 : 2 * scheduled + 1]
    accepted = 0
    while accepted < scheduled and proposed[accepted] == best[accepted]:
        accepted += 1
    confidence = values[2 * scheduled + 1 :].view(np.float32).tolist()
    return Verdict(accepted, tuple(best[: accepted + 1]), tuple(confidence))

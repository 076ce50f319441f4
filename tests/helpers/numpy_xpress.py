"""What XPress adds to DFlash, in straight-line float64: passes over the whole block.

Written from the formulas of the specification of published checkpoints (section 20.4). Enough
passes are made that another one changes nothing.
"""

from __future__ import annotations

import numpy as np

Tensors = dict[str, np.ndarray]


def _bias(t: Tensors, h: np.ndarray, previous: list[int]) -> np.ndarray:
    """Bias [B, Vd] of a block's rows h [B, H], given the token before what each row predicts."""
    part = {name.removeprefix("refiner_head."): value for name, value in t.items()}
    mean = part["down_g.weight"] @ h.mean(axis=0)
    a = [
        part["in_proj.weight"]
        @ np.concatenate([part["down_h.weight"] @ row, mean, part["token_embed.weight"][token]])
        for row, token in zip(h, previous, strict=True)
    ]
    out = []
    for k in range(len(h)):
        c = a[k] + sum(part["mix_l"][:, k, j] * a[j] for j in range(k + 1))
        gate = part["mlp_gate.weight"] @ c
        inner = gate / (1 + np.exp(-gate)) * (part["mlp_up.weight"] @ c)
        out.append(part["readout.weight"] @ (c + part["mlp_down.weight"] @ inner))
    return np.array(out)


def refined(
    t: Tensors, base: np.ndarray, h: np.ndarray, ids: np.ndarray, first: int, before: list[int]
) -> np.ndarray:
    """Logits [B, Vd] after the passes, anchor's row included.

    `base` [B, Vd] and `h` [B, H] are of all rows, `ids` [Vd] the tokens of the columns, `first` the
    first row that is read out, and `before` the token before the anchor and the anchor.
    """
    if "refiner_head.mix_l" not in t:
        return base
    known = before if first else before[1:]
    logits = base
    for _ in range(len(h) + 1):
        chosen = [int(ids[row.argmax()]) for row in logits[first:]]
        logits = base + _bias(t, h, (known + chosen)[: len(h)])
    return logits

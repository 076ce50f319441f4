"""What DFlash 2 adds to DFlash, in straight-line float64: the convolution and the selector.

Written from the formulas of the specification of published checkpoints (section 17), row by row.
"""

from __future__ import annotations

import numpy as np

Tensors = dict[str, np.ndarray]


def convolution(t: Tensors, name: str, normed: np.ndarray, x: np.ndarray, side: int) -> np.ndarray:
    """out[t] = sum over taps of (base + dynamic of the group) * x[t - tap]; x [block, H].

    `normed` is the sublayer's input, which gives both sides' kernels; without tensors x is as is.
    """
    if f"{name}.base_kernel" not in t:
        return x
    base = t[f"{name}.base_kernel"]
    _, taps, hidden = base.shape
    made = normed @ t[f"{name}.kernel_projection.weight"].T
    groups = made.shape[1] // (2 * taps)
    width = hidden // groups
    out = np.zeros_like(x)
    for row in range(len(x)):
        for tap in range(min(taps, row + 1)):
            for group in range(groups):
                channels = slice(group * width, (group + 1) * width)
                dynamic = made[row, side * taps * groups + tap * groups + group]
                weight = base[side, tap, channels] + dynamic
                out[row, channels] += weight * x[row - tap, channels]
    return out


def selected(t: Tensors, unary: np.ndarray, h: np.ndarray, previous: int, top_k: int) -> np.ndarray:
    """Logits [V] of one slot: the candidates' scores, -inf elsewhere; unary [V], h [H]."""
    candidates = np.argsort(-unary)[:top_k]
    name = "candidate_selector"
    state = t[f"{name}.predecessor_codebook"][previous] * (
        t[f"{name}.hidden_projection.weight"] @ h
    )
    logits = np.full(len(unary), -np.inf)
    for c in candidates:
        logits[c] = unary[c] + state @ t[f"{name}.successor_codebook"][c]
    return logits

"""What DSpine adds to DFlash, in straight-line float64, row by row.

Written from the formulas of the specification of published checkpoints (section 18).
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

Tensors = dict[str, np.ndarray]


def code_of(t: Tensors, token: int) -> np.ndarray:
    return np.sqrt(t["transfer_codes.weight"].shape[1]) * t["transfer_codes.weight"][token]


def _code(t: Tensors, layer: int, row: np.ndarray) -> np.ndarray:
    raw = t[f"injection.readouts.{layer}.weight"] @ row
    return np.sqrt(len(raw)) * raw / np.linalg.norm(raw)


def heard(t: Tensors, layer: int, row: np.ndarray, before: np.ndarray) -> np.ndarray:
    """One row [H] after it heard the code [R] before it."""
    gate = t["injection.receiver_gate.weight"] @ _code(t, layer, row)
    gate = gate + t["injection.predecessor_gate.weight"] @ before + t["injection.bias"]
    message = t["injection.message.weight"] @ before / (1 + np.exp(-gate))
    delta = t[f"injection.writes.{layer}.weight"] @ message
    return row + np.linalg.norm(row) / np.sqrt(len(row)) * delta


def injected(t: Tensors, layer: int, x: np.ndarray, anchor: int) -> np.ndarray:
    """The block's rows [B, H] after a layer's injection; x as it is without one."""
    if "injection.bias" not in t:
        return x
    out = x.copy()
    for i in range(1, len(x)):
        before = code_of(t, anchor) if i == 1 else _code(t, layer, x[i - 1])
        out[i] = heard(t, layer, x[i], before)
    return out


def read_again(
    t: Tensors,
    layer: int,
    base: np.ndarray,
    state: np.ndarray,
    previous: int,
    top_k: int,
    logits: Callable[[np.ndarray], np.ndarray],
) -> np.ndarray:
    """Logits [V] of a slot: those of its candidates after the token before, -inf elsewhere."""
    again = logits(heard(t, layer, state, code_of(t, previous)))
    out = np.full(len(base), -np.inf)
    candidates = np.argsort(-base)[:top_k]
    out[candidates] = again[candidates]
    return out

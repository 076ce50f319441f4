"""MLX's attention of few rows: `sdpa_vector`, in one pass over the keys or in two.

From mlx/backend/metal/scaled_dot_product_attention.cpp.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..emulator.emulator import Emulator
from .wheel import StockKernels

DO_CAUSAL, BLOCKS = 22, 26  # function constants
TWO_PASSES_FROM = 1024  # keys, on Max and Ultra


@dataclass(frozen=True)
class Plan:
    """How MLX attends: passes over the keys, and blocks into which the first of two cuts them."""

    passes: int
    blocks: int = 0


def plan(architecture: str, keys: int, heads: int, kv_heads: int, rows: int) -> Plan:
    """What MLX chooses for up to 8,192 keys.

    Args:
        architecture: the last letter of the device's name: "s" a Max, "d" an Ultra, others "g".
        rows: of queries.
    """
    large = architecture in "sd" and keys >= TWO_PASSES_FROM
    if not large and not (kv_heads < heads and keys >= 4096):
        return Plan(1)
    simds = heads // kv_heads * rows
    if architecture == "s":
        return Plan(2, 128 if keys > 1024 and simds > 4 else 64)
    if architecture == "d":
        return Plan(2, 128)
    return Plan(2, 64 if simds >= 4 else 32)


def attend(
    emulator: Emulator,
    stock: StockKernels,
    chosen: Plan,
    queries: np.ndarray,
    keys: np.ndarray,
    values: np.ndarray,
    length: int,
) -> np.ndarray:
    """Attention of the last rows of a text, each to all keys up to its own.

    Args:
        queries: float32 `[heads, rows, size]`.
        keys, values: float32 `[kv_heads, capacity, size]`, of which `length` are filled.

    Returns:
        `[heads, rows, size]`.
    """
    heads, rows, size = queries.shape
    capacity = keys.shape[1]
    given: dict[str, object] = {
        "queries": queries,
        "keys": keys,
        "values": values,
        "N": length,
        "gqa_factor": heads // len(keys),
        "k_head_stride": capacity * size,
        "k_seq_stride": size,
        "v_head_stride": capacity * size,
        "v_seq_stride": size,
        "scale": size**-0.5,
    }
    causal = {DO_CAUSAL: int(rows > 1)}
    out = np.zeros_like(queries)
    if chosen.passes == 1:
        name = f"sdpa_vector_float_{size}_{size}"
        program = emulator.air(stock.metallib, name, causal, checked=False)
        program({**given, "out": out}, (heads * 1024, rows, 1), (1024, 1, 1))
        return out
    return _two_passes(emulator, stock, chosen.blocks, given, causal, out)


def _two_passes(emulator, stock, blocks, given, causal, out) -> np.ndarray:
    heads, rows, size = out.shape
    kv_heads = len(given["keys"])
    partial = np.zeros((heads, rows, blocks, size), np.float32)
    sums, maxima = (np.zeros((heads, rows, blocks), np.float32) for _ in range(2))
    constants = {**causal, BLOCKS: blocks}
    name = f"sdpa_vector_2pass_1_float_{size}_{size}"
    first = emulator.air(stock.metallib, name, constants, checked=False)
    group = (32, heads // kv_heads, rows)
    grid = (kv_heads * 32, heads // kv_heads, rows * blocks)
    between = {"sums": sums, "maxs": maxima}
    first({**given, **between, "out": partial}, grid, group)
    second = emulator.air(stock.metallib, f"sdpa_vector_2pass_2_float_{size}", checked=False)
    last = {**between, "partials": partial, "out": out, "blocks": blocks}
    second(last, (heads * 1024, rows, 1), (1024, 1, 1))
    return out

"""MLX's products with the weights of chosen experts, as MoE targets have them for few tokens.

`mx.gather_qmm` of fewer tokens than its limits takes `gather_qmv` for each pair of a token and an
expert (mlx/backend/metal/quantized.cpp); sorted pairs take another kernel from 16 pairs on, where
each expert has four or more.
"""

from __future__ import annotations

import numpy as np

from ..emulator.emulator import Emulator
from .quantized import fast_columns
from .wheel import StockKernels


def gather_qmv(
    emulator: Emulator,
    stock: StockKernels,
    x: np.ndarray,
    weights: tuple[np.ndarray, np.ndarray, np.ndarray],
    experts: np.ndarray,
    group_size: int,
) -> tuple[np.ndarray, int]:
    """Products of pairs with 4-bit weights, and the bytes of packed words that were read.

    Args:
        x: float32 `[tokens, inputs]`.
        weights: packed words, scales and biases, `[experts, outputs, ...]`.
        experts: uint32 `[tokens, k]`, the experts of each token.

    Returns:
        float32 `[tokens, k, outputs]`.
    """
    packed, scales, biases = weights
    count, outputs, words = packed.shape
    inputs = x.shape[1]
    fast = outputs % 8 == 0 and inputs % fast_columns(4) == 0
    name = f"affine_gather_qmv_{'fast_' if fast else ''}float_gs_{group_size}_b_4"
    y = np.zeros((*experts.shape, outputs), np.float32)
    pairs = experts.size
    given: dict[str, object] = {
        "w": packed,
        "scales": scales,
        "biases": biases,
        "x": x,
        "y": y,
        "lhs_indices": np.repeat(np.arange(len(x), dtype=np.uint32), experts.shape[1]),
        "rhs_indices": experts,
        "in_vec_size": inputs,
        "out_vec_size": outputs,
        "x_batch_ndims": 1,
        "x_shape": [len(x), 1, inputs],
        "x_strides": [inputs, inputs, 1],
        "w_batch_ndims": 1,
        "w_shape": [count, outputs, words],
        "w_strides": [outputs * words, words, 1],
        "s_strides": [scales[0].size, scales.shape[2], 1],
        "b_strides": [biases[0].size, biases.shape[2], 1],
        "batch_ndims": 1,
        "batch_shape": [pairs],
        "lhs_strides": [1],
        "rhs_strides": [1],
    }
    program = emulator.air(stock.metallib, name)
    program(given, (32, -(-outputs // 8) * 2, pairs), (32, 2, 1))
    return y, program.read["w"]

"""Noise levels of a block's rows, embedded: drafters of the Bonsai family add them to their inputs.

The anchor's row, which is known, has the level 1000, and the masked rows have 0. A level is
described by 64 sines and 64 cosines, and a network of two matrices makes a row of them.
"""

from __future__ import annotations

import mlx.core as mx
import mlx.nn as nn

from ..heads.base import HeadTensors

FEATURES = 128
"""Sines and cosines that describe a level."""

_KNOWN, _MASKED = 1000.0, 0.0
_LONGEST = 10000.0
_FIRST, _SECOND = "noise.fc1", "noise.fc2"


def noise_matrices(width: int, hidden: int) -> dict[str, tuple[int, int]]:
    """Name and `[out, in]` of the network's matrices; none for a `width` of 0."""
    return {_FIRST: (width, FEATURES), _SECOND: (hidden, width)} if width else {}


def noise_vectors(width: int, hidden: int) -> dict[str, tuple[int, ...]]:
    """Name and shape of the network's biases; none for a `width` of 0."""
    return {f"{_FIRST}.bias": (width,), f"{_SECOND}.bias": (hidden,)} if width else {}


def noise_rows(tensors: HeadTensors, block_size: int) -> mx.array:
    """What is added to the embeddings of a block's rows, `[block_size, hidden]`."""
    levels = mx.array([_KNOWN, _MASKED])
    half = FEATURES // 2
    angles = levels[:, None] * _LONGEST ** (-mx.arange(half) / half)
    features = mx.concatenate([mx.sin(angles), mx.cos(angles)], axis=-1)
    first, second = (tensors.vector(f"{name}.bias") for name in (_FIRST, _SECOND))
    inner = tensors.matrix(_FIRST)(features.astype(first.dtype)) + first
    made = tensors.matrix(_SECOND)(nn.silu(inner)) + second
    return mx.concatenate([made[:1], mx.repeat(made[1:], block_size - 1, axis=0)])

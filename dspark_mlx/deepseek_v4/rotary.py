"""Rotary positions of DeepSeek V4: neighbours in a row's last channels are pairs; both ways."""

from __future__ import annotations

import math
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from .config import ModelArgs


class Rotary(nn.Module):
    """Rotates the last `dims` channels of rows by their positions.

    Args:
        dims: channels, two for a pair.
        base: of the angular steps, `base ** (-2 i / dims)` for pair i.
        scaling: YaRN's numbers as config.json has them; None for none. YaRN's factor of the
            magnitude is not used.
    """

    def __init__(self, dims: int, base: float, scaling: dict[str, Any] | None = None) -> None:
        super().__init__()
        self._dims = dims
        steps = [base ** (-2 * i / dims) for i in range(dims // 2)]
        if scaling:
            ramp = _ramp(dims, base, scaling)
            factor = scaling["factor"]
            steps = [f * (r / factor + 1 - r) for f, r in zip(steps, ramp, strict=True)]
        self._periods = mx.array([1 / step for step in steps], dtype=mx.float32)

    @classmethod
    def of_layer(cls, args: ModelArgs, ratio: int) -> Rotary:
        """The rotation of all that a layer rotates.

        Args:
            args: the checkpoint's sizes.
            ratio: the layer's compression; 0 for a layer without, or a stage of the head.
        """
        if ratio == 0:
            return cls(args.qk_rope_head_dim, args.rope_theta)
        return cls(args.qk_rope_head_dim, args.compress_rope_theta, args.rope_scaling)

    def __call__(
        self, rows: mx.array, offset: int, stride: int = 1, inverse: bool = False
    ) -> mx.array:
        """Rotated rows.

        Args:
            rows: `[batch, ..., rows, width]`; row i stands at position `(offset + i) * stride`.
            offset, stride: see `rows`.
            inverse: True rotates back.
        """
        still, rotated = mx.split(rows, [rows.shape[-1] - self._dims], axis=-1)
        rotated = mx.fast.rope(
            rotated,
            self._dims,
            traditional=True,
            base=None,
            scale=stride,
            offset=offset,
            freqs=-self._periods if inverse else self._periods,
        )
        return mx.concatenate([still, rotated], axis=-1)


def _ramp(dims: int, base: float, scaling: dict[str, Any]) -> list[float]:
    """How far each pair is interpolated, 0 to 1 (YaRN, equation 18 and the text around it)."""
    original = scaling["original_max_position_embeddings"]

    def pair_of(rotations: float) -> float:
        return dims * math.log(original / (2 * math.pi * rotations)) / (2 * math.log(base))

    low = max(math.floor(pair_of(scaling.get("beta_fast", 32))), 0)
    high: float = min(math.ceil(pair_of(scaling.get("beta_slow", 1))), dims - 1)
    if high == low:
        high += 0.001
    return [min(max((i - low) / (high - low), 0.0), 1.0) for i in range(dims // 2)]

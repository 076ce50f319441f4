"""Rotary embedding of the published drafters, in float64 NumPy."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Rope:
    """Rotates the first 2 * len(inverse) dims of a head; `scale` multiplies those dims only."""

    inverse: np.ndarray  # [dims / 2] radians per position
    interleaved: bool = False  # pairs (2i, 2i + 1) instead of (i, i + dims / 2)
    scale: float = 1.0  # YaRN's attention factor

    def __call__(self, x: np.ndarray, positions: np.ndarray) -> np.ndarray:
        """x [rows, heads, head_dim] at absolute positions [rows]."""
        half = len(self.inverse)
        angle = positions[:, None, None] * self.inverse  # [rows, 1, half]
        cos, sin = np.cos(angle) * self.scale, np.sin(angle) * self.scale
        out = x.copy()
        first = slice(0, 2 * half, 2) if self.interleaved else slice(0, half)
        second = slice(1, 2 * half, 2) if self.interleaved else slice(half, 2 * half)
        out[..., first] = x[..., first] * cos - x[..., second] * sin
        out[..., second] = x[..., second] * cos + x[..., first] * sin
        return out


def make_rope(rope: dict, head_dim: int, partial: float = 1.0, interleaved: bool = False) -> Rope:
    """`rope` is one flat parameter set (rope_theta, rope_type, ...)."""
    kind, base = rope.get("rope_type", rope.get("type", "default")), rope["rope_theta"]
    if kind == "proportional":
        # Exponents are over the whole head; the dims past the fraction get frequency zero.
        rotated = int(head_dim * rope.get("partial_rotary_factor", 1.0))
        inverse = np.zeros(head_dim // 2)
        inverse[: rotated // 2] = base ** -(np.arange(0, rotated, 2) / head_dim)
        return Rope(inverse, interleaved)
    dims = int(head_dim * partial)
    inverse = base ** -(np.arange(0, dims, 2) / dims)
    if kind == "default":
        return Rope(inverse, interleaved)
    if kind == "llama3":
        context, factor = rope["original_max_position_embeddings"], rope["factor"]
        low, high = rope["low_freq_factor"], rope["high_freq_factor"]
        turns = context * inverse / (2 * math.pi)
        share = np.clip((turns - low) / (high - low), 0, 1)  # of the frequency as it is
        return Rope(inverse * (share + (1 - share) / factor), interleaved)
    if kind != "yarn":
        raise ValueError(f"rope_type {kind!r} is not among default, proportional, yarn")

    def dim_of(rotations: float) -> float:
        wavelength = rope["original_max_position_embeddings"] / (rotations * 2 * math.pi)
        return dims * math.log(wavelength) / (2 * math.log(base))

    low = max(math.floor(dim_of(rope.get("beta_fast", 32))), 0)
    high = min(math.ceil(dim_of(rope.get("beta_slow", 1))), dims - 1)
    ramp = np.clip((np.arange(dims // 2) - low) / max(high - low, 0.001), 0, 1)
    factor = rope["factor"]
    scale = rope.get("attention_factor") or 0.1 * math.log(factor) + 1.0
    return Rope(inverse * (1 - ramp) + inverse / factor * ramp, interleaved, scale)


def rope_of(backbone: dict, head_dim: int, entry: str, partial: float) -> Rope:
    """Either spelling: rope_parameters (flat, or one set per layer type) or rope_theta."""
    rope = backbone.get("rope_parameters") or {"rope_theta": backbone["rope_theta"]}
    if isinstance(rope.get(entry), dict):
        rope = rope[entry]
    rope = rope | (backbone.get("rope_scaling") or {})
    return make_rope(rope, head_dim, partial, backbone.get("rope_is_neox_style") is False)

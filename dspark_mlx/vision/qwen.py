"""Qwen3.5 and Qwen3-VL: image rows have positions in time, height and width.

Behind an image text goes on at a smaller position than its row has. The ropes of mlx-lm's model,
which know one position a row, change class while a request with images runs.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from ..targets.tap import Forward
from .base import CausalImages


class QwenImages(CausalImages):
    """Three positions a row, and images that are added to the output of the first layers too.

    Raises:
        ValueError: the network's ropes are of another kind.
    """

    READS = CausalImages.READS | {
        *("position_ids", "rope_deltas", "visual_pos_masks", "deepstack_visual_embeds")
    }

    def __init__(
        self,
        network: nn.Module,
        config: Mapping[str, Any],
        is_image: np.ndarray,
        made: Mapping[str, mx.array],
    ) -> None:
        super().__init__(network, config, is_image, made)
        text = config["text_config"]
        rope = text.get("rope_parameters") or text.get("rope_scaling") or {}
        self._sections: list[int] = rope["mrope_section"]
        self._positions = np.array(made["position_ids"]).reshape(3, -1)
        self._delta = int(np.array(made["rope_deltas"]).item())
        self._ropes = [each for _, each in network.named_modules() if type(each) is nn.RoPE]
        if not self._ropes:
            raise ValueError("ropes that are not nn.RoPE")
        self._added = list(made.get("deepstack_visual_embeds", ()))

    @property
    def later(self) -> Forward:
        """See `CausalImages`."""

        def forward(tokens: mx.array, caches: list[Any]) -> mx.array:
            with self._placed():
                logits: mx.array = self._network(tokens, cache=caches)
            return logits

        return forward

    def forward(self, rows: Mapping[str, mx.array], start: int, caches: list[Any]) -> mx.array:
        """See `CausalImages`."""
        with self._placed(), self._adding(start, rows["inputs"].shape[1]):
            return super().forward(rows, start, caches)

    @contextlib.contextmanager
    def _placed(self) -> Iterator[None]:
        """Let the ropes turn rows by their positions."""
        positions, sections, delta = self._positions, self._sections, self._delta

        class Placed(nn.RoPE):
            def __call__(self, x: mx.array, offset: int = 0) -> mx.array:
                here = positions[:, offset : offset + x.shape[-2]]
                if not here.size:
                    turned: mx.array = super().__call__(x, offset=offset + delta)
                    return turned
                return _turned(x, _angles(here, sections, self.dims, self.base), self.dims)

        for rope in self._ropes:
            rope.__class__ = Placed
        try:
            yield
        finally:
            for rope in self._ropes:
                rope.__class__ = nn.RoPE

    @contextlib.contextmanager
    def _adding(self, start: int, width: int) -> Iterator[None]:
        """Let the first layers add their part of the images to their output."""
        here = self._is_image[start : start + width]
        before = int(self._is_image[:start].sum())
        part = slice(before, before + int(here.sum()))
        at = mx.array(np.flatnonzero(here))
        added = self._added if here.any() else []
        layers = list(zip(self._network.layers, added, strict=False))
        classes = [type(layer) for layer, _ in layers]
        for (layer, rows), original in zip(layers, classes, strict=True):
            layer.__class__ = _adding_class(original, at, rows[part])
        try:
            yield
        finally:
            for (layer, _), original in zip(layers, classes, strict=True):
                layer.__class__ = original


def _adding_class(original: Any, at: mx.array, rows: mx.array) -> type:
    call = original.__call__

    def adding(self: nn.Module, *args: Any, **kwargs: Any) -> mx.array:
        h: mx.array = call(self, *args, **kwargs)
        return h.at[:, at].add(rows.astype(h.dtype)[None])

    return type(original.__name__, (original,), {"__call__": adding})


def _angles(positions: np.ndarray, sections: list[int], dims: int, base: float) -> mx.array:
    """Angle of each pair of a row's channels, float32 `[rows, dims / 2]`.

    Channels take turns: time, height, width, time and so on. Height and width have as many channels
    as their sections say, and time all others.
    """
    axis = np.zeros(dims // 2, dtype=int)
    for which in (1, 2):
        axis[which : 3 * sections[which] : 3] = which
    frequencies = base ** (-np.arange(0, dims, 2) / dims)
    return mx.array((positions[axis].T * frequencies).astype(np.float32))


def _turned(x: mx.array, angles: mx.array, dims: int) -> mx.array:
    """Rows `[batch, heads, rows, channels]`, of which the first `dims` channels are turned."""
    a, b = mx.split(x[..., :dims].astype(mx.float32), 2, axis=-1)
    cos, sin = mx.cos(angles), mx.sin(angles)
    turned = mx.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1).astype(x.dtype)
    return mx.concatenate([turned, x[..., dims:]], axis=-1)

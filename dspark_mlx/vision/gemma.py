"""Gemma 4: embeddings come scaled, and the rows of an image may see each other."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from mlx_lm.models.base import create_causal_mask

from .base import CausalImages


class GemmaImages(CausalImages):
    """Embeddings that are scaled already; rows of an image see all of it, where the config says so.

    mlx-lm's text model scales what it is given and makes causal masks. It changes class for the
    forwards that read a prompt with images.
    """

    READS = CausalImages.READS | {"per_layer_inputs"}

    def __init__(
        self,
        network: nn.Module,
        config: Mapping[str, Any],
        is_image: np.ndarray,
        made: Mapping[str, mx.array],
    ) -> None:
        super().__init__(network, config, is_image, made)
        both = (config.get("text_config") or {}).get("use_bidirectional_attention")
        self._bidirectional = both == "vision"

    def end_of_chunk(self, stop: int) -> int:
        """Behind the image that would be cut, where its rows see each other."""
        while self._bidirectional and self._is_image[stop - 1 : stop + 1].sum() == 2:
            stop += 1
        return stop

    def forward(self, rows: Mapping[str, mx.array], start: int, caches: list[Any]) -> mx.array:
        """See `CausalImages`."""
        width = rows["inputs"].shape[1]
        here = self._is_image[start : start + width]
        together = None
        if self._bidirectional and here.any():
            together = mx.array(_same_image(here))
        with _reading(self._network, together, start):
            return super().forward(rows, start, caches)


def _same_image(is_image: np.ndarray) -> np.ndarray:
    """Which rows belong to one image, bool `[rows, rows]`; images have text between them."""
    numbers = np.cumsum(np.diff(is_image.astype(int), prepend=0) == 1)
    return (numbers[:, None] == numbers) & is_image[:, None] & is_image


@contextlib.contextmanager
def _reading(network: Any, together: mx.array | None, start: int) -> Iterator[None]:
    """Let a Gemma's text model read embeddings as they are, with the masks of images."""
    text = network.language_model.model
    original = type(text)
    changes: dict[str, Any] = {"embed_scale": property(lambda self: 1.0)}
    if together is not None:
        make_masks = original._make_masks

        def with_images(self: Any, h: mx.array, cache: list[Any]) -> list[mx.array]:
            made = make_masks(self, h, cache)
            masks = {id(mask): _with_images(mask, together, start) for mask in made}
            return [masks[id(mask)] for mask in made]

        changes["_make_masks"] = with_images
    text.__class__ = type(original.__name__, (original,), changes)
    try:
        yield
    finally:
        text.__class__ = original


def _with_images(mask: mx.array | str | None, together: mx.array, start: int) -> mx.array:
    """A causal mask in which the rows of an image see each other, bool `[rows, keys]`.

    Args:
        mask: mlx-lm's: an array, or its word for a causal one.
        together: see `_same_image`; the chunk's own keys are the last ones.
        start: position of the chunk's first row.
    """
    rows = together.shape[0]
    causal: Any = mask if isinstance(mask, mx.array) else create_causal_mask(rows, start)
    before = mx.zeros((rows, causal.shape[-1] - rows), dtype=mx.bool_)
    return causal | mx.concatenate([before, together], axis=1)

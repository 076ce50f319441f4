"""How a target reads the embeddings of a prompt with images, through mlx-lm's own forward."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from ..targets.tap import Forward


class CausalImages:
    """Images that are read as text is: each row sees the rows before it.

    Args:
        network: mlx-lm's model.
        config: its config.json.
        is_image: of each token of the prompt whether it stands for a part of an image, `[length]`.
        made: what mlx-vlm made of the prompt, by its names; of `READS` alone.

    Attributes:
        READS: names of what this family can read.
    """

    READS: ClassVar[frozenset[str]] = frozenset({"inputs_embeds"})

    def __init__(
        self,
        network: nn.Module,
        config: Mapping[str, Any],
        is_image: np.ndarray,
        made: Mapping[str, mx.array],
    ) -> None:
        self._network = network
        self._is_image = is_image

    @property
    def later(self) -> Forward | None:
        """The network's forward over rows behind the prompt; None where it is the usual one."""
        return None

    def end_of_chunk(self, stop: int) -> int:
        """Where a chunk of the prompt ends that is to end at `stop`."""
        return stop

    def forward(self, rows: Mapping[str, mx.array], start: int, caches: list[Any]) -> mx.array:
        """The network's forward over the rows of a chunk.

        Args:
            rows: arguments of the network, each `[1, rows, ...]`.
            start: position of the first row.
            caches: the request's.

        Returns:
            Logits `[1, rows, vocabulary]`.
        """
        logits: mx.array = self._network(cache=caches, **rows)
        return logits

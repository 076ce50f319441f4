"""The canonical configuration of Gemma 4's assistants, and their tensors' shapes."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import mlx.nn as nn
from mlx_lm.models import gemma4_text

from ...checkpoint.layer_shapes import shared_matrices
from ...checkpoint.number_ranges import LARGEST, check_within
from ...errors import InputError
from ..chain_config import STATES, ChainConfig
from ..mtp.block import REFUSALS, layer_shapes
from ..mtp.config import BLOCK

FULL, SLIDING = "full_attention", "sliding_attention"
POST = "post_projection"
"""Name of the matrix from a row of the assistant to a state of the target."""
CENTROIDS = "centroids"
"""Name of the matrix that scores the clusters of the vocabulary."""
TOKEN_ORDERING = "token_ordering"
"""Name of the tensor with all token ids, those of a cluster behind each other."""

# Published assistants have four layers; many more would be a target.
_MAX_LAYERS = 16


@dataclass(frozen=True, kw_only=True)
class Gemma4AssistantConfig(ChainConfig):
    """An assistant of a Gemma 4 target, run once a token (transformers' gemma4_assistant).

    u = fc(concat[e, g]), h = norm(layers(u)), logits = output(h): e is the scaled embedding of the
    newest token in the target's table, and g is the target's state at the position before it, or
    `post_projection(h)` of the token before in a block. The layers have queries alone. They attend
    to keys and values that two of the target's layers made of committed tokens, and all rows of a
    block have the anchor's position.

    Attributes:
        arguments: the arguments of a gemma4_text model with the assistant's layers alone.
        steps: tokens proposed per round.
        state: "normed" where g is the target's state after its final norm, "raw" before it.
        full_layer: the target's layer whose keys and values full-attention layers attend to.
        sliding_layer: the same for sliding layers.
        window: how many of the newest positions sliding layers attend to.
        num_centroids: clusters that the vocabulary is divided into, all of one size; 0 where logits
            are those of the whole vocabulary.
        centroid_top_k: how many clusters can be proposed from in a step; 0 without clusters.
    """

    METHOD: ClassVar[str] = "gemma4_assistant"
    EXAMPLE: ClassVar[dict[str, Any]] = {
        "taps": (-1, 0, 1),
        "arguments": {
            "model_type": "gemma4_text",
            "hidden_size": 32,
            "num_hidden_layers": 2,
            "num_kv_shared_layers": 2,
            "intermediate_size": 32,
            "num_attention_heads": 2,
            "head_dim": 16,
            "global_head_dim": 16,
            "layer_types": [SLIDING, FULL],
            "hidden_size_per_layer_input": 0,
        },
        "steps": 3,
        "state": "normed",
        "full_layer": 1,
        "sliding_layer": 0,
        "window": 4,
    }

    arguments: dict[str, Any]
    steps: int
    state: str
    full_layer: int
    sliding_layer: int
    window: int
    num_centroids: int = 0
    centroid_top_k: int = 0

    @property
    def depth(self) -> int:
        """See `CanonicalConfig.depth`."""
        return len(self.arguments["layer_types"])

    @property
    def embedding_size(self) -> int:
        """See `CanonicalConfig.embedding_size`: the target's table is read as it is."""
        return self.target_hidden_size

    @property
    def summary(self) -> str:
        """A description of the drafter in a few words."""
        clusters = f", {self.num_centroids} clusters" if self.num_centroids else ""
        return f"Gemma 4's assistant, {self.depth} layers, {self.steps} steps{clusters}"

    @property
    def can_be_cut(self) -> bool:
        """See `CanonicalConfig.can_be_cut`; clusters are a draft vocabulary of each step's own."""
        return not self.num_centroids and super().can_be_cut

    def layers(self) -> list[nn.Module]:
        """The assistant's layers, which are mlx-lm's; their random weights are never evaluated.

        Raises:
            REFUSALS: mlx-lm refuses the arguments.
        """
        arguments = gemma4_text.ModelArgs.from_dict(dict(self.arguments))
        return [gemma4_text.DecoderLayer(arguments, i) for i in range(self.depth)]

    @cached_property
    def _layer_shapes(self) -> tuple[dict[str, tuple[int, ...]], dict[str, tuple[int, ...]]]:
        """See `layer_shapes`."""
        return layer_shapes(self.layers())

    def matrix_shapes(self) -> dict[str, tuple[int, ...]]:
        """See `CanonicalConfig.matrix_shapes`."""
        matrices, _ = self._layer_shapes
        shapes: dict[str, tuple[int, ...]] = dict(shared_matrices(self))
        shapes["fc"] = (self.hidden_size, 2 * self.target_hidden_size)
        shapes[POST] = (self.target_hidden_size, self.hidden_size)
        if self.num_centroids:
            shapes[CENTROIDS] = (self.num_centroids, self.hidden_size)
        return shapes | {f"{BLOCK}.{name}": shape for name, shape in matrices.items()}

    def vector_shapes(self) -> dict[str, tuple[int, ...]]:
        """See `CanonicalConfig.vector_shapes`."""
        _, others = self._layer_shapes
        shapes: dict[str, tuple[int, ...]] = {"norm.weight": (self.hidden_size,)}
        return shapes | {f"{BLOCK}.{name}": shape for name, shape in others.items()}

    def id_shapes(self) -> dict[str, tuple[int, ...]]:
        """See `CanonicalConfig.id_shapes`."""
        ordering = {TOKEN_ORDERING: (self.vocab_size,)} if self.num_centroids else {}
        return {**super().id_shapes(), **ordering}

    def alternatives(self) -> dict[str, tuple[Any, ...]]:
        """See `CanonicalConfig.alternatives`; the layers have no pairing to choose."""
        return {"state": STATES}

    def _check(self, where: Path | str) -> None:
        self._check_positive(where, "window")
        self._check_known(where, state=STATES)
        kinds = self.arguments.get("layer_types")
        if (
            not isinstance(kinds, list)
            or not 0 < len(kinds) <= _MAX_LAYERS
            or any(kind not in (FULL, SLIDING) for kind in kinds)
        ):
            expected = f"1 to {_MAX_LAYERS} entries, each {FULL} or {SLIDING}"
            raise InputError(where, f"layer_types {kinds!r}", expected)
        stated = {name: self.arguments.get(name) for name in ("num_hidden_layers", "hidden_size")}
        wanted = {"num_hidden_layers": len(kinds), "hidden_size": self.hidden_size}
        shared = self.arguments.get("num_kv_shared_layers")
        if stated != wanted or shared != len(kinds) or self.arguments.get("enable_moe_block"):
            found = f"arguments with {stated}, num_kv_shared_layers {shared}"
            expected = f"{wanted}, and layers without keys, values and experts"
            raise InputError(where, found, expected)
        super()._check(where)
        self._check_rope(where, kinds)
        read = {self.full_layer - 1, self.sliding_layer - 1}
        if len(self.taps) < 2 or not read <= set(self.taps[:-1]):
            found = f"taps {list(self.taps)} for layers {self.sliding_layer}, {self.full_layer}"
            raise InputError(where, found, "what enters these layers, and the last layer's output")
        if self.num_centroids or self.centroid_top_k:
            self._check_clusters(where)
        if not self.owns_head and self.hidden_size != self.target_hidden_size:
            found = f"rows of {self.hidden_size} for a head of {self.target_hidden_size} columns"
            raise InputError(where, found, "a head of its own")
        try:
            self.layers()
        except REFUSALS as error:
            found = f"arguments that mlx-lm refuses ({type(error).__name__}: {error})"
            raise InputError(where, found, "those of a gemma4_text model") from error

    def _check_rope(self, where: Path | str, kinds: list[str]) -> None:
        """Refuse rotations without a base, for which mlx-lm would take one of its own."""
        if (rope := self.arguments.get("rope_parameters")) is None:
            return
        for kind in sorted(set(kinds)):
            values = rope.get(kind) if isinstance(rope, dict) else None
            if not isinstance(values, dict):
                raise InputError(where, f"rope_parameters {rope!r}", f"an object with {kind}")
            name = f"rope_parameters.{kind}.rope_theta"
            check_within(where, name, values.get("rope_theta"), 2.0, LARGEST)

    def _check_clusters(self, where: Path | str) -> None:
        self._check_positive(where, "num_centroids centroid_top_k")
        if self.vocab_size % self.num_centroids:
            found = f"num_centroids {self.num_centroids}"
            raise InputError(where, found, f"a number that divides vocab_size {self.vocab_size}")
        if self.centroid_top_k > self.num_centroids:
            found = f"centroid_top_k {self.centroid_top_k} of num_centroids {self.num_centroids}"
            raise InputError(where, found, "no more than there are")
        scaled = self.softcap != 0 or self.output_multiplier != 1
        if not self.owns_head or scaled or self.draft_vocab_size:
            found = "num_centroids with a head that is shared, reduced, scaled or capped"
            raise InputError(where, found, "a head of its own, as it is")

"""The canonical configuration of a target's own prediction head, and its tensors' shapes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from ...checkpoint.layer_shapes import shared_matrices
from ...errors import InputError
from ..chain_config import STATES, ChainConfig
from .block import FAMILIES, REFUSALS, attends_first, block_shapes

BLOCK = "block"
"""Prefix of the tensors of the head's layers."""
TARGET_NORM = "target_norm"
"""Name, without `.weight`, of the target's final norm, which is stored but not learnt."""

ORDERS = ("embedding", "hidden")
# Published heads have one or two layers; more would be a target.
_MAX_LAYERS = 4


@dataclass(frozen=True, kw_only=True)
class MTPConfig(ChainConfig):
    """A target's multi-token prediction head, run once a token.

    u = fc(concat[embedding_norm(e), hidden_norm(g)]), v = layers(u), logits = output(norm(v)): e is
    the embedding of the token at i + 1, and g is the target's state at i. For later tokens of a
    block g is the head's own output. Sources differ in which states they mean, so both are fields.

    Attributes:
        family: the module of mlx-lm that has the layers.
        arguments: the arguments of a model of that family with the head's layers alone.
        steps: tokens proposed per round.
        state: "normed" where g is the target's state after its final norm, "raw" before it.
        feedback: "normed" where the head's output after its final norm is fed back, "raw" before.
        order: which half of the input of `fc` comes first, "embedding" or "hidden".
    """

    METHOD: ClassVar[str] = "mtp"
    EXAMPLE: ClassVar[dict[str, Any]] = {
        "taps": (1,),
        "family": "mimo",
        "arguments": {
            "model_type": "mimo",
            "hidden_size": 32,
            "num_hidden_layers": 1,
            "intermediate_size": 32,
            "num_attention_heads": 2,
            "num_key_value_heads": 1,
            "rms_norm_eps": 1e-6,
            "vocab_size": 1,
        },
        "steps": 3,
        "state": "normed",
        "feedback": "normed",
        "order": "embedding",
    }

    family: str
    arguments: dict[str, Any]
    steps: int
    state: str
    feedback: str
    order: str

    @property
    def depth(self) -> int:
        """See `CanonicalConfig.depth`."""
        return 1

    @property
    def summary(self) -> str:
        """A description of the drafter in a few words."""
        return f"the target's prediction head ({self.family}), {self.steps} steps"

    def matrix_shapes(self) -> dict[str, tuple[int, ...]]:
        """See `CanonicalConfig.matrix_shapes`."""
        matrices, _ = block_shapes(self.family, self.arguments)
        shapes = shared_matrices(self) | {"fc": (self.hidden_size, 2 * self.hidden_size)}
        return {**shapes, **{f"{BLOCK}.{name}": shape for name, shape in matrices.items()}}

    def vector_shapes(self) -> dict[str, tuple[int, ...]]:
        """See `CanonicalConfig.vector_shapes`."""
        _, others = block_shapes(self.family, self.arguments)
        names = ("embedding_norm", "hidden_norm", "norm", TARGET_NORM)
        shapes: dict[str, tuple[int, ...]] = {f"{n}.weight": (self.hidden_size,) for n in names}
        return shapes | {f"{BLOCK}.{name}": shape for name, shape in others.items()}

    def alternatives(self) -> dict[str, tuple[Any, ...]]:
        """See `CanonicalConfig.alternatives`; the family's layers have no pairing to choose."""
        return {"state": STATES, "feedback": STATES, "order": ORDERS}

    def _check(self, where: Path | str) -> None:
        self._check_known(where, family=FAMILIES, state=STATES, feedback=STATES, order=ORDERS)
        layers = self.arguments.get("num_hidden_layers")
        pattern = self.arguments.get("hybrid_override_pattern") or ()
        if isinstance(pattern, str | list | tuple) and len(pattern) > _MAX_LAYERS:
            layers = len(pattern)  # Nemotron's models have as many layers as their pattern says
        if type(layers) is not int or not 1 <= layers <= _MAX_LAYERS:
            raise InputError(where, f"num_hidden_layers {layers!r}", f"1 to {_MAX_LAYERS} layers")
        super()._check(where)
        if len(self.taps) != 1 or self.target_hidden_size != self.hidden_size:
            found = f"taps {list(self.taps)} of {self.target_hidden_size} columns"
            raise InputError(where, found, f"one, of {self.hidden_size}")
        if self.arguments.get("hidden_size") != self.hidden_size:
            found = f"arguments with hidden_size {self.arguments.get('hidden_size')!r}"
            raise InputError(where, found, f"{self.hidden_size}")
        try:
            attends = attends_first(self.family, self.arguments)
            block_shapes(self.family, self.arguments)
        except REFUSALS as error:
            found = f"arguments that mlx-lm refuses ({type(error).__name__}: {error})"
            raise InputError(where, found, f"those of a {self.family} model") from error
        if not attends:
            found = f"{layers} layers, of which others than the first attend"
            raise InputError(where, found, "a head whose first layer attends, and no other")

"""What the configurations of DeepSeek V4's drafters share: the sizes of their layers."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Self

from ...checkpoint.base_config import CanonicalConfig
from ...deepseek_v4.config import ModelArgs
from ...errors import InputError

_EXPERT_MATRICES = (("w1", True), ("w2", False), ("w3", True))


@dataclass(frozen=True, kw_only=True)
class LayersConfig(CanonicalConfig):
    """Layers of the target's own kind, which see a window; their names are those of the target's.

    `intermediate_size` is a routed expert's.

    Attributes:
        LAYERS_EXAMPLE: the fields of small layers, for `EXAMPLE`.
        num_layers: layers, which the releases call stages.
        window: how many committed rows before the anchor a row sees.
        q_lora_rank, o_lora_rank, o_groups: low-rank sizes of queries and output.
        num_experts, num_shared_experts, experts_per_token: of a layer.
        routed_scale: factor of the routed experts' weights.
        swiglu_limit: limit of the experts' activations; 0 for none.
        copies, sinkhorn_iters, mix_eps: of the hyper-connections.
        late_mixing, query_norm, gate_temperature: what V4.1 does otherwise, see `ModelArgs`. With
            late mixing the last sublayer's weights reduce the copies at the end, and there is no
            `hc_head`.
    """

    LAYERS_EXAMPLE: ClassVar[dict[str, Any]] = {
        "num_layers": 1,
        "window": 6,
        "q_lora_rank": 16,
        "o_lora_rank": 16,
        "o_groups": 2,
        "num_experts": 2,
        "num_shared_experts": 1,
        "experts_per_token": 1,
        "routed_scale": 1.5,
        "swiglu_limit": 10.0,
        "copies": 2,
        "sinkhorn_iters": 2,
        "mix_eps": 1e-6,
        "rope_dims": 8,
        "rope_interleaved": True,
        "values": "keys",
    }

    num_layers: int
    window: int
    q_lora_rank: int
    o_lora_rank: int
    o_groups: int
    num_experts: int
    num_shared_experts: int
    experts_per_token: int
    routed_scale: float
    swiglu_limit: float
    copies: int
    sinkhorn_iters: int
    mix_eps: float
    late_mixing: bool = False
    query_norm: bool = True
    gate_temperature: float = 1.0

    @property
    def depth(self) -> int:
        """See `CanonicalConfig.depth`."""
        return self.num_layers

    @property
    def args(self) -> ModelArgs:
        """The sizes of the stages, as the target's layers take them."""
        return ModelArgs(
            model_type=self.METHOD,
            vocab_size=self.vocab_size,
            hidden_size=self.hidden_size,
            num_hidden_layers=self.num_layers,
            num_attention_heads=self.num_heads,
            head_dim=self.head_dim,
            qk_rope_head_dim=self.rope_dims,
            q_lora_rank=self.q_lora_rank,
            o_lora_rank=self.o_lora_rank,
            o_groups=self.o_groups,
            moe_intermediate_size=self.intermediate_size,
            n_routed_experts=self.num_experts,
            n_shared_experts=self.num_shared_experts,
            num_experts_per_tok=self.experts_per_token,
            sliding_window=self.window,
            compress_ratios=[0] * self.num_layers,
            index_n_heads=0,
            index_head_dim=0,
            index_topk=0,
            rope_theta=self.rope_theta,
            routed_scaling_factor=self.routed_scale,
            swiglu_limit=self.swiglu_limit,
            hc_mult=self.copies,
            hc_sinkhorn_iters=self.sinkhorn_iters,
            hc_eps=self.mix_eps,
            rms_norm_eps=self.rms_norm_eps,
            gate_temp=self.gate_temperature,
            query_norm=self.query_norm,
            late_mixing=self.late_mixing,
        )

    def with_window(self, window: int) -> Self:
        """See `CanonicalConfig.with_window`."""
        return replace(self, window=min(self.window, window))

    def matrix_shapes(self) -> dict[str, tuple[int, ...]]:
        """See `CanonicalConfig.matrix_shapes`; those of the layers and of their reduction."""
        wide = self.copies * self.hidden_size
        shapes: dict[str, tuple[int, ...]] = {}
        if not self.late_mixing:
            shapes["hc_head.fn"] = (self.copies, wide)
        for i in range(self.num_layers):
            shapes |= self._layer_matrices(f"layers.{i}", wide)
        return shapes

    def vector_shapes(self) -> dict[str, tuple[int, ...]]:
        """See `CanonicalConfig.vector_shapes`, as for `matrix_shapes`."""
        hidden, mixes = (self.hidden_size,), ((2 + self.copies) * self.copies,)
        shapes: dict[str, tuple[int, ...]] = {}
        if not self.late_mixing:
            shapes |= {"hc_head.base": (self.copies,), "hc_head.scale": (1,)}
        for i in range(self.num_layers):
            for part in ("attn", "ffn"):
                shapes[f"layers.{i}.{part}_norm.weight"] = hidden
                shapes[f"layers.{i}.hc_{part}.base"] = mixes
                shapes[f"layers.{i}.hc_{part}.scale"] = (3,)
            shapes[f"layers.{i}.attn.q_norm.weight"] = (self.q_lora_rank,)
            shapes[f"layers.{i}.attn.kv_norm.weight"] = (self.head_dim,)
            shapes[f"layers.{i}.attn.attn_sink"] = (self.num_heads,)
            shapes[f"layers.{i}.ffn.gate.bias"] = (self.num_experts,)
        return shapes

    def alternatives(self) -> dict[str, tuple[Any, ...]]:
        """See `CanonicalConfig.alternatives`; a release leaves nothing open."""
        return {}

    def _layer_matrices(self, layer: str, wide: int) -> dict[str, tuple[int, int]]:
        hidden, heads = self.hidden_size, self.num_heads * self.head_dim
        low = self.o_groups * self.o_lora_rank
        mixes, shared = (2 + self.copies) * self.copies, self.num_shared_experts
        shapes = {
            f"{layer}.hc_attn.fn": (mixes, wide),
            f"{layer}.hc_ffn.fn": (mixes, wide),
            f"{layer}.attn.wq_a": (self.q_lora_rank, hidden),
            f"{layer}.attn.wq_b": (heads, self.q_lora_rank),
            f"{layer}.attn.wkv": (self.head_dim, hidden),
            f"{layer}.attn.wo_a": (low, heads // self.o_groups),
            f"{layer}.attn.wo_b": (hidden, low),
            f"{layer}.ffn.gate": (self.num_experts, hidden),
        }
        for name, up in (("gate_proj", True), ("up_proj", True), ("down_proj", False)):
            width = self.intermediate_size * shared
            shape = (width, hidden) if up else (hidden, width)
            shapes[f"{layer}.ffn.shared_experts.{name}"] = shape
        for expert in range(self.num_experts):
            for name, up in _EXPERT_MATRICES:
                width = self.intermediate_size
                shape = (width, hidden) if up else (hidden, width)
                shapes[f"{layer}.ffn.experts.{expert}.{name}"] = shape
        return shapes

    def _check(self, where: Path | str) -> None:
        self._check_positive(
            where,
            "num_layers window q_lora_rank o_lora_rank o_groups num_experts num_shared_experts "
            "experts_per_token copies sinkhorn_iters rope_dims",
        )
        for name, high in (("routed_scale", 1e4), ("swiglu_limit", 1e4), ("mix_eps", 1.0)):
            self._check_within(where, name, 0.0, high)
        self._check_within(where, "gate_temperature", 1e-4, 1e4)
        super()._check(where)
        if self.num_heads % self.o_groups:
            found = f"num_heads {self.num_heads} with o_groups {self.o_groups}"
            raise InputError(where, found, "a whole number of heads in a group")
        if self.experts_per_token > self.num_experts:
            found = f"{self.experts_per_token} experts a token of {self.num_experts}"
            raise InputError(where, found, "no more than there are")
        fixed = {"num_kv_heads": 1, "rope_interleaved": True, "values": "keys"}
        for name, value in fixed.items():
            if getattr(self, name) != value:
                raise InputError(where, f"{name} {getattr(self, name)!r}", f"{value!r}")
        if self.owns_embedding or self.owns_head or self.draft_vocab_size:
            raise InputError(where, "an embedding or a head of its own", "the target's")

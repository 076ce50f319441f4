"""Sizes of a DeepSeek V4 checkpoint, as its config.json names them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from mlx_lm.models.base import BaseModelArgs

SCORING = "sqrtsoftplus"
OVERLAPPING = 4
"""The ratio of compression whose windows overlap and have an indexer (CSA)."""


@dataclass
class ModelArgs(BaseModelArgs):
    """What the layers need to know; keys of config.json that are not here do not matter to them.

    `compress_ratios` has an entry for each layer: 0 for a layer that sees its window only, 4 for
    compressed sparse attention (CSA: windows that overlap, and an indexer that chooses among them),
    any other number for heavily compressed attention (HCA). Entries behind the last layer belong to
    the head's stages.

    V4.1's stages are made of the same layers: without a norm of each head's query (`query_norm`),
    with the weights of the copies that a sublayer reads from the sublayer before (`late_mixing`),
    and router logits divided by `gate_temp`.

    Raises:
        ValueError: the checkpoint asks for something else than these layers compute.
    """

    model_type: str
    vocab_size: int
    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    head_dim: int
    qk_rope_head_dim: int
    q_lora_rank: int
    o_lora_rank: int
    o_groups: int
    moe_intermediate_size: int
    n_routed_experts: int
    num_experts_per_tok: int
    sliding_window: int
    compress_ratios: list[int]
    index_n_heads: int
    index_head_dim: int
    index_topk: int
    rope_theta: float = 10000.0
    compress_rope_theta: float = 160000.0
    rope_scaling: dict[str, Any] | None = None
    n_shared_experts: int = 1
    num_hash_layers: int = 0
    scoring_func: str = SCORING
    norm_topk_prob: bool = True
    routed_scaling_factor: float = 1.0
    swiglu_limit: float = 0.0
    hc_mult: int = 4
    hc_sinkhorn_iters: int = 20
    hc_eps: float = 1e-6
    rms_norm_eps: float = 1e-6
    gate_temp: float = 1.0
    query_norm: bool = True
    late_mixing: bool = False

    def __post_init__(self) -> None:
        if self.scoring_func != SCORING or not self.norm_topk_prob:
            asked = f"scoring_func {self.scoring_func}, norm_topk_prob {self.norm_topk_prob}"
            raise ValueError(f"{asked}; these experts have {SCORING}, normalised")
        if len(self.compress_ratios) < self.num_hidden_layers:
            ratios, layers = len(self.compress_ratios), self.num_hidden_layers
            raise ValueError(f"{ratios} compress_ratios for {layers} layers")

"""Names and shapes of the tensors that drafters of all methods have (DeepSpec's names).

Each function returns a dict from a tensor's name to its shape. Matrices are named without `.weight`
and have the shape `[out, in]`.
"""

from __future__ import annotations

from .base_config import CanonicalConfig

SINKS = "attention_sink_bias"
"""Name of the attention sinks of a layer, behind its attention's."""


def shared_matrices(config: CanonicalConfig) -> dict[str, tuple[int, int]]:
    """Shapes of the projection of the taps, and of the drafter's own embedding and head."""
    hidden = config.hidden_size
    shapes = {"fc": (hidden, len(config.taps) * config.target_hidden_size)}
    if config.owns_embedding:
        shapes["embed_tokens"] = (config.vocab_size, hidden)
    if config.owns_head:
        shapes["lm_head"] = (config.output_size, hidden)
    return shapes


def layer_matrices(config: CanonicalConfig, layer: str, columns: int) -> dict[str, tuple[int, int]]:
    """Shapes of the matrices of one layer, whose attention reads rows of `columns` features."""
    hidden, inner = config.hidden_size, config.intermediate_size
    kv = config.num_kv_heads * config.head_dim
    shapes = {f"{layer}.self_attn.q_proj": (config.query_size, columns)}
    shapes[f"{layer}.self_attn.k_proj"] = (kv, columns)
    if config.values == "projected":
        shapes[f"{layer}.self_attn.v_proj"] = (kv, columns)
    shapes[f"{layer}.self_attn.o_proj"] = (hidden, config.num_heads * config.head_dim)
    shapes[f"{layer}.mlp.gate_proj"] = (inner, hidden)
    shapes[f"{layer}.mlp.up_proj"] = (inner, hidden)
    shapes[f"{layer}.mlp.down_proj"] = (hidden, inner)
    return shapes


def layer_vectors(config: CanonicalConfig, layer: str) -> dict[str, tuple[int]]:
    """Shapes of the norms of one layer, and of its scalar and sinks where it has them."""
    norms = ["input_layernorm", "post_attention_layernorm"]
    if config.sandwich_norms:
        norms += ["pre_feedforward_layernorm", "post_feedforward_layernorm"]
    shapes = {f"{layer}.{name}.weight": (config.hidden_size,) for name in norms}
    if config.layer_scalars:
        shapes[f"{layer}.layer_scalar"] = (1,)
    if config.head_norms:
        shapes[f"{layer}.self_attn.q_norm.weight"] = (config.head_dim,)
        shapes[f"{layer}.self_attn.k_norm.weight"] = (config.head_dim,)
    if config.sinks:
        shapes[f"{layer}.self_attn.{SINKS}"] = (config.num_heads,)
    return shapes

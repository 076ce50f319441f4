"""From named matrices and vectors to the backbone's weights and the heads: what is fused with what.

Where the arrays come from is the caller's: a checked folder, or the parameters in training.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import mlx.core as mx

from .backbone import Weights
from .config import DrafterConfig
from .heads import SequentialHead
from .heads.confidence import ConfidenceHead
from .heads.gated import GatedHead
from .heads.rnn import RNNHead
from .heads.vanilla import VanillaHead
from .layer import Layer
from .matrix import Matrix, alike

MatrixOf: TypeAlias = Callable[[str], Matrix]
"""A matrix by its canonical name without `.weight`, see `layout.matrix_shapes`."""
VectorOf: TypeAlias = Callable[[str], mx.array]
"""A vector by its canonical name, see `layout.vector_shapes`."""


def backbone_weights(
    config: DrafterConfig, matrix: MatrixOf, vector: VectorOf, dtype: mx.Dtype
) -> Weights:
    """The backbone's weights, fused as they are used.

    Args:
        config: names the tensors there are.
        matrix, vector: by canonical name.
        dtype: of what must be dequantised because its parts are quantised differently.
    """
    qkv = [layer_qkv(config, i, matrix, dtype) for i in range(config.num_layers)]
    if not alike(qkv):
        qkv = [part.dequantised(dtype) for part in qkv]
    return Weights(
        fc=matrix("fc"),
        context_norm=vector("hidden_norm.weight"),
        qkv=Matrix.stack(qkv),
        layers=tuple(
            layer_weights(config, i, matrix, vector, dtype) for i in range(config.num_layers)
        ),
        norm=vector("norm.weight"),
    )


def layer_qkv(config: DrafterConfig, index: int, matrix: MatrixOf, dtype: mx.Dtype) -> Matrix:
    """A layer's query (and its gate's), key and value rows in one; no values where they are keys."""
    kinds = "qkv" if config.values == "projected" else "qk"
    return _fused([matrix(f"layers.{index}.self_attn.{x}_proj") for x in kinds], dtype)


def layer_weights(
    config: DrafterConfig, index: int, matrix: MatrixOf, vector: VectorOf, dtype: mx.Dtype
) -> Layer:
    """A layer's weights beside its query, key and value rows; see `backbone_weights`."""
    layer = f"layers.{index}"
    after_attention = vector(f"{layer}.post_attention_layernorm.weight")
    sandwich: dict[str, mx.array] = {}
    if config.sandwich_norms:
        sandwich = {
            "attention_out_norm": after_attention,
            "mlp_out_norm": vector(f"{layer}.post_feedforward_layernorm.weight"),
        }
        after_attention = vector(f"{layer}.pre_feedforward_layernorm.weight")
    return Layer(
        input_norm=vector(f"{layer}.input_layernorm.weight"),
        query_norm=vector(f"{layer}.self_attn.q_norm.weight"),
        key_norm=vector(f"{layer}.self_attn.k_norm.weight"),
        output=matrix(f"{layer}.self_attn.o_proj"),
        mlp_norm=after_attention,
        gate_up=_fused([matrix(f"{layer}.mlp.{x}_proj") for x in ("gate", "up")], dtype),
        down=matrix(f"{layer}.mlp.down_proj"),
        scalar=vector(f"{layer}.layer_scalar") if config.layer_scalars else None,
        **sandwich,
    )


def sequential_head(
    config: DrafterConfig, matrix: MatrixOf, vector: VectorOf
) -> SequentialHead | None:
    """The sequential head; None for a DFlash drafter."""
    if config.head == "none":
        return None
    w1, w2 = matrix("markov_head.markov_w1"), matrix("markov_head.markov_w2")
    if config.head == "gated":
        gate = matrix("markov_head.gate_proj")
        return GatedHead(w1, w2, gate, vector("markov_head.gate_proj.bias"))
    if config.head == "rnn":
        joint = matrix("markov_head.joint_proj")
        return RNNHead(w1, w2, joint, vector("markov_head.joint_proj.bias"))
    return VanillaHead(w1, w2)


def confidence_head(
    config: DrafterConfig, matrix: MatrixOf, vector: VectorOf
) -> ConfidenceHead | None:
    """The confidence head; None without one."""
    if config.confidence == "none":
        return None
    weight, bias = matrix("confidence_head.proj"), vector("confidence_head.proj.bias")
    return ConfidenceHead(weight, bias, reads_embedding=config.confidence == "hidden+markov")


def _fused(parts: list[Matrix], dtype: mx.Dtype) -> Matrix:
    if not alike(parts):
        parts = [part.dequantised(dtype) for part in parts]
    return Matrix.concatenate(parts)

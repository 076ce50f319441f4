"""From a canonical folder's checked tensors to a Drafter: fusing, casting, dequantising."""

from __future__ import annotations

from collections.abc import Callable

import mlx.core as mx

from .backbone import Backbone, Layer, Weights
from .calibrations import Calibrations
from .config import DrafterConfig
from .drafter import Drafter
from .heads import SequentialHead
from .heads.confidence import ConfidenceHead
from .heads.gated import GatedHead
from .heads.rnn import RNNHead
from .heads.vanilla import VanillaHead
from .layout import DRAFT_IDS, Tensors
from .matrix import Matrix, alike, arrays_of
from .vocabulary import Setting, choose_size


def assemble(
    config: DrafterConfig,
    tensors: Tensors,
    embed: Callable[[mx.array], mx.array],
    logits: Callable[[mx.array], mx.array],
    dtype: mx.Dtype,
    dequantise: bool,
    output: Matrix | None = None,
    draft_vocabulary: Setting = "full",
    calibrations: Calibrations | None = None,
) -> Drafter:
    """A Drafter from checked tensors, evaluated.

    Args:
        config: what the tensors are.
        tensors: exactly the folder's, see `check_tensors`.
        embed, logits: the target's; not used where the drafter owns its own.
        dtype: of the arithmetic.
        dequantise: store quantised matrices plain, where that is faster.
        output: the target's output matrix, for a draft vocabulary; None where it has none that can
            be cut.
        draft_vocabulary: see `vocabulary.choose_size`.
        calibrations: of the confidence head; None takes it as it is.
    """

    def matrix(name: str) -> Matrix:
        quantised = config.quantization.of(name) if config.quantization else None
        stored = Matrix(tensors[f"{name}.weight"])
        if quantised is not None:
            scales, biases = tensors[f"{name}.scales"], tensors[f"{name}.biases"]
            stored = Matrix(tensors[f"{name}.weight"], scales, biases, *quantised)
        return stored.dequantised(dtype) if dequantise else stored.astype(dtype)

    def vector(name: str) -> mx.array:
        return tensors[name].astype(dtype)

    def fused(*names: str) -> Matrix:
        parts = [matrix(name) for name in names]
        if not alike(parts):
            parts = [part.dequantised(dtype) for part in parts]
        return Matrix.concatenate(parts)

    fused_qkv, layers = [], []
    for i in range(config.num_layers):
        attention, mlp = f"layers.{i}.self_attn", f"layers.{i}.mlp"
        kinds = "qkv" if config.values == "projected" else "qk"
        fused_qkv.append(fused(*(f"{attention}.{x}_proj" for x in kinds)))
        after_attention = vector(f"layers.{i}.post_attention_layernorm.weight")
        sandwich = config.sandwich_norms
        layer = Layer(
            input_norm=vector(f"layers.{i}.input_layernorm.weight"),
            query_norm=vector(f"{attention}.q_norm.weight"),
            key_norm=vector(f"{attention}.k_norm.weight"),
            output=matrix(f"{attention}.o_proj"),
            mlp_norm=vector(f"layers.{i}.pre_feedforward_layernorm.weight")
            if sandwich
            else after_attention,
            gate_up=fused(f"{mlp}.gate_proj", f"{mlp}.up_proj"),
            down=matrix(f"{mlp}.down_proj"),
            attention_out_norm=after_attention if sandwich else None,
            mlp_out_norm=vector(f"layers.{i}.post_feedforward_layernorm.weight")
            if sandwich
            else None,
            scalar=vector(f"layers.{i}.layer_scalar") if config.layer_scalars else None,
        )
        layers.append(layer)
    if not alike(fused_qkv):
        fused_qkv = [part.dequantised(dtype) for part in fused_qkv]
    weights = Weights(
        fc=matrix("fc"),
        context_norm=vector("hidden_norm.weight"),
        qkv=Matrix.stack(fused_qkv),
        layers=tuple(layers),
        norm=vector("norm.weight"),
    )
    confidence = None
    if config.confidence != "none":
        reads_embedding = config.confidence == "hidden+markov"
        weight, bias = matrix("confidence_head.proj"), vector("confidence_head.proj.bias")
        confidence = ConfidenceHead(weight, bias, reads_embedding)
    head = _sequential_head(config, matrix, vector)
    own = [matrix(name) for name in ("embed_tokens", "lm_head") if f"{name}.weight" in tensors]
    if config.owns_embedding:
        embed = own[0].rows
    if config.owns_head:
        logits = output = own[-1]
    ids = tensors[DRAFT_IDS] if config.draft_vocab_size else None
    if config.softcap:
        logits, output = _capped(logits, config.softcap), None
    mx.eval(arrays_of([weights, head, confidence, own]))
    # What is reduced already, or capped behind the product, is read out whole.
    size = choose_size(draft_vocabulary, config.vocab_size) if ids is None else None
    vocabulary = (output, size) if output is not None and size is not None else None
    backbone = Backbone(config, weights, dtype)
    return Drafter(config, backbone, head, confidence, embed, logits, ids, vocabulary, calibrations)


def _capped(logits: Callable[[mx.array], mx.array], cap: float) -> Callable[[mx.array], mx.array]:
    return lambda hidden: mx.tanh(logits(hidden) / cap) * cap


def _sequential_head(
    config: DrafterConfig, matrix: Callable[[str], Matrix], vector: Callable[[str], mx.array]
) -> SequentialHead | None:
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

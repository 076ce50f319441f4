"""From a canonical folder's checked tensors to a drafter: fusing, casting, dequantising."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial, singledispatch

import mlx.core as mx

from ..calibration.by_temperature import Calibrations
from ..checkpoint.base_config import CanonicalConfig
from ..checkpoint.layout import DRAFT_IDS, Tensors, matrix_shapes, vector_shapes
from ..checkpoint.linear import Matrix, alike, arrays_of
from .base import Drafter
from .dspark.backbone import Backbone, Weights
from .dspark.drafter import DSparkDrafter
from .eagle3 import Eagle3Drafter, Eagle3Weights
from .heads import SequentialHead
from .heads.confidence import ConfidenceHead
from .heads.gated import GatedHead
from .heads.rnn import RNNHead
from .heads.vanilla import VanillaHead
from .layers import Layer
from .methods import DrafterConfig, Eagle3Config
from .vocabulary import Common, Output, Readout, Setting, choose_size

Embed = Callable[[mx.array], mx.array]


@dataclass(frozen=True)
class Stored:
    """A folder's tensors as they are computed with.

    Attributes:
        config: what they are.
        tensors: exactly the folder's, see `check_tensors`.
        dtype: of the arithmetic.
        dequantise: hold quantised matrices plain.
    """

    config: CanonicalConfig
    tensors: Tensors
    dtype: mx.Dtype
    dequantise: bool

    def matrix(self, name: str) -> Matrix:
        """A matrix by its name without `.weight`."""
        tensors, quantization = self.tensors, self.config.quantization
        quantised = quantization.of(name) if quantization else None
        stored = Matrix(tensors[f"{name}.weight"])
        if quantised is not None:
            scales, biases = tensors[f"{name}.scales"], tensors[f"{name}.biases"]
            stored = Matrix(tensors[f"{name}.weight"], scales, biases, *quantised)
        return stored.dequantised(self.dtype) if self.dequantise else stored.astype(self.dtype)

    def vector(self, name: str) -> mx.array:
        """A vector by its name."""
        return self.tensors[name].astype(self.dtype)

    def plain(self) -> dict[str, Callable[[], mx.array]]:
        """Name of every tensor of the unquantised folder to what makes it, one at a time."""
        makers: dict[str, Callable[[], mx.array]] = {}
        for name in matrix_shapes(self.config):
            makers[f"{name}.weight"] = partial(self._plain, name)
        for name in vector_shapes(self.config):
            makers[name] = partial(self.vector, name)
        return makers

    def _plain(self, name: str) -> mx.array:
        return self.matrix(name).dequantised(self.dtype).weight

    def fused(self, *names: str) -> Matrix:
        """The output rows of several matrices; plain where they are not quantised alike."""
        parts = [self.matrix(name) for name in names]
        if not alike(parts):
            parts = [part.dequantised(self.dtype) for part in parts]
        return Matrix.concatenate(parts)

    def qkv(self, layer: str) -> Matrix:
        """Query, key and value rows; no value rows where the values are the keys."""
        kinds = "qkv" if self.config.values == "projected" else "qk"
        return self.fused(*(f"{layer}.self_attn.{kind}_proj" for kind in kinds))

    def layer(self, layer: str) -> Layer:
        """The rest of a layer."""
        attention, mlp = f"{layer}.self_attn", f"{layer}.mlp"
        sandwich, scaled = self.config.sandwich_norms, self.config.layer_scalars
        after = self.vector(f"{layer}.post_attention_layernorm.weight")
        before_mlp, after_mlp = after, None
        if sandwich:
            before_mlp = self.vector(f"{layer}.pre_feedforward_layernorm.weight")
            after_mlp = self.vector(f"{layer}.post_feedforward_layernorm.weight")
        return Layer(
            input_norm=self.vector(f"{layer}.input_layernorm.weight"),
            query_norm=self.vector(f"{attention}.q_norm.weight"),
            key_norm=self.vector(f"{attention}.k_norm.weight"),
            output=self.matrix(f"{attention}.o_proj"),
            mlp_norm=before_mlp,
            gate_up=self.fused(f"{mlp}.gate_proj", f"{mlp}.up_proj"),
            down=self.matrix(f"{mlp}.down_proj"),
            attention_out_norm=after if sandwich else None,
            mlp_out_norm=after_mlp,
            scalar=self.vector(f"{layer}.layer_scalar") if scaled else None,
        )


def assemble(
    config: CanonicalConfig,
    tensors: Tensors,
    embed: Embed,
    logits: Callable[[mx.array], mx.array],
    dtype: mx.Dtype,
    dequantise: bool,
    output: Matrix | None = None,
    draft_vocabulary: Setting = "full",
    calibrations: Calibrations | None = None,
    ranking: Sequence[int] = (),
) -> Drafter:
    """A drafter from checked tensors, evaluated.

    Args:
        config: what the tensors are; its class is the drafter's method.
        tensors: exactly the folder's, see `check_tensors`.
        embed, logits: the target's; not used where the drafter owns its own.
        dtype: of the arithmetic.
        dequantise: store quantised matrices plain, where that is faster.
        output: the target's output matrix, for a draft vocabulary; None where it has none that can
            be cut.
        draft_vocabulary: see `vocabulary.choose_size`.
        calibrations: of the confidence head; None takes it as it is.
        ranking: the target's tokens, the most frequent first; empty where nobody counted.
    """
    stored = Stored(config, tensors, dtype, dequantise)
    own = [stored.matrix(n) for n in ("embed_tokens", "lm_head") if f"{n}.weight" in tensors]
    if config.owns_embedding:
        embed = own[0].rows
    if config.owns_head:
        logits = output = own[-1]
    ids = tensors[DRAFT_IDS] if config.draft_vocab_size else None
    if config.softcap:
        logits, output = _capped(logits, config.softcap), None
    mx.eval(arrays_of(own))
    # What is reduced already, or capped behind the product, is read out whole.
    size = choose_size(draft_vocabulary, config.vocab_size, len(ranking)) if ids is None else None
    cut = Common.of(output, size, ranking) if output is not None and size is not None else None
    return _drafter(config, stored, embed, Readout(logits, None, ids), cut, calibrations)


@singledispatch
def _drafter(
    config: CanonicalConfig,
    stored: Stored,
    embed: Embed,
    readout: Readout,
    cut: Common | None,
    calibrations: Calibrations | None,
) -> Drafter:
    """The drafter of a configuration's method; `readout` has no sequential head yet."""
    raise NotImplementedError(type(config))


@_drafter.register
def _(
    config: DrafterConfig,
    stored: Stored,
    embed: Embed,
    readout: Readout,
    cut: Common | None,
    calibrations: Calibrations | None,
) -> Drafter:
    names = [f"layers.{i}" for i in range(config.num_layers)]
    qkv = [stored.qkv(name) for name in names]
    if not alike(qkv):
        qkv = [part.dequantised(stored.dtype) for part in qkv]
    weights = Weights(
        fc=stored.matrix("fc"),
        context_norm=stored.vector("hidden_norm.weight"),
        qkv=Matrix.stack(qkv),
        layers=tuple(stored.layer(name) for name in names),
        norm=stored.vector("norm.weight"),
    )
    confidence = confidence_head(config, stored)
    head = sequential_head(config, stored)
    mx.eval(arrays_of([weights, head, confidence]))
    backbone = Backbone(config, weights, stored.dtype)
    output = Output(Readout(readout.logits, head, readout.ids), cut)
    return DSparkDrafter(config, backbone, confidence, embed, output, calibrations)


@_drafter.register
def _(
    config: Eagle3Config,
    stored: Stored,
    embed: Embed,
    readout: Readout,
    cut: Common | None,
    calibrations: Calibrations | None,
) -> Drafter:
    weights = Eagle3Weights(
        fc=stored.matrix("fc"),
        feature_norm=stored.vector("layers.0.hidden_norm.weight"),
        qkv=stored.qkv("layers.0"),
        layer=stored.layer("layers.0"),
        norm=stored.vector("norm.weight"),
    )
    mx.eval(arrays_of(weights))
    output = Output(readout, cut)
    return Eagle3Drafter(config, weights, stored.dtype, embed, output, calibrations)


def sequential_head(config: DrafterConfig, stored: Stored) -> SequentialHead | None:
    """The sequential head; None for a DFlash drafter."""
    if config.head == "none":
        return None
    w1, w2 = stored.matrix("markov_head.markov_w1"), stored.matrix("markov_head.markov_w2")
    if config.head == "gated":
        gate = stored.matrix("markov_head.gate_proj")
        return GatedHead(w1, w2, gate, stored.vector("markov_head.gate_proj.bias"))
    if config.head == "rnn":
        joint = stored.matrix("markov_head.joint_proj")
        return RNNHead(w1, w2, joint, stored.vector("markov_head.joint_proj.bias"))
    return VanillaHead(w1, w2)


def confidence_head(config: DrafterConfig, stored: Stored) -> ConfidenceHead | None:
    """The confidence head; None without one."""
    if config.confidence == "none":
        return None
    weight, bias = stored.matrix("confidence_head.proj"), stored.vector("confidence_head.proj.bias")
    return ConfidenceHead(weight, bias, reads_embedding=config.confidence == "hidden+markov")


def _capped(logits: Callable[[mx.array], mx.array], cap: float) -> Callable[[mx.array], mx.array]:
    return lambda hidden: capped(logits(hidden), cap)


def capped(logits: mx.array, cap: float) -> mx.array:
    """Logits under a soft cap; 0 for none."""
    return mx.tanh(logits / cap) * cap if cap else logits

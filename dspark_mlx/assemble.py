"""From a canonical folder's checked tensors to a Drafter: casting, dequantising, reading out."""

from __future__ import annotations

from collections.abc import Callable

import mlx.core as mx

from .backbone import Backbone
from .calibration import Calibration
from .config import DrafterConfig
from .drafter import Drafter
from .layout import DRAFT_IDS, Tensors
from .matrix import Matrix, arrays_of
from .parts import backbone_weights, confidence_head, sequential_head
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
    calibration: Calibration | None = None,
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
        calibration: of the confidence head; None takes it as it is.
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

    weights = backbone_weights(config, matrix, vector, dtype)
    confidence = confidence_head(config, matrix, vector)
    head = sequential_head(config, matrix, vector)
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
    return Drafter(config, backbone, head, confidence, embed, logits, ids, vocabulary, calibration)


def _capped(logits: Callable[[mx.array], mx.array], cap: float) -> Callable[[mx.array], mx.array]:
    return lambda hidden: mx.tanh(logits(hidden) / cap) * cap

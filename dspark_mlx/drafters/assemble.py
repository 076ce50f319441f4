"""From a canonical folder's checked tensors to a drafter bound to its target."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import mlx.core as mx

from ..calibration.by_temperature import Calibrations
from ..checkpoint.base_config import CanonicalConfig
from ..checkpoint.layout import DRAFT_IDS, Tensors
from ..checkpoint.linear import Matrix, arrays_of
from .base import Drafter, Embed
from .methods import METHODS
from .tensors import DrafterTensors
from .vocabulary import CommonTokens, DraftOutput, Readout, Setting, choose_size


def assemble(
    config: CanonicalConfig,
    tensors: Tensors,
    embed: Embed,
    logits: Callable[[mx.array], mx.array],
    dtype: mx.Dtype,
    dequantize: bool,
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
    stored = DrafterTensors(config, tensors, dtype, dequantize)
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
    cut = (
        CommonTokens.of(output, size, ranking) if output is not None and size is not None else None
    )
    readout = DraftOutput(Readout(logits, None, ids), cut)
    return METHODS[config.METHOD].load(config, stored, embed, readout, calibrations)


def _capped(logits: Callable[[mx.array], mx.array], cap: float) -> Callable[[mx.array], mx.array]:
    return lambda hidden: capped(logits(hidden), cap)


def capped(logits: mx.array, cap: float) -> mx.array:
    """Logits under a soft cap; 0 for none."""
    return mx.tanh(logits / cap) * cap if cap else logits

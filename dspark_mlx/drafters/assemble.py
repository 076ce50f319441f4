"""Builds a drafter from a canonical folder's checked tensors and its target's matrices."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import mlx.core as mx

from ..calibration.by_temperature import Calibrations
from ..checkpoint.base_config import DRAFT_IDS, CanonicalConfig
from ..checkpoint.layout import Tensors
from ..checkpoint.linear import Matrix, arrays_of
from .base import Drafter, Embed, SharedParts
from .methods import METHODS
from .tensors import DrafterTensors, TargetLayers
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
    target: TargetLayers | None = None,
) -> Drafter:
    """A drafter made of checked tensors; its weights are evaluated.

    Args:
        config: the drafter's configuration; its class decides the drafting method.
        tensors: all tensors of the folder and no others, see `check_tensors`; some drafters take
            theirs out of it, so that they are not in memory twice.
        embed: the target's embedding, token ids `[n]` to `[n, hidden]`; not used when the drafter
            has its own.
        logits: the target's output matrix as a function, hidden rows `[n, hidden]` to
            `[n, vocabulary]`; not used when the drafter has its own.
        dtype: type of the drafter's arithmetic.
        dequantize: True makes quantised matrices plain, for devices where those are faster.
        output: the target's output matrix, to be cut down to a draft vocabulary; None when it is
            not stored in a way that can be cut.
        draft_vocabulary: see `vocabulary.choose_size`.
        calibrations: calibrations of the confidence head; None leaves its confidences uncalibrated.
        ranking: the target's token ids, the most frequent first; empty when the frequencies are
            not known.
        target: the target's own layers; None is enough for methods that do not use them.
    """
    stored = DrafterTensors(config, tensors, dtype, dequantize, target)
    own = [stored.matrix(n) for n in ("embed_tokens", "lm_head") if f"{n}.weight" in tensors]
    if config.owns_embedding:
        embed = own[0].rows
    if config.owns_head:
        logits = output = own[-1]
    ids = tensors[DRAFT_IDS] if config.draft_vocab_size else None
    if config.softcap or config.output_multiplier != 1:
        logits, output = _scaled(logits, config), None
    mx.eval(arrays_of(own))
    # A reduced vocabulary of the checkpoint, or logits scaled or capped, are not cut further.
    size, cut = None, None
    if config.can_be_cut and output is not None:
        size = choose_size(draft_vocabulary, config.vocab_size, len(ranking))
    if size is not None and output is not None:
        cut = CommonTokens.of(output, size, ranking)
    by_id = output if ids is None else None
    readout = DraftOutput(Readout(logits, None, ids, by_id), cut)
    return METHODS[config.METHOD].load(config, stored, SharedParts(embed, readout, calibrations))


def _scaled(
    logits: Callable[[mx.array], mx.array], config: CanonicalConfig
) -> Callable[[mx.array], mx.array]:
    return lambda hidden: capped(logits(hidden) * config.output_multiplier, config.softcap)


def capped(logits: mx.array, cap: float) -> mx.array:
    """Logits with the soft cap tanh(logits / cap) * cap; unchanged where `cap` is 0."""
    return mx.tanh(logits / cap) * cap if cap else logits

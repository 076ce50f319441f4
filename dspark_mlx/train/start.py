"""What a run begins with: a new drafter, or a published one to be fitted further."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import mlx.core as mx

from ..checkpoint.fingerprint import weights_digest
from ..checkpoint.layout import DRAFT_IDS
from ..decoder import Decoder
from ..drafters.dspark.config import DSparkConfig
from ..drafters.tensors import DrafterTensors
from ..errors import InputError
from ..pairs.stored import read_drafter
from ..targets.compatibility import check_pair
from ..targets.tap import Target
from .new_drafter import DrafterDesign, first_weights, new_config
from .run import InitialDrafter
from .step.features import logit_cap, spare_token


def new_drafter(decoder: Decoder, design: DrafterDesign, seed: int) -> InitialDrafter:
    """A new drafter for the decoder's target.

    Raises:
        InputError: see `new_config`, `logit_cap` and `spare_token`.
    """
    target, folder = decoder.engine.target, decoder.target_folder
    cap = logit_cap(target, decoder.config, folder)
    mask = design.mask_token_id
    if mask is None:
        mask = spare_token(decoder.tokenizer, target)
    config = new_config(design, target, decoder.config, folder.name, mask, cap)
    return InitialDrafter(
        config, first_weights(config, seed), {"begun_from": "nothing", "seed": seed}, cap
    )


def published_drafter(decoder: Decoder, drafter: str | Path) -> InitialDrafter:
    """A drafter that is there already, its weights dequantised to float32.

    Raises:
        InputError: see `load`; or it is not one that DSpark's objective trains.
    """
    target, folder = decoder.engine.target, decoder.target_folder
    found = read_drafter(drafter)
    config, tensors = found.config, found.tensors
    if not isinstance(config, DSparkConfig):
        raise InputError(drafter, config.summary, "a DSpark or DFlash drafter")
    check_pair(config, drafter, target, folder)
    stored = DrafterTensors(config, tensors, mx.float32, dequantize=True)
    plain = {name: make() for name, make in stored.plain().items()}
    if config.draft_vocab_size:
        plain[DRAFT_IDS] = tensors[DRAFT_IDS]
    mx.eval(plain)
    cap = logit_cap(target, decoder.config, folder)
    config = dataclasses.replace(config, quantization=None, target=config.target or folder.name)
    return InitialDrafter(
        config, plain, {"begun_from": weights_digest(found.folder)}, cap, found.ranking
    )


def tapped(decoder: Decoder, config: DSparkConfig) -> Target:
    """The decoder's target, tapped as a drafter wants it."""
    return Target(decoder.engine.target.model, config.taps, decoder.target_folder)

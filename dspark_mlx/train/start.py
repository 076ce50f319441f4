"""What a run begins with: a new drafter, or a published one to be fitted further."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import mlx.core as mx

from ..checkpoint.base_config import DRAFT_IDS, CanonicalConfig
from ..checkpoint.fingerprint import weights_digest
from ..checkpoint.hub import hub_name
from ..decoder import Decoder
from ..drafters.dspark.config import DSparkConfig
from ..drafters.tensors import DrafterTensors
from ..errors import InputError
from ..pairs.stored import read_drafter
from ..targets.compatibility import check_pair
from ..targets.tap import Target
from .designs import DrafterDesign
from .new_drafter import first_weights, needs_mask, new_config
from .run import InitialDrafter
from .step.features import logit_cap, spare_token
from .step.methods import FORWARDS


def target_name(model: str | None, folder: Path) -> str:
    """What a drafter calls its target: a Hub id, or the name of the target's folder.

    Args:
        model: what the user asked for; None is the built-in target.
        folder: where it is on disk; of the Hub's, its name is a revision's hash.
    """
    return (hub_name(model) if model else "") or folder.name


def new_drafter(decoder: Decoder, design: DrafterDesign, seed: int, name: str) -> InitialDrafter:
    """A new drafter for the decoder's target.

    Args:
        decoder: loaded; its drafter is not used.
        design: what the user chose.
        seed: of the first weights.
        name: the target's, see `target_name`.

    Raises:
        InputError: see `new_config`, `logit_cap` and `spare_token`.
    """
    target, folder = decoder.engine.target, decoder.target_folder
    cap = logit_cap(target, decoder.config, folder)
    if design.mask_token_id is None and needs_mask(design):
        design = dataclasses.replace(design, mask_token_id=spare_token(decoder.tokenizer, target))
    config = new_config(design, target, decoder.config, name, cap)
    return InitialDrafter(
        config, first_weights(config, seed), {"begun_from": "nothing", "seed": seed}, cap
    )


def published_drafter(decoder: Decoder, drafter: str | Path, name: str) -> InitialDrafter:
    """A published drafter to be trained further, its weights dequantised to float32.

    Args:
        decoder: of the target, loaded.
        drafter: a folder, a GGUF file or a Hub id.
        name: the target's, see `target_name`; used where the drafter names none.

    Raises:
        InputError: see `load`; or a drafter of a method that is not trained, or one that embeds
            noise levels.
    """
    target, folder = decoder.engine.target, decoder.target_folder
    found = read_drafter(drafter, calibrated=False)  # what is trained is calibrated anew
    config, tensors = found.config, found.tensors
    noisy = isinstance(config, DSparkConfig) and config.noise_width > 0
    if config.METHOD not in FORWARDS or noisy:
        raise InputError(drafter, config.summary, f"a drafter of {', '.join(FORWARDS)}")
    check_pair(config, drafter, target, folder)
    stored = DrafterTensors(config, tensors, mx.float32, dequantize=True)
    plain = {name: make() for name, make in stored.plain().items()}
    if config.draft_vocab_size:
        plain[DRAFT_IDS] = tensors[DRAFT_IDS]
    mx.eval(plain)
    cap = logit_cap(target, decoder.config, folder)
    config = dataclasses.replace(config, quantization=None, target=config.target or name)
    return InitialDrafter(
        config, plain, {"begun_from": weights_digest(found.folder)}, cap, found.ranking
    )


def tapped(decoder: Decoder, config: CanonicalConfig) -> Target:
    """The decoder's target, tapped at the layers that a drafter reads."""
    return Target(decoder.engine.target.model, config.taps, decoder.target_folder)

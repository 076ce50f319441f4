"""vLLM's "speculators" packaging: `speculator.dspark`, `.dflash`, `.dflash2` and `.xpress`.

`transformer_layer_config` holds the backbone's keys. Tap ids are those of the layer that a hidden
state enters, one more than the layer whose output it is. A reduced vocabulary comes with its own
output matrix and with `d2t`, which holds token ids as offsets. Sliding layers are causal inside the
block unless `sliding_window_non_causal` is set, which is the default of DFlash 2 alone.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ...drafters.dflash2.config import DFlash2Config
from ...drafters.dspark.config import BlockConfig, DSparkConfig
from ...drafters.xpress.config import XPressConfig
from ...drafters.xpress.refiner import GATE, JOINT
from ...errors import InputError
from .dflash2 import own_keys
from .names import rename as rename
from .reduced import adapt as adapt
from .reduced import reduced
from .rope import read_rope
from .source import Shapes, Source, proposed
from .windows import read_windows

NAME = "vLLM speculators"
_KINDS: dict[str, type[BlockConfig]] = {
    "dspark": DSparkConfig,
    "dflash": DSparkConfig,
    "dflash2": DFlash2Config,
    "xpress": XPressConfig,
}


def matches(config: dict[str, Any], shapes: Shapes) -> bool:
    """True for this `speculators_model_type`; another packaging has the same architectures."""
    return config.get("speculators_model_type") in _KINDS


def to_drafter_config(
    config: dict[str, Any], shapes: Shapes, where: Path, *, keep_embeddings: bool
) -> BlockConfig:
    """The canonical configuration.

    Raises:
        InputError: a key is missing, or has a value that is not supported.
    """
    source = Source(config, shapes, where, NAME)
    values = source.nested("transformer_layer_config")
    if config.get("logit_scale") not in (None, 1, 1.0):
        source.refuse("logit_scale", config["logit_scale"], "1")
    backbone = source.shape_of_backbone(values)
    kind = config["speculators_model_type"]
    second = kind == "dflash2"
    causal = False if config.get("sliding_window_non_causal", second) else None
    if second and config.get("is_causal") is not None:
        causal = bool(config["is_causal"])
    interleaved = config.get("is_neox_style", values.get("is_neox_style")) is False
    vocabulary = reduced(source, backbone["vocab_size"], keep_embeddings)
    if second:
        own = own_keys(source, config, backbone["hidden_size"])
    elif kind == "xpress":
        own = {"logits_start": _logits_start(source), **_refiner(source)}
    else:
        own = {"logits_start": _logits_start(source), **source.heads()}
    return source.finish_as(
        _KINDS[kind],
        **backbone,
        **source.taps(source.need("aux_hidden_state_layer_ids"), shift=-1),
        **own,
        **vocabulary,
        **read_rope(source, values),
        **read_windows(source, values, backbone["num_layers"], causal=causal),
        rope_interleaved=interleaved,
        target_num_layers=0,
        block_size=source.need("block_size"),
        mask_token_id=source.need("mask_token_id"),
    )


def _refiner(source: Source) -> dict[str, Any]:
    """The canonical keys of XPress' refiner.

    The number of passes over the block, `num_jacobi_passes`, is not needed: see `Refiner`.

    Raises:
        InputError: a tensor is missing, a size contradicts the tensors, or the drafter is of a
            later kind, with DFlash 2's convolutions or selector.
    """
    for key, plain in (("xpress_backbone", "dflash"), ("xpress_selector", False)):
        if source.config.get(key) not in (None, plain):
            source.refuse(key, source.config[key], repr(plain))
    sizes = []
    for name in (JOINT, GATE):
        shape = source.shapes.get(f"{name}.weight", ())
        if len(shape) != 2:
            found = f"{name}.weight {list(shape)}" if shape else f"no {name}.weight"
            raise InputError(source.where, found, "a matrix of the refiner")
        sizes.append(shape[0])
    rank, size = sizes
    if (ratio := source.config.get("xpress_mlp_ratio")) is not None:
        ratio = source.whole("xpress_mlp_ratio")
        if ratio * rank != size:
            found = f"xpress_mlp_ratio {ratio} with {GATE}.weight of {size} rows"
            raise InputError(source.where, found, f"{ratio * rank} rows")
    return {
        "refiner_rank": source.stated("xpress_rank", source.config, rank),
        "refiner_size": size,
    }


def _logits_start(source: Source) -> int:
    """`logits_start`: 0 when the anchor's row gives logits, else 1.

    Early files lack the key `sample_from_anchor`, and their anchor's row gives none, unless the
    file proposes as many tokens as its block has rows.
    """
    stated = source.config.get("sample_from_anchor")
    if isinstance(stated, bool):
        return 0 if stated else 1
    return 0 if proposed(source) == source.need("block_size") else 1

"""SpecForge's and SGLang's packaging (`projector_type` "dspark"), and MiniCPM5's variant of it.

SpecForge nests its keys in `dflash_config` and repeats most of them at the top level; MiniCPM5 has
them only at the top level, under DeepSpec's architecture name. Blocks are anchor-first. The
embedding and the output matrix are not stored. Sliding layers are causal inside the block, and
their window is measured from each row.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ...drafters.dspark.config import DSparkConfig
from .names import adapt as adapt
from .names import rename as rename
from .rope import read_rope
from .source import SLIDING, Shapes, Source
from .windows import read_windows

NAME = "SpecForge / SGLang"


def matches(config: dict[str, Any], shapes: Shapes) -> bool:
    """True for the projector type "dspark", nested or not, and a drafter's tensors."""
    nested = config.get("dflash_config")
    kinds = [config.get("projector_type")]
    kinds += [nested.get("projector_type")] if isinstance(nested, dict) else []
    return "dspark" in kinds and "fc.weight" in shapes


def to_drafter_config(
    config: dict[str, Any], shapes: Shapes, where: Path, *, keep_embeddings: bool
) -> DSparkConfig:
    """The canonical configuration.

    Raises:
        InputError: a key is missing, or has a value that is not supported.
    """
    source = Source(config, shapes, where, NAME)
    values = dict(config) | source.nested("dflash_config")
    reduced = values.get("draft_vocab_size")
    if reduced is not None and reduced != values.get("vocab_size"):
        source.refuse("draft_vocab_size", reduced, "the whole vocabulary")
    backbone = source.shape_of_backbone()
    return source.finish(
        **backbone,
        **source.block(values, keep_embeddings),
        **source.heads(values),
        **read_rope(source),
        **sliding(source, values, backbone["num_layers"], by_row=True, less=1),
        logits_start=1 if values.get("sample_from_anchor") is False else 0,
    )


def sliding(
    source: Source, values: dict[str, Any], layers: int, *, by_row: bool = False, less: int = 0
) -> dict[str, Any]:
    """Windows and causality of layers, where `use_swa` and `causal` apply to all layers.

    Args:
        source: the checkpoint.
        values: the config, with its nested objects merged in.
        layers: number of layers.
        by_row, less: see `read_windows`.

    Raises:
        InputError: see `read_windows`.
    """
    if values.get("use_swa"):
        window = source.whole("swa_window_size", values)
        all_sliding = {"layer_types": [SLIDING] * layers, "sliding_window": window}
        values = values | all_sliding
    # The last name is JetSpec's, whose drafters are DFlash's otherwise.
    names = ("is_causal", "causal", "causal_head")
    causal = next((values[name] for name in names if values.get(name) is not None), None)
    return read_windows(source, values, layers, causal=causal, by_row=by_row, less=less)

"""Eagle3 drafters of EAGLE, SpecForge, AngelSlim and ModelOpt, and vLLM's `.eagle3` and `.peagle`.

Ids of taps at the top level (vLLM's and ModelOpt's) are those of the layer that a hidden state
enters; nested in `eagle_config` (SpecForge's) they are those of the layer whose output it is. Where
there are none, the taps are three layers that follow from the target's depth. `d2t` holds token ids
as offsets. SpecForge's layer is called `midlayer`. P-EAGLE's embedding is trained with the drafter.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import mlx.core as mx

from ...drafters.eagle3.config import INPUT_NORM, Eagle3Config, tap_norm
from ...drafters.peagle import MASK_FEATURE, PEagleConfig
from ...errors import InputError
from . import reduced as reduced_vocabulary
from .names import rename as rename
from .reduced import reduced
from .rope import read_rope
from .source import FULL, SLIDING, Shapes, Source, proposed

NAME = "Eagle3"
_IDS = "eagle_aux_hidden_state_layer_ids"
_ARCHITECTURES = (["LlamaForCausalLMEagle3"], ["LlamaForCausalLM"])
# Between the three and seven that published figures are for; nothing stored depends on it.
_STEPS = 5
_PARALLEL = "peagle"
_PARALLEL_STEPS = 8  # vLLM's default


def matches(config: dict[str, Any], shapes: Shapes) -> bool:
    """True for vLLM's kinds, and for Llama drafters with Eagle3's keys and tensors."""
    if config.get("speculators_model_type") in ("eagle3", _PARALLEL):
        return True
    marked = "draft_vocab_size" in config or "eagle_config" in config
    return config.get("architectures") in _ARCHITECTURES and marked and "fc.weight" in shapes


def to_drafter_config(
    config: dict[str, Any], shapes: Shapes, where: Path, *, keep_embeddings: bool
) -> Eagle3Config:
    """The canonical configuration.

    Raises:
        InputError: a key is missing, or has a value that is not supported.
    """
    source = Source(config, shapes, where, NAME)
    values = source.nested("transformer_layer_config") or dict(config)
    heads = source.whole("num_attention_heads", values)
    values["head_dim"] = values.get("head_dim") or source.whole("hidden_size", values) // heads
    backbone = source.shape_of_backbone(values)
    parallel = config.get("speculators_model_type") == _PARALLEL
    layers = backbone.pop("num_layers")
    if layers != 1 and not parallel:
        source.refuse("num_hidden_layers", layers, "1")
    nested = source.nested("eagle_config")
    if nested.get("use_aux_hidden_state") is False:
        source.refuse("use_aux_hidden_state", False, "taps of several layers")
    keys = nested | config
    taps = _taps(source, nested)
    tables = reduced(source, backbone["vocab_size"], keep_embeddings)
    if parallel or backbone["hidden_size"] != taps["target_hidden_size"]:
        # The target's table is another, or of another width.
        tables["owns_embedding"] = True
    depth = config.get("num_target_layers")
    return source.finish_as(
        PEagleConfig if parallel else Eagle3Config,
        **backbone,
        **taps,
        **tables,
        **read_rope(source, values),
        head_norms="layers.0.self_attn.q_norm.weight" in shapes,
        **(_parallel(source, values, layers) if parallel else _chain(source, values, keys)),
        tap_norms=_tap_norms(source),
        residual="normed" if keys.get("norm_before_residual") else "raw",
        target_num_layers=0 if depth is None else source.whole("num_target_layers"),
    )


def adapt(config: Mapping[str, Any], name: str, tensor: mx.array) -> mx.array:
    """`d2t` converted from offsets to token ids, P-EAGLE's learnt feature as a vector."""
    if name == MASK_FEATURE:
        return tensor.reshape(-1)
    return reduced_vocabulary.adapt(config, name, tensor)


def _taps(source: Source, nested: dict[str, Any]) -> dict[str, Any]:
    """The canonical keys of the taps.

    Raises:
        InputError: neither ids nor the target's depth are known; or see `Source.taps`.
    """
    if source.config.get(_IDS) is not None:
        return source.taps(source.config[_IDS], shift=-1)
    if nested.get(_IDS) is not None:
        return source.taps(nested[_IDS])
    if source.config.get("num_target_layers") is None:
        hint = "Say how many layers the target has: convert drafter --target-layers N."
        found = f"no {_IDS} and no num_target_layers"
        raise InputError(source.path, found, "one of them, for the layers that are tapped", hint)
    depth = source.whole("num_target_layers")
    return source.taps([2, depth // 2, depth - 3], shift=-1)


def _tap_norms(source: Source) -> str:
    """What the tensors say; the keys have had other names and defaults."""
    if tap_norm(0) in source.shapes:
        return "each"
    return "all" if INPUT_NORM in source.shapes else "none"


def _chain(source: Source, values: dict[str, Any], keys: Mapping[str, Any]) -> dict[str, Any]:
    feedback = "normed" if keys.get("norm_output") else "raw"
    steps = proposed(source) or _STEPS
    return {"window": _window(source, values), "feedback": feedback, "steps": steps}


def _parallel(source: Source, values: dict[str, Any], layers: int) -> dict[str, Any]:
    source.layer_types(layers, values)
    mask = source.need("mask_token_id")
    steps = proposed(source) or _PARALLEL_STEPS
    return {"num_layers": layers, "mask_token_id": mask, "steps": steps}


def _window(source: Source, values: dict[str, Any]) -> int:
    kinds = source.layer_types(1, values, (FULL, SLIDING))
    return source.whole("sliding_window", values) if kinds == [SLIDING] else 0

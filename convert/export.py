"""Exports a canonical drafter to DeepSpec's native packaging (`Qwen3DSparkModel`).

Other engines read this packaging. Its tensors have the canonical names, but no matrix is quantised,
and the target's embedding and head are stored as well.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.core as mx
from tqdm import tqdm

from ..calibration.by_temperature import read_calibrations
from ..checkpoint.base_config import CanonicalConfig
from ..checkpoint.layout import check_headers, check_values
from ..checkpoint.safetensors import read_tensors
from ..drafters.dspark.config import DSparkConfig
from ..drafters.methods import read_config
from ..drafters.tensors import DrafterTensors
from ..errors import InputError
from ..system.files import check_apart, read_json, write_json
from ..system.staging import staged_folder
from ..targets.compatibility import check_pair
from ..targets.tap import Target
from .packagings.deepspec_qwen3 import ARCHITECTURE
from .shards import ShardWriter

DTYPES = ("bfloat16", "float16", "float32")
# A setting of DeepSpec's trainer, which canonical folders do not have; its checkpoints all say 512.
_NUM_ANCHORS = 512
# The version whose spelling of the rotary embedding's keys is written.
_TRANSFORMERS = "5.10.2"
_INHERITED = ("max_position_embeddings", "bos_token_id", "eos_token_id", "pad_token_id")


def export_drafter(
    source: Path,
    target: Target,
    target_folder: Path,
    destination: Path,
    *,
    dtype: str = "bfloat16",
    overwrite: bool = False,
    progress: bool = True,
) -> DSparkConfig:
    """Write a drafter in DeepSpec's packaging, tensor by tensor.

    Args:
        source: canonical folder; quantised matrices are dequantised.
        target: the target, whose embedding and head are stored where the drafter has none.
        target_folder: folder of the target.
        destination: folder to make; it appears whole or not at all.
        dtype: type of every tensor, one of DTYPES.
        overwrite: whether to replace an existing folder.
        progress: whether to show a progress bar.

    Returns:
        The canonical configuration that was read.

    Raises:
        InputError: the folder is damaged, was made for another target, or has a convention that
            this packaging cannot express; nothing was written.
    """
    if dtype not in DTYPES:
        raise InputError("dtype", repr(dtype), f"one of {', '.join(DTYPES)}")
    for place in (source, target_folder):
        check_apart(place, destination)
    config = _expressible(read_config(read_json(source / "config.json"), source), source)
    check_pair(config, source, target, target_folder)
    if config.taps[-1] == target.num_layers - 1:
        raise InputError(source, f"a tap of the last layer, {config.taps[-1]}", "earlier layers")
    tensors = read_tensors(source)
    check_headers(config, tensors, source)
    values = _config_json(config, target, read_json(target_folder / "config.json"), dtype)
    calibrations = read_calibrations(source, config.gamma)
    if calibrations and config.has_confidence and 0.0 in calibrations.by_temperature:
        values["sts_temperatures"] = list(calibrations.by_temperature[0.0].temperatures)
    kind: mx.Dtype = getattr(mx, dtype)
    makers = _makers(config, DrafterTensors(config, tensors, kind, True), target, target_folder)
    with staged_folder(destination, overwrite=overwrite) as folder:
        writer = ShardWriter(folder)
        names = sorted(makers)
        for name in tqdm(names, "Exporting", unit="tensor", disable=not progress, leave=False):
            tensor = makers[name]().astype(kind)
            check_values(config, name, tensor, source)
            writer.add(name, tensor)
        writer.close()
        write_json(folder / "config.json", values)
    return config


def _expressible(config: CanonicalConfig, where: Path) -> DSparkConfig:
    """The same configuration, refused where a convention is not DeepSpec's for Qwen3 targets."""
    expected = "a drafter as DeepSpec's for Qwen3 targets"
    if not isinstance(config, DSparkConfig):
        raise InputError(where, f"method {config.METHOD!r}", expected)
    conventions = {
        "logits_start": config.logits_start == 0,
        "windows": not any(config.windows),
        "causal": not any(config.causal),
        "rope_dims": config.rope_dims in (0, config.head_dim),
        "rope_interleaved": not config.rope_interleaved,
        "rope_scaling": config.rope_scaling is None,
        "head_norms": config.head_norms,
        "noise_width": config.noise_width == 0,
        "sinks": not config.sinks,
        "gated_queries": not config.gated_queries,
        "values": config.values == "projected",
        "attention_scale": config.attention_scale in (0.0, config.head_dim**-0.5),
        "sandwich_norms": not config.sandwich_norms,
        "layer_scalars": not config.layer_scalars,
        "activation": config.activation == "silu",
        "embedding_scale": config.embedding_scale == 1.0,
        "output_multiplier": config.output_multiplier == 1.0,
        "softcap": config.softcap == 0.0,
        "draft_vocab_size": config.draft_vocab_size == 0,
        "target_hidden_size": config.target_hidden_size == config.hidden_size,
    }
    if other := [f"{n} {getattr(config, n)!r}" for n, same in conventions.items() if not same]:
        hint = "That packaging has no key for it, and other engines would draft otherwise."
        raise InputError(where, ", ".join(other), expected, hint)
    return config


def _config_json(
    config: DSparkConfig, target: Target, inherited: dict[str, Any], dtype: str
) -> dict[str, Any]:
    values: dict[str, Any] = {key: inherited[key] for key in _INHERITED if key in inherited}
    values |= {
        "architectures": [ARCHITECTURE],
        "model_type": "qwen3",
        "num_hidden_layers": config.num_layers,
        "num_target_layers": target.num_layers,
        "layer_types": ["full_attention"] * config.num_layers,
        "block_size": config.block_size,
        "mask_token_id": config.mask_token_id,
        "target_layer_ids": list(config.taps),
        "num_anchors": _NUM_ANCHORS,
        "markov_rank": config.head_rank,
        "enable_confidence_head": config.has_confidence,
        "tie_word_embeddings": False,
        "hidden_size": config.hidden_size,
        "intermediate_size": config.intermediate_size,
        "num_attention_heads": config.num_heads,
        "num_key_value_heads": config.num_kv_heads,
        "head_dim": config.head_dim,
        "hidden_act": "silu",
        "vocab_size": config.vocab_size,
        "rope_parameters": {"rope_theta": config.rope_theta, "rope_type": "default"},
        "rms_norm_eps": config.rms_norm_eps,
        "attention_bias": False,
        "sliding_window": None,
        "dtype": dtype,
        "transformers_version": _TRANSFORMERS,
    }
    if config.head != "none":
        values["markov_head_type"] = config.head
    if config.has_confidence:
        values["confidence_head_with_markov"] = config.confidence == "hidden+markov"
    if config.target:
        values["target_model_name_or_path"] = config.target
    return values


def _makers(
    config: DSparkConfig, stored: DrafterTensors, target: Target, target_folder: Path
) -> dict[str, Callable[[], mx.array]]:
    """A function for every tensor, by name, that reads it; memory then holds one at a time."""
    makers = stored.plain()
    if not config.owns_embedding:
        makers["embed_tokens.weight"] = lambda: target.embed(mx.arange(config.vocab_size))
    if not config.owns_head:
        if (head := target.head) is None:
            raise InputError(target_folder, "a head with a bias or of a kind of its own", "weights")
        makers["lm_head.weight"] = lambda: head.dequantized(stored.dtype).weight
    return makers

"""A target's Hugging Face checkpoint to an MLX folder, tensor by tensor.

mlx-lm builds the model, lazily, and quantises it; each tensor is computed when it is written, and
freed with its shard. No code of a checkpoint is ever run.
"""

from __future__ import annotations

import importlib.util
import shutil
import textwrap
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from huggingface_hub.errors import StrictDataclassError
from mlx.utils import tree_flatten, tree_map_with_path
from mlx_lm.convert import MODEL_CONVERSION_DTYPES
from mlx_lm.utils import MODEL_REMAPPING, load, quantize_model, save_config
from tqdm import tqdm

from ..checkpoint import check_tokenizer, tensor_names
from ..errors import InputError
from ..files import read_json
from ..linked_folder import readable_folder
from .gguf import check_finite
from .shards import ShardWriter

# What mlx-lm and transformers raise for checkpoints that contradict themselves.
_REFUSALS = (
    OSError,
    ValueError,
    LookupError,
    TypeError,
    AttributeError,
    RuntimeError,
    StrictDataclassError,
)


def write_checkpoint(
    source: Path, staged: Path, quantization: Mapping[str, int] | None, dtype: str | None
) -> None:
    """Write config.json, the weights and the tokenizer's files into `staged`.

    Args:
        source: the checkpoint's folder.
        staged: an existing folder.
        quantization: `group_size` and `bits`; None quantises nothing.
        dtype: see `convert_target`.

    Raises:
        InputError: the checkpoint is damaged, needs code of its own, or mlx-lm cannot load it.
    """
    config = _check_config(source)
    if quantization and "quantization" in config:
        raise InputError(source, "weights that are quantised already", "an unquantised checkpoint")
    check_tokenizer(source)
    _check_weights(source)
    try:
        _write(source, staged, quantization, dtype)
    except InputError:
        raise
    except _REFUSALS as error:
        reason = textwrap.shorten(f"{type(error).__name__}: {error}", 300, placeholder=" ...")
        found = f"a checkpoint that mlx-lm cannot convert ({reason})"
        raise InputError(source, found, "one that mlx-lm loads") from error


def _check_config(folder: Path) -> dict[str, Any]:
    """The checkpoint's config, refused when its model would need code from the checkpoint."""
    config = read_json(folder / "config.json")
    kind = str(config.get("model_type"))
    module = MODEL_REMAPPING.get(kind, kind)
    known = module.isidentifier() and importlib.util.find_spec(f"mlx_lm.models.{module}")
    if "model_file" in config or ("auto_map" in config and not known):
        found = f"a model with code of its own ({config.get('model_file', kind)})"
        raise InputError(folder, found, "a model that mlx-lm implements", "Code is never run.")
    if not known:
        raise InputError(folder, f"model_type {kind!r}", "a model that mlx-lm implements")
    return config


def _check_weights(folder: Path) -> None:
    """Refuse pickles, missing or cut-off shards, and NaN or infinity, naming the file."""
    names = tensor_names(folder)
    index = folder / "model.safetensors.index.json"
    listed = read_json(index).get("weight_map", {}) if index.exists() else {}
    if missing := sorted(listed.keys() - names.keys()):
        found = f"{len(missing)} tensors in no file, as {missing[0]}"
        raise InputError(index, found, f"{listed[missing[0]]} beside it")
    for file in dict.fromkeys(names.values()):
        arrays = mx.load(str(file))
        assert isinstance(arrays, dict)
        for name in tqdm(list(arrays), desc=f"Checking {file.name}", unit="tensor", leave=False):
            check_finite(file, name, arrays.pop(name))
            mx.clear_cache()


def _write(
    source: Path, staged: Path, quantization: Mapping[str, int] | None, dtype: str | None
) -> None:
    settings = {"trust_remote_code": False}
    with readable_folder(source) as place:
        model, tokenizer, config = load(
            str(place), tokenizer_config=settings, lazy=True, return_config=True
        )
    # As `mlx_lm.convert` chooses where nothing is asked for.
    stated = config.get("torch_dtype") or (config.get("text_config") or {}).get("dtype")
    kind = str(dtype or stated)
    if kind in MODEL_CONVERSION_DTYPES:
        _cast(model, getattr(mx, kind))
    if quantization:
        model, config = quantize_model(
            model, config, quantization["group_size"], quantization["bits"]
        )
    # Models with a vision tower need vision_config to load it again.
    tower = "vision_tower" in getattr(model, "model", {})
    weights = dict(tree_flatten(model.parameters()))
    del model
    writer = ShardWriter(staged)
    for name in tqdm(list(weights), desc="Converting", unit="array", leave=False):
        writer.add(name, weights.pop(name))
    writer.close()
    save_config(config, staged / "config.json", keep_vision_config=tower)
    tokenizer.save_pretrained(staged)
    if (generation := source / "generation_config.json").exists():
        shutil.copy(generation, staged)


def _cast(model: nn.Module, kind: mx.Dtype) -> None:
    """Cast the floating parameters, but for those that the model keeps as they are."""
    may_cast = getattr(model, "cast_predicate", lambda _: True)

    def cast(path: str, array: mx.array) -> mx.array:
        floating = mx.issubdtype(array.dtype, mx.floating)
        return array.astype(kind) if floating and may_cast(path) else array

    model.update(tree_map_with_path(cast, model.parameters()))

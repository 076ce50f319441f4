"""Converts a target's Hugging Face checkpoint to an MLX folder, tensor by tensor.

mlx-lm builds the model lazily and quantises it. Each tensor is computed when it is written, and
freed with its shard. A checkpoint's code is never run.
"""

from __future__ import annotations

import importlib.util
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten, tree_map_with_path
from mlx_lm.convert import MODEL_CONVERSION_DTYPES
from mlx_lm.utils import MODEL_REMAPPING, quantize_model, save_config
from tqdm import tqdm

from ..checkpoint.quantization import group_sizes
from ..checkpoint.safetensors import load_arrays, tensor_headers
from ..errors import InputError, one_line
from ..system.files import read_json
from ..targets.network import REFUSALS, open_network, refusal
from ..text.tokenizer import Tokenizer
from ..text.tokenizer_files import check_tokenizer
from .gguf.reader import check_finite
from .shards import ShardWriter


def write_checkpoint(
    source: Path, staged: Path, quantization: Mapping[str, int] | None, dtype: str | None
) -> None:
    """Write config.json, the weights and the tokenizer's files into `staged`.

    Args:
        source: the checkpoint's folder.
        staged: an existing folder to write into.
        quantization: `group_size` and `bits`; None quantises nothing.
        dtype: see `convert_target`.

    Raises:
        InputError: the checkpoint is damaged or needs code of its own, or mlx-lm cannot load it.
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
    except REFUSALS as error:
        raise refusal(source, error) from error


def _check_config(folder: Path) -> dict[str, Any]:
    """The checkpoint's config, refused where mlx-lm lacks the model or it needs code of its own."""
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
    for file in dict.fromkeys(header.path for header in tensor_headers(folder).values()):
        arrays = load_arrays(file)
        for name in tqdm(list(arrays), desc=f"Checking {file.name}", unit="tensor", leave=False):
            check_finite(file, name, arrays.pop(name))
            mx.clear_cache()


def _write(
    source: Path, staged: Path, quantization: Mapping[str, int] | None, dtype: str | None
) -> None:
    model, config = open_network(source)
    tokenizer = Tokenizer.load(source)
    # `mlx_lm.convert` chooses the type in the same way where the user asks for none.
    stated = config.get("torch_dtype") or (config.get("text_config") or {}).get("dtype")
    kind = str(dtype or stated)
    if kind in MODEL_CONVERSION_DTYPES:
        _cast(model, getattr(mx, kind))
    if quantization:
        model, config = _quantized(model, config, source, **quantization)
    # A model with a vision tower needs vision_config to be loaded again.
    tower = "vision_tower" in getattr(model, "model", {})
    weights = dict(tree_flatten(model.parameters()))
    del model
    writer = ShardWriter(staged)
    for name in tqdm(list(weights), desc="Converting", unit="array", leave=False):
        writer.add(name, weights.pop(name))
    writer.close()
    save_config(config, staged / "config.json", keep_vision_config=tower)
    tokenizer.wrapped.save_pretrained(staged)
    if (generation := source / "generation_config.json").exists():
        shutil.copy(generation, staged)


def _quantized(
    model: nn.Module, config: dict[str, Any], source: Path, *, group_size: int, bits: int
) -> tuple[nn.Module, dict[str, Any]]:
    """The model quantised as mlx-lm does it, with smaller groups where rows need them."""
    # Some families have none, and others None.
    may = getattr(model, "quant_predicate", None) or (lambda path, module: True)
    layers = {
        path: module
        for path, module in model.named_modules()
        if hasattr(module, "to_quantized") and may(path, module)
    }
    rows = {path: int(module.weight.shape[-1]) for path, module in layers.items()}
    groups = group_sizes(source, rows, group_size)
    say_plain(source, rows, groups)
    # mlx-lm leaves a matrix plain where its group size does not divide the rows.
    if set(groups.values()) == {group_size}:
        return quantize_model(model, config, group_size, bits)

    def choose(path: str, module: nn.Module) -> bool | dict[str, Any]:
        asked = may(path, module) if path in groups else False
        own = asked if isinstance(asked, dict) else {"bits": bits, "mode": "affine"}
        return {**own, "group_size": groups[path]} if asked else False

    smallest = min(groups.values())
    return quantize_model(model, config, smallest, bits, quant_predicate=choose)


def say_plain(source: Path, rows: Mapping[str, int], groups: Mapping[str, int]) -> None:
    """Print on standard error the matrices that stay plain because no group size divides them."""
    plain = [f"{name} (rows of {length})" for name, length in rows.items() if name not in groups]
    if plain:
        what = f"{source}: {len(plain)} of {len(rows)} matrices stay plain, as no group divides"
        tqdm.write(one_line(f"{what}: {', '.join(plain)}"), file=sys.stderr)


def _cast(model: nn.Module, kind: mx.Dtype) -> None:
    """Cast the floating parameters, except those that the model's `cast_predicate` keeps."""
    may_cast = getattr(model, "cast_predicate", lambda _: True)

    def cast(path: str, array: mx.array) -> mx.array:
        floating = mx.issubdtype(array.dtype, mx.floating)
        return array.astype(kind) if floating and may_cast(path) else array

    model.update(tree_map_with_path(cast, model.parameters()))

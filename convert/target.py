"""Convert a target model to an MLX folder: a Hugging Face checkpoint, or a GGUF file of a llama.

The folder holds config.json, model*.safetensors and the tokenizer's files, as mlx-lm reads them.
Hugging Face checkpoints go through `mlx_lm.convert`; no code of a checkpoint is ever run.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from huggingface_hub.errors import StrictDataclassError
from mlx.utils import tree_flatten
from mlx_lm.convert import MODEL_CONVERSION_DTYPES
from mlx_lm.convert import convert as mlx_lm_convert
from mlx_lm.models.llama import Model, ModelArgs
from mlx_lm.utils import (
    MODEL_REMAPPING,
    dequantize_model,
    quantize_model,
    save_config,
    save_model,
)

from ..checkpoint import check_tokenizer, tensor_names
from ..errors import InputError
from ..files import read_json, staged_folder
from ..hub import resolve
from ..quantization import GROUP_SIZES, QUANTISED_BITS
from .gguf import load_gguf
from .gguf_tokenizer import token_ids, write_tokenizer

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


def convert_target(
    source: str | Path,
    destination: str | Path,
    *,
    quantize: bool = False,
    q_bits: int = 4,
    q_group_size: int = 64,
    dtype: str | None = None,
    overwrite: bool = False,
) -> Path:
    """Convert a target model to an MLX folder, which appears whole or not at all.

    Args:
        source: a Hugging Face folder, a Hub id (owner/name), a .gguf file, or a folder with exactly
            one .gguf file and no config.json.
        destination: the folder to write.
        quantize: quantise the linear layers and the embedding. A GGUF file is dequantised first;
            without this it keeps its quantised tensors bit for bit.
        q_bits: bits a weight, with `quantize`.
        q_group_size: weights that share a scale, with `quantize`.
        dtype: "float16", "bfloat16" or "float32" for what is not packed, scales included. None
            keeps what the checkpoint has (`mlx_lm.convert` follows the config's torch_dtype). A
            GGUF file stores its norms in float32, which makes MLX compute in float32: "float16" is
            faster on a GPU. With `quantize` they follow its matrices.
        overwrite: replace an existing `destination`.

    Returns:
        `destination`.

    Raises:
        InputError: the source is missing, damaged, of a kind that cannot be converted, or needs
            code of its own; the settings are impossible; or the destination cannot be written.
    """
    if dtype not in (None, *MODEL_CONVERSION_DTYPES):
        raise InputError("dtype", repr(dtype), f"one of {', '.join(MODEL_CONVERSION_DTYPES)}")
    if quantize and (q_bits not in QUANTISED_BITS or q_group_size not in GROUP_SIZES):
        found = f"{q_bits} bits in groups of {q_group_size}"
        raise InputError("quantize", found, f"bits of {QUANTISED_BITS} and groups of {GROUP_SIZES}")
    path, destination = _resolve(source), Path(destination)
    if destination.resolve() in (path.resolve(), *path.resolve().parents):
        raise InputError(destination, "the source, or a folder around it", "another folder")
    quantization = {"group_size": q_group_size, "bits": q_bits} if quantize else None
    write = _write_gguf if path.is_file() else _write_checkpoint
    with staged_folder(destination, overwrite=overwrite) as staged:
        write(path, staged, quantization, dtype)
    return destination


def _resolve(source: str | Path) -> Path:
    """The .gguf file or the Hugging Face folder that `source` means, downloaded if need be."""
    path = resolve(source)
    if path.is_file() and path.suffix != ".gguf":
        raise InputError(path, f"a {path.suffix or 'nameless'} file", "a folder or a .gguf file")
    if path.is_file() or (path / "config.json").exists():
        return path
    files = sorted(path.glob("*.gguf"))
    if len(files) != 1:
        found = f"no config.json and {len(files)} .gguf files"
        raise InputError(path, found, "a Hugging Face checkpoint or exactly one .gguf file")
    return files[0]


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
        _check_finite(file, arrays)


def _check_finite(where: Path, arrays: Mapping[str, mx.array]) -> None:
    for name, array in arrays.items():
        if mx.issubdtype(array.dtype, mx.floating) and not mx.isfinite(array).all().item():
            raise InputError(where, f"NaN or infinity in {name}", "finite numbers")


def _write_checkpoint(
    source: Path, staged: Path, quantization: dict[str, int] | None, dtype: str | None
) -> None:
    config = _check_config(source)
    if quantization and "quantization" in config:
        raise InputError(source, "weights that are quantised already", "an unquantised checkpoint")
    check_tokenizer(source)
    _check_weights(source)
    settings: dict[str, Any] = {"trust_remote_code": False, "dtype": dtype}
    if quantization:
        settings["q_group_size"] = quantization["group_size"]
        settings["q_bits"] = quantization["bits"]
    out = staged / "mlx"  # mlx_lm.convert wants a folder that is not there
    try:
        mlx_lm_convert(str(source), str(out), quantize=bool(quantization), **settings)
    except _REFUSALS as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        found = f"a checkpoint that mlx-lm cannot convert ({reason})"
        raise InputError(source, found, "one that mlx-lm loads") from error
    for file in list(out.iterdir()):
        if file.suffix == ".py":  # mlx_lm.convert copies code along
            file.unlink()
        else:
            file.rename(staged / file.name)
    out.rmdir()


def _write_gguf(
    source: Path, staged: Path, quantization: dict[str, int] | None, dtype: str | None
) -> None:
    header, config, weights = load_gguf(source)
    config |= token_ids(header.metadata, source, config["vocab_size"])
    write_tokenizer(header.metadata, staged, source, config["vocab_size"])
    model = _llama(config, weights)
    if quantization:
        matrices = [array.dtype for array in weights.values() if array.ndim == 2]
        stored = next(kind for kind in matrices if mx.issubdtype(kind, mx.floating))
        config.pop("quantization", None)
        model.set_dtype(mx.float32)
        model, config = quantize_model(dequantize_model(model), config, **quantization)
        model.set_dtype(stored)
    if dtype:
        model.set_dtype(getattr(mx, dtype))
    if quantization or dtype:  # a smaller range may not hold every value
        _check_finite(source, tree_flatten(model.parameters(), destination={}))
    save_model(staged, model, donate_model=True)
    save_config(config, staged / "config.json")


def _llama(config: dict[str, Any], weights: dict[str, mx.array]) -> nn.Module:
    """mlx-lm's llama with these weights; layers with scales are quantised layers."""
    model = Model(ModelArgs.from_dict(config))
    if quantization := config.get("quantization"):
        usual = {key: quantization[key] for key in ("group_size", "bits", "mode")}
        nn.quantize(
            model,
            class_predicate=lambda path, _: (
                f"{path}.scales" in weights and quantization.get(path, usual)
            ),
        )
    model.load_weights(list(weights.items()), strict=True)
    return model

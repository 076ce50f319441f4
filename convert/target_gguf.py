"""Converts a target's GGUF file to an MLX folder, tensor by tensor."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

import mlx.core as mx
from mlx_lm.utils import save_config
from tqdm import tqdm

from ..checkpoint.quantization import AFFINE, group_sizes
from .gguf.reader import GgufTarget, check_finite, open_gguf, quantization_entry
from .gguf.tokenizer import token_ids, write_tokenizer
from .shards import ShardWriter
from .target_checkpoint import say_plain


def write_gguf(
    source: Path, staged: Path, quantization: Mapping[str, int] | None, dtype: str | None
) -> None:
    """Write config.json, the weights and the tokenizer's files into `staged`.

    Args:
        source: the GGUF file.
        staged: an existing folder to write into.
        quantization: `group_size` and `bits` to quantise with; None keeps the stored quantisation.
        dtype: see `convert_target`.

    Raises:
        InputError: `dtype` cannot hold a value; or see `open_gguf` and `write_tokenizer`.
    """
    target = open_gguf(source)
    metadata, size = target.header.metadata, target.config["vocab_size"]
    config = target.config | token_ids(metadata, source, size)
    write_tokenizer(metadata, staged, source, size)
    kind = getattr(mx, dtype) if dtype else None
    if quantization:
        bits, group_size = quantization["bits"], quantization["group_size"]
        groups = group_sizes(source, target.rows, group_size)
        say_plain(source, target.rows, groups)
        chosen = {path: (bits, size, AFFINE) for path, size in groups.items()}
        config |= quantization_entry(chosen)
        weights = _requantized(target, groups, bits, kind or target.matrix_type)
    else:
        weights = target.weights(decoded=kind or mx.float16)
    writer = ShardWriter(staged)
    with tqdm(total=len(target), desc=source.name, unit="tensor", leave=False) as bar:
        for name, array in weights:
            if kind and mx.issubdtype(array.dtype, mx.floating):
                array = array.astype(kind)
            if kind or quantization:  # a type of smaller range may not hold every value
                check_finite(source, name, array)
            writer.add(name, array)
            # The bar counts tensors; scales and biases are parts of one.
            bar.update(name.endswith((".weight", ".bias")))
    writer.close()
    save_config(config, staged / "config.json")


def _requantized(
    target: GgufTarget, groups: Mapping[str, int], bits: int, kind: mx.Dtype
) -> Iterator[tuple[str, mx.array]]:
    """The weights with the matrices of `groups` quantised, in float32 arithmetic."""
    for name, array in target.weights(dequantize=True):
        stem = name.removesuffix("weight")
        group_size = groups.get(stem.removesuffix("."))
        if array.ndim != 2 or group_size is None:
            yield name, array.astype(kind)
            continue
        words, scales, biases = mx.quantize(array.astype(mx.float32), group_size, bits)
        yield name, words
        yield f"{stem}scales", scales.astype(kind)
        yield f"{stem}biases", biases.astype(kind)

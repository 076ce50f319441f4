"""Reads a target's GGUF file into an mlx-lm config and mlx-lm weights, one tensor at a time."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlx.core as mx

from ...checkpoint.number_ranges import all_finite
from ...errors import InputError
from .blocks import AFFINE_BITS, GROUP_SIZE, read_affine, read_values
from .families import (
    ROPE_DIVISORS,
    Expected,
    expected_tensors,
    family_of,
    target_config,
)
from .header import Header, read_header


@dataclass(frozen=True)
class GgufTarget:
    """A checked GGUF file of a known family; no tensor is read yet.

    Attributes:
        header: header of the file.
        config: mlx-lm's config, with "quantization" where a tensor is quantised.
    """

    header: Header
    config: dict[str, Any]

    def __len__(self) -> int:
        return len(expected_tensors(self.config))

    def weights(self, *, dequantize: bool = False) -> Iterator[tuple[str, mx.array]]:
        """The name in mlx-lm and the array of every tensor; a quantised tensor has three arrays.

        Q4_0, Q4_1 and Q8_0 keep their values, in MLX's affine layout (groups of 32); F32, F16 and
        BF16 stay plain; Q2_K, Q4_K and Q6_K become float16.

        Args:
            dequantize: give all quantised tensors as float32 instead.

        Raises:
            InputError: a tensor holds NaN or infinity.
        """
        for name, goal in expected_tensors(self.config).items():
            row = self.header.tensors[name]
            stem, part = name.rsplit(".", 1)
            if row.type in AFFINE_BITS and not dequantize:
                words, scales, biases = read_affine(self.header.path, row)
                parts = {"weight": words, "scales": scales, "biases": biases}
            else:
                values = read_values(self.header.path, row)
                halved = row.type.endswith("_K") and not dequantize
                parts = {part: values.astype(mx.float16) if halved else values}
            for part, array in parts.items():
                check_finite(self.header.path, f"{stem}.{part}", array)
                placed = unpermute(array, goal.heads) if goal.heads else array
                yield f"{goal.path}.{part}", placed

    @property
    def rows(self) -> dict[str, int]:
        """Length of the rows of every matrix, by its path in mlx-lm's model."""
        goals = expected_tensors(self.config).values()
        return {goal.path: goal.shape[1] for goal in goals if len(goal.shape) == 2}

    @property
    def matrix_type(self) -> mx.Dtype:
        """Type of the embedding, or of its scales where it is quantised."""
        kind = self.header.tensors["token_embd.weight"].type
        return {"F32": mx.float32, "BF16": mx.bfloat16}.get(kind, mx.float16)


def check_finite(where: Path, name: str, array: mx.array) -> None:
    """Refuse a tensor that holds NaN or infinity.

    Raises:
        InputError: it does; the message has its name.
    """
    if not all_finite(array):
        raise InputError(where, f"NaN or infinity in {name}", "finite numbers")


def open_gguf(path: Path) -> GgufTarget:
    """The target in a GGUF file, after its header is checked.

    Raises:
        InputError: the file is damaged, its architecture is unknown, or a tensor is missing,
            unknown or of another shape.
    """
    header = read_header(path, lambda metadata, shapes: _judge(metadata, path))
    config = target_config(header)
    expected = expected_tensors(config)
    _check_table(header, expected)
    stored = {
        goal.path: (AFFINE_BITS[header.tensors[name].type], GROUP_SIZE)
        for name, goal in expected.items()
        if header.tensors[name].type in AFFINE_BITS
    }
    return GgufTarget(header, config | quantization_entry(stored))


def unpermute(rows: mx.array, heads: int) -> mx.array:
    """The rows of a llama's attn_q or attn_k in the order of mlx-lm.

    A GGUF file orders each head's rows for rotary pairs (0, 1), (2, 3), ...; mlx-lm's llama rotates
    pairs (i, i + head_dim / 2). Source: `LlamaModel.permute` in llama.cpp's convert_hf_to_gguf.py.

    Args:
        rows: a weight, its scales or biases, or a bias, `[heads * head_dim, ...]`.
        heads: number of heads in `rows`.
    """
    half = rows.shape[0] // heads // 2
    return rows.reshape(heads, half, 2, -1).swapaxes(1, 2).reshape(rows.shape)


def _judge(metadata: dict[str, Any], path: Path) -> None:
    family_of(metadata, path)


def _check_table(header: Header, expected: dict[str, Expected]) -> None:
    ignored = {ROPE_DIVISORS} if header.metadata["general.architecture"] == "llama" else set()
    found = header.tensors.keys() - ignored
    if found != expected.keys():
        missing, extra = sorted(expected.keys() - found), sorted(found - expected.keys())
        text = f"{len(extra)} unknown tensors {extra[:4]}, {len(missing)} missing {missing[:4]}"
        raise InputError(header.path, text, f"the {len(expected)} tensors of this model")
    for name, goal in expected.items():
        row = header.tensors[name]
        plain = len(goal.shape) == 1
        wrong = row.type not in ("F32", "F16", "BF16") if plain else row.type in ("I32", "I64")
        if row.shape != goal.shape or wrong:
            kind = "F32, F16 or BF16" if plain else "any floating type"
            raise InputError(header.path, f"{name} {row.type} {row.shape}", f"{kind} {goal.shape}")


def quantization_entry(chosen: dict[str, tuple[int, int]]) -> dict[str, Any]:
    """The entry "quantization" of a config: the settings of most tensors, and each that differs.

    Args:
        chosen: bits and group size of each quantised tensor, by its path in mlx-lm's model.
    """
    if not chosen:
        return {}
    usual = Counter(chosen.values()).most_common(1)[0][0]
    entries = {
        path: {"group_size": size, "bits": bits, "mode": "affine"}
        for path, (bits, size) in chosen.items()
    }
    differing = {path: entry for path, entry in entries.items() if chosen[path] != usual}
    whole = {"group_size": usual[1], "bits": usual[0], "mode": "affine"}
    return {"quantization": {**whole, **differing}}

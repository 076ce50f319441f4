"""Reads a target's GGUF file into an mlx-lm config and mlx-lm weights, one tensor at a time."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlx.core as mx

from ...checkpoint.block_floats import are_finite
from ...checkpoint.number_ranges import all_finite
from ...errors import InputError
from .families import (
    ROPE_DIVISORS,
    Expected,
    expected_tensors,
    family_of,
    target_config,
)
from .header import Header, read_header
from .matrix import SCALE, WEIGHT, GgufMatrix, matrix_factors


@dataclass(frozen=True)
class GgufTarget:
    """A checked GGUF file of a known family; no tensor is read yet.

    Attributes:
        header: header of the file.
        config: mlx-lm's config, with "quantization" where a tensor is quantised.
        factors: see `matrix_factors`.
    """

    header: Header
    config: dict[str, Any]
    factors: dict[str, float]

    def __len__(self) -> int:
        return len(expected_tensors(self.config))

    def weights(
        self, *, dequantize: bool = False, decoded: mx.Dtype = mx.float16
    ) -> Iterator[tuple[str, mx.array]]:
        """The name in mlx-lm and the array of every tensor; a quantised tensor has three arrays.

        The types of `PACKED` keep their values, packed in MLX's layout; F32, F16 and BF16 stay
        plain; Q2_K and Q6_K become values of type `decoded`.

        Args:
            dequantize: give all quantised tensors as float32 instead.
            decoded: see above; float16 rounds what float32 would hold exactly.

        Raises:
            InputError: a tensor holds NaN or infinity.
        """
        for name, goal in expected_tensors(self.config).items():
            matrix = self.matrix(name)
            stem, part = name.rsplit(".", 1)
            if matrix.bits and not dequantize:
                parts = dict(zip(("weight", "scales", "biases"), matrix.packed(), strict=False))
            else:
                values = matrix.values()
                rounded = matrix.quantized and not dequantize
                parts = {part: values.astype(decoded) if rounded else values}
            for part, array in parts.items():
                if array.dtype == mx.uint8 and not are_finite(matrix.mode, array):
                    raise _not_finite(self.header.path, f"{stem}.{part}")
                check_finite(self.header.path, f"{stem}.{part}", array)
                placed = unpermute(array, goal.heads) if goal.heads else array
                yield f"{goal.path}.{part}", placed

    def matrix(self, name: str) -> GgufMatrix:
        """A tensor by its name in the file; vectors have the same members as matrices."""
        return GgufMatrix(self.header.path, self.header.tensors[name], self.factors.get(name, 1.0))

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
        raise _not_finite(where, name)


def _not_finite(where: Path, name: str) -> InputError:
    return InputError(where, f"NaN or infinity in {name}", "finite numbers")


def open_gguf(path: Path) -> GgufTarget:
    """The target in a GGUF file, after its header is checked.

    Raises:
        InputError: the file is damaged, its architecture is unknown, or a tensor is missing,
            unknown or of another shape.
    """
    header = read_header(path, lambda metadata, shapes: _judge(metadata, path))
    config = target_config(header)
    expected = expected_tensors(config)
    factors = matrix_factors(header)
    _check_table(header, expected, factors)
    target = GgufTarget(header, config, factors)
    stored = {
        goal.path: (matrix.bits, matrix.group_size, matrix.mode)
        for name, goal in expected.items()
        if (matrix := target.matrix(name)).bits
    }
    return GgufTarget(header, config | quantization_entry(stored), factors)


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


def _check_table(
    header: Header, expected: dict[str, Expected], factors: Mapping[str, float]
) -> None:
    ignored = {name.removesuffix(WEIGHT) + SCALE for name in factors}
    if header.metadata["general.architecture"] == "llama":
        ignored.add(ROPE_DIVISORS)
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


def quantization_entry(chosen: dict[str, tuple[int, int, str]]) -> dict[str, Any]:
    """The entry "quantization" of a config: the settings of most tensors, and each that differs.

    Args:
        chosen: bits, group size and mode of each quantised tensor, by its path in mlx-lm's model.
    """
    if not chosen:
        return {}
    usual = Counter(chosen.values()).most_common(1)[0][0]
    differing = {path: _entry(form) for path, form in chosen.items() if form != usual}
    return {"quantization": {**_entry(usual), **differing}}


def _entry(form: tuple[int, int, str]) -> dict[str, Any]:
    bits, group_size, mode = form
    return {"group_size": group_size, "bits": bits, "mode": mode}

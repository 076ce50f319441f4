"""Reads a release's matrices one at a time, in the forms of the new folder."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import mlx.core as mx

from ...checkpoint.block_floats import are_finite, is_fp4, repacked
from ...checkpoint.number_ranges import all_finite
from ...checkpoint.quantization import AFFINE
from ...deepseek_v4.weights import HASH_TABLE, wrong_experts
from ...errors import InputError
from ..mlx_quantized import MlxMatrix
from .forms import Form
from .plan import Output, scale_of

_TYPES = {"BF16": mx.bfloat16, "F16": mx.float16, "F32": mx.float32}
_NAN_CODE = 127


def pieces_of(
    output: Output, tensors: dict[str, mx.array], where: Path, experts: int
) -> Iterator[tuple[str, mx.array]]:
    """Names of an output's parts with their numbers, a source after the other.

    Args:
        output: what to make.
        tensors: the release's, loaded lazily; those that are read are taken out.
        where: the release's folder, for errors.
        experts: routed experts of a layer of the target.

    Raises:
        InputError: a number is NaN or infinite, or does not fit in the type that was asked for; or
            a token's expert is none.
    """
    for name in output.sources:
        weight = tensors.pop(name)
        if name.endswith(HASH_TABLE) and (found := wrong_experts(weight, experts)):
            raise InputError(f"{where}: {name}", found, f"experts 0 to {experts - 1}")
        if output.stored is None and output.form is None:
            made: tuple[mx.array, ...] = (_typed(weight, output.dtype),)
        elif output.stored is None:
            made = _quantized(weight, output)
        else:
            made = _of_codes(weight, tensors.pop(scale_of(name)), output, f"{where}: {name}")
        for part, array in zip(output.parts, made, strict=True):
            mx.eval(array)
            if not all_finite(array):
                raise InputError(f"{where}: {name}", "NaN or infinity", "finite numbers")
            yield part, array


def _of_codes(
    weight: mx.array, scale: mx.array, output: Output, where: str
) -> tuple[mx.array, ...]:
    """The parts made of an FP8 or FP4 matrix."""
    form = output.stored
    assert form is not None
    codes = is_fp4(weight) or not ((weight & _NAN_CODE) == _NAN_CODE).any().item()
    if not codes or not are_finite(form.mode, scale):
        raise InputError(where, "NaN or infinity", "finite numbers")
    parts = repacked(weight, scale)
    if form == output.form:
        return parts
    values = MlxMatrix(parts, output.columns, form.mode, form.bits, form.group_size).values()
    return (_typed(values, output.dtype),) if output.form is None else _quantized(values, output)


def _quantized(values: mx.array, output: Output) -> tuple[mx.array, ...]:
    form: Form | None = output.form
    assert form is not None and form.mode == AFFINE
    words, *rest = mx.quantize(values, group_size=form.group_size, bits=form.bits)
    return (words, *(_typed(part, output.dtype) for part in rest))


def _typed(array: mx.array, dtype: str) -> mx.array:
    return array.astype(_TYPES[dtype]) if dtype in _TYPES else array

"""The type that weights are held in: as stored, or dequantised where that is faster."""

from __future__ import annotations

import mlx.core as mx
import mlx.nn as nn
from mlx_lm.utils import dequantize_model

from ..errors import InputError

NAMES = ("auto", "stored", "float32", "bfloat16", "float16")


def choose_precision(name: str) -> str:
    """The precision to hold weights in: "stored", or the name of the type to dequantise to.

    "auto" is float32 on MLX's CPU backend, where quantised and bfloat16 products are many times
    slower than float32 ones, and "stored" on a GPU, where decoding is bound by reading weights.

    Raises:
        InputError: `name` is not one of NAMES.
    """
    if name not in NAMES:
        raise InputError("precision", repr(name), f"one of {', '.join(NAMES)}")
    if name == "auto":
        return "float32" if mx.default_device().type == mx.DeviceType.cpu else "stored"
    return name


def held_dtype(precision: str) -> mx.Dtype | None:
    """The type to dequantise to; None for "stored".

    Args:
        precision: as `choose_precision` returns it.
    """
    return None if precision == "stored" else getattr(mx, precision)


def apply_precision(model: nn.Module, dtype: mx.Dtype | None) -> None:
    """Convert a lazily loaded model's weights to `dtype`; None leaves them as stored.

    No weight is read here; the conversion takes place when the model is evaluated.
    """
    if dtype is not None:
        # Scales are cast first, so that weights are rebuilt in float32 arithmetic.
        model.set_dtype(mx.float32)
        dequantize_model(model)
        model.set_dtype(dtype)

"""Which BLAS library computes MLX's float32 products on a CPU, and what to do about a slow one.

MLX's wheel for Linux brings the reference BLAS, in which a product of eight rows costs eight times
one row, so that speculation cannot pay. MLX on a Mac uses Accelerate.
"""

from __future__ import annotations

import ctypes
import sys
from ctypes.util import find_library
from typing import Any

import mlx.core as mx

_OPTIMIZED = ("openblas_get_config", "MKL_Get_Version", "bli_info_get_version_str", "ATL_buildinfo")


class _Origin(ctypes.Structure):
    """`Dl_info` of dladdr(3)."""

    _fields_ = (
        ("file", ctypes.c_char_p),
        ("base", ctypes.c_void_p),
        ("symbol", ctypes.c_char_p),
        ("address", ctypes.c_void_p),
    )


def advice(precision: str) -> str | None:
    """One line for the user where float32 products are needlessly slow here; None elsewhere.

    Args:
        precision: how weights are held, see `choose_precision`; other types do not use BLAS.
    """
    on_cpu = mx.default_device().type == mx.DeviceType.cpu
    if sys.platform != "linux" or not on_cpu or precision != "float32" or not is_reference_blas():
        return None
    library, install = find_library("openblas"), ""
    if library is None:
        library, install = "libopenblas.so.0", "sudo apt-get install libopenblas0-pthread && "
    return (
        "MLX computes with an unoptimised BLAS library here, with which drafts do not pay. "
        f"Several times faster: {install}export LD_PRELOAD={library}"
    )


def is_reference_blas() -> bool:
    """Whether MLX's products come from a BLAS library that is none of the optimised ones.

    The dynamic linker is asked, nothing is timed: where the function that MLX calls lies, and
    whether its library (or one that it is made of) has the mark of an optimised one.
    """
    product = _symbol(None, "cblas_sgemm") or _symbol(mx.__file__, "cblas_sgemm")
    if product is None:
        return False
    origin = _Origin()
    found = ctypes.CDLL(None).dladdr(ctypes.cast(product, ctypes.c_void_p), ctypes.byref(origin))
    if not found or not origin.file:
        return False
    library = origin.file.decode(sys.getfilesystemencoding(), "surrogateescape")
    return not any(_symbol(library, mark) for mark in _OPTIMIZED)


def _symbol(library: str | None, name: str) -> Any:
    """A function of a loaded library or of what it links to; None: of the whole program."""
    return getattr(ctypes.CDLL(library), name, None)

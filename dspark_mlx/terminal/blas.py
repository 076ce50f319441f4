"""Finds out whether MLX uses a slow BLAS library on a CPU, and advises the user.

MLX's wheel for Linux comes with the reference BLAS, in which a product of eight rows costs eight
times one row, so that speculation saves no time. MLX on a Mac uses Accelerate.
"""

from __future__ import annotations

import ctypes
import sys
from ctypes.util import find_library
from typing import Any

import mlx.core as mx

_OPTIMIZED = ("openblas_get_config", "MKL_Get_Version", "bli_info_get_version_str", "ATL_buildinfo")


class _SymbolInfo(ctypes.Structure):
    """The structure `Dl_info` of dladdr(3)."""

    _fields_ = (
        ("file", ctypes.c_char_p),
        ("base", ctypes.c_void_p),
        ("symbol", ctypes.c_char_p),
        ("address", ctypes.c_void_p),
    )


def advice(precision: str) -> str | None:
    """One line of advice where float32 products are needlessly slow; None elsewhere.

    Args:
        precision: the precision of the weights, see `choose_precision`; only float32 uses BLAS.
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
    """Whether MLX's products come from a BLAS library that is not optimised.

    Nothing is timed. The dynamic linker says which library has the function that MLX calls, and
    whether that library, or one that it links to, has a symbol of an optimised BLAS.
    """
    library = blas_library()
    return library is not None and not any(_symbol(library, mark) for mark in _OPTIMIZED)


def blas_library() -> str | None:
    """Path of the library that computes MLX's products; None where MLX calls none that is known."""
    product = _symbol(None, "cblas_sgemm") or _symbol(mx.__file__, "cblas_sgemm")
    if product is None:
        return None
    info = _SymbolInfo()
    found = ctypes.CDLL(None).dladdr(ctypes.cast(product, ctypes.c_void_p), ctypes.byref(info))
    if not found or not info.file:
        return None
    return info.file.decode(sys.getfilesystemencoding(), "surrogateescape")


def _symbol(library: str | None, name: str) -> Any:
    """A function of a library or of those it links to; for None, of the whole program."""
    return getattr(ctypes.CDLL(library), name, None)

"""Kernels of this package's own for products of few rows, and the guard that proves each first.

`KERNELS` names them. A kernel runs only where `guard` has found, on the user's own device and the
model's own weights, that it is right and quicker than MLX's operation.
"""

from __future__ import annotations

from .attention import AttentionKernel
from .base import Kernel, Product
from .cuda import few_rows
from .cuda.few_rows_attention import FewRowsAttention
from .metal import rows, tiles

_ALL: tuple[Kernel, ...] = (*few_rows.KERNELS, *rows.KERNELS, *tiles.KERNELS)
KERNELS: dict[str, Kernel] = {kernel.name: kernel for kernel in _ALL}
"""Every kernel, by its name."""

_ATTENTIONS: tuple[AttentionKernel, ...] = (FewRowsAttention(),)
ATTENTIONS: dict[str, AttentionKernel] = {kernel.name: kernel for kernel in _ATTENTIONS}
"""Every kernel of attention, by its name."""

__all__ = ["ATTENTIONS", "KERNELS", "AttentionKernel", "Kernel", "Product"]

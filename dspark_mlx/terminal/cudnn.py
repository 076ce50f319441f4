"""Advises the user of MLX's CUDA backend, whose attention is planned anew for every length.

MLX hands attention over several rows to cuDNN, which builds a plan for each number of keys that it
has not seen. Measured on an H100 with MLX 0.32.4: 80 ms, where the round takes 13.
"""

from __future__ import annotations

import os

import mlx.core as mx

SWITCH = "MLX_CUDA_USE_CUDNN_SDPA"
"""MLX's own environment variable; 0 makes it use its own attention."""


def advice() -> str | None:
    """One line of advice on MLX's CUDA backend; None elsewhere, and where the user has chosen."""
    on_gpu = mx.default_device().type == mx.DeviceType.gpu
    if not (on_gpu and mx.cuda.is_available()) or SWITCH in os.environ:
        return None
    return (
        "MLX plans attention anew for every new length here, which takes longer than drafts save. "
        f"Several times faster: export {SWITCH}=0"
    )

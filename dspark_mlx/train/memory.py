"""Whether a training run fits into memory, before it begins."""

from __future__ import annotations

import os
from collections.abc import Mapping

import mlx.core as mx

from ..errors import InputError
from .settings import TrainingSettings
from .step.forward import FROZEN

_COPIES = 5
"""Float32 arrays a weight: itself, its gradient, two moments, and the step's copy of it."""
_PASSES = 6
"""Float32 arrays of a chunk of logits that exist at once."""


def needed_bytes(
    tensors: Mapping[str, mx.array], settings: TrainingSettings, vocabulary: int
) -> int:
    """A lower bound of what a run takes beside the target: weights, optimiser, a chunk of logits.

    Args:
        tensors: of the drafter, by name.
        settings: of the run.
        vocabulary: of the target.
    """
    learnt = sum(value.size for name, value in tensors.items() if name not in FROZEN)
    return 4 * (_COPIES * learnt + _PASSES * settings.rows(vocabulary) * vocabulary)


def check_memory(
    tensors: Mapping[str, mx.array], settings: TrainingSettings, vocabulary: int
) -> None:
    """Refuse a run that cannot fit beside what is in memory already.

    Raises:
        InputError: it names the bytes needed and those there are.
    """
    needed = needed_bytes(tensors, settings, vocabulary)
    free = total_memory() - mx.get_active_memory()
    if needed > free:
        hint = "Take fewer --layers, a smaller --rank, or fewer --chunk-rows."
        found = f"{free / 1e9:.1f} GB of memory beside the target"
        raise InputError("training", found, f"at least {needed / 1e9:.1f} GB", hint)


def total_memory() -> int:
    """Bytes of the device's memory."""
    info = mx.device_info()
    size = info.get("memory_size") or info.get("total_memory")
    return int(size) if size else os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")

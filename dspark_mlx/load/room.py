"""Refuses weights that the device's memory cannot hold, before they are read."""

from __future__ import annotations

from pathlib import Path

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten

from ..errors import InputError, shown_bytes
from ..system.memory import device_memory


def check_room(network: nn.Module, folder: Path, drafter: int = 0) -> None:
    """Refuse a target whose weights, with its drafter's, need more memory than is free.

    A machine that swaps would take seconds for what it should take milliseconds for, and would
    refuse every request: see `serving.admission`.

    Args:
        network: the target, whose weights are not read yet.
        folder: names it in errors.
        drafter: bytes of the drafter's stored tensors.

    Raises:
        InputError: both numbers are in it.
    """
    target = sum(array.nbytes for _, array in tree_flatten(network.parameters()))
    memory = device_memory()
    # What of the drafter was read for its checks is not free any more.
    unread = max(drafter - mx.get_active_memory(), 0)
    if target + unread <= memory.free:
        return
    found = f"weights of {shown_bytes(target)}"
    if drafter:
        found += f" and a drafter of {shown_bytes(drafter)}"
    expected = f"at most {shown_bytes(max(memory.free, 0))}, which is free of {memory.name}"
    hint = "Convert it to fewer bits (`convert target`), or load it on a larger machine."
    raise InputError(folder, found, expected, hint)

"""Puts kernels of this package's own into a target, where its guard has proven them here."""

from __future__ import annotations

import platform
from collections.abc import Callable

import mlx.core as mx
import numpy as np

from ..checkpoint.fingerprint import device_name
from ..kernels import ATTENTIONS, KERNELS
from ..kernels.decision import Decision
from ..kernels.guard import Guard, backend_here
from ..kernels.store import VerdictStore, Where, stored_path
from ..progress import progress_bar
from ..targets.tap import Target


def apply_kernels(target: Target, most_rows: int) -> Decision | None:
    """Put the kernels that win here into a target's modules, until it drops them.

    What earlier runs found is used; the rest is raced now, which takes seconds.

    Args:
        target: the target, which has no kernels yet.
        most_rows: rows of the widest forward to serve; 16 at most.

    Returns:
        What was found; None where the device has no backend that kernels are for.
    """
    backend = backend_here()
    if backend is None:
        return None
    kernels = [kernel for kernel in KERNELS.values() if kernel.backend == backend]
    attentions = [kernel for kernel in ATTENTIONS.values() if kernel.backend == backend]
    with (
        progress_bar("Racing kernels, some seconds", "product", delay=1.0) as progress,
        target.turns,
        target.untapped(),
    ):
        store = VerdictStore(stored_path())
        guard = Guard(
            target.model,
            _forward_of(target),
            kernels,
            here(),
            store,
            progress=progress,
            attentions=attentions,
        )
        decision = guard.decide(most_rows)
    target.use_kernels(decision)
    return decision


def here() -> Where:
    """The device, its system and MLX's version."""
    system = f"{platform.system()} {platform.mac_ver()[0] or platform.release()}"
    return Where(device_name(), system, mx.__version__)  # type: ignore[attr-defined]


def _forward_of(target: Target) -> Callable[[int], mx.array]:
    ids = np.random.default_rng(0).integers(0, target.vocab_size, 16).astype(np.int32)

    def forward(rows: int) -> mx.array:
        logits: mx.array = target.model(mx.array(ids[None, :rows]), cache=target.new_caches())
        return logits

    return forward

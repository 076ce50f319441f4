"""How many bytes of prompts are kept: what is asked for, or a part of the machine's free memory."""

from __future__ import annotations

import os
from pathlib import Path

import mlx.core as mx

from ..numbers import check_whole

_SHARE = 4
_MEMINFO = Path("/proc/meminfo")


def budget(asked: int | None) -> int:
    """Bytes of prompts that are kept at most; 0 for none.

    Args:
        asked: a number of bytes; None for a quarter of `free_memory` now.

    Raises:
        InputError: `asked` is no whole number, or negative.
    """
    if asked is None:
        return max(free_memory(), 0) // _SHARE
    return check_whole("prompt_cache_bytes", asked, 0, 1 << 62)


def free_memory() -> int:
    """Bytes that MLX may still take: of a Mac's recommended working set, of a GPU's memory, or of
    the machine's."""
    info = mx.device_info() if mx.default_device().type != mx.DeviceType.cpu else {}
    working_set = info.get("max_recommended_working_set_size") or info.get("total_memory")
    if working_set:
        return int(working_set) - mx.get_active_memory()
    if _MEMINFO.exists():
        for line in _MEMINFO.read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return 1024 * int(line.split()[1])
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") - mx.get_active_memory()

"""How many bytes of prompts are kept: what is asked for, or a part of the machine's free memory."""

from __future__ import annotations

from ..numbers import check_whole
from ..system.memory import device_memory

_SHARE = 4


def budget(asked: int | None) -> int:
    """Bytes of prompts that are kept at most; 0 for none.

    Args:
        asked: a number of bytes; None for a quarter of what is free now.

    Raises:
        InputError: `asked` is no whole number, or negative.
    """
    if asked is None:
        return max(device_memory().free, 0) // _SHARE
    return check_whole("prompt_cache_bytes", asked, 0, 1 << 62)

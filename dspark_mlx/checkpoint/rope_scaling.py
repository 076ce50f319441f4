"""The scalings of rotary embeddings that drafters may have, and the ranges of their numbers."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..errors import InputError
from .number_ranges import check_within

# Lowest and highest value of each number of a YaRN scaling.
_YARN = {
    "factor": (2.0**-20, 2.0**20),
    "original_max_position_embeddings": (1.0, 2.0**40),
    "beta_fast": (2.0**-20, 2.0**20),
    "beta_slow": (2.0**-20, 2.0**20),
    "mscale": (0.0, 2.0**10),
    "mscale_all_dim": (0.0, 2.0**10),
}
_PARTIAL = {"partial_rotary_factor": (2.0**-20, 1.0)}
_NEEDED = {*_PARTIAL, "factor", "original_max_position_embeddings"}
_LLAMA3 = {
    "factor": (2.0**-20, 2.0**20),
    "original_max_position_embeddings": (1.0, 2.0**40),
    "low_freq_factor": (2.0**-20, 2.0**20),
    "high_freq_factor": (2.0**-20, 2.0**20),
}
ROPE_NUMBERS = {"yarn": _YARN, "proportional": _PARTIAL, "llama3": _LLAMA3}
"""By `rope_type`: each number's lowest and highest value."""


def check_rope_scaling(where: Path | str, scaling: Mapping[str, Any]) -> None:
    """Refuse a scaling that is not known, or whose numbers are not all there and in range.

    Args:
        where: names the file in errors.
        scaling: see `CanonicalConfig.rope_scaling`.

    Raises:
        InputError: it is such a scaling.
    """
    kind = scaling.get("rope_type")
    ranges = ROPE_NUMBERS.get(kind) if isinstance(kind, str) else None
    if ranges is None:
        raise InputError(where, f"rope_scaling {kind!r}", f"one of {', '.join(ROPE_NUMBERS)}")
    found = scaling.keys() - {"rope_type"}
    if found - ranges.keys() or (_NEEDED & ranges.keys()) - found:
        needed = [name for name in ranges if name in _NEEDED]
        optional = [name for name in ranges if name not in _NEEDED]
        expected = ", ".join(needed)
        expected += f", and optionally {', '.join(optional)}" if optional else ""
        raise InputError(where, f"rope_scaling of {', '.join(sorted(found))}", expected)
    for name in found:
        check_within(where, f"rope_scaling {name}", scaling[name], *ranges[name])

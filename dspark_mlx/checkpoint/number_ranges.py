"""Checks that refuse unusable numbers: NaN, infinity, and values outside a range."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import mlx.core as mx

from ..errors import InputError

LARGEST = 3.4028234663852886e38
"""The largest number that float32 holds."""
_RANGES = (
    (re.compile(r"(.*\.)?\w*norm_eps(ilon)?"), 0.0, 1.0),
    (re.compile(r"(.*\.)?rope_theta"), 1.0, LARGEST),
    (re.compile(r"(.*\.)?rope_\w+\.(.*\.)?factor"), 2.0**-20, 2.0**20),
    (re.compile(r"(.*\.)?original_max_position_embeddings"), 1.0, 2.0**40),
)
_DEEPEST = 50  # levels of nested objects and lists; published configs have four
# Keys that published configs give an infinite value, to say that there is no limit.
_UNLIMITED = re.compile(r"time_step_limit|model_max_length")


def check_within(where: Path | str, name: str, value: object, low: float, high: float) -> None:
    """Refuse a value that is not a number from `low` to `high`; NaN is refused too.

    Raises:
        InputError: `value` is not such a number.
    """
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if not number or not low <= value <= high:  # type: ignore[operator]
        raise InputError(where, f"{name} {value!r}", f"a number from {low:g} to {high:g}")


def all_finite(array: mx.array) -> bool:
    """Whether a tensor holds neither NaN nor infinity; True for integers."""
    if not mx.issubdtype(array.dtype, mx.floating):
        return True
    # A finite sum has finite parts, and summing is much faster than looking at each value. A sum
    # can be infinite because it is too large for its type, so then every value is looked at.
    return bool(mx.isfinite(array.sum()).item()) or bool(mx.isfinite(array).all().item())


def check_numbers(where: Path | str, config: Mapping[str, Any]) -> None:
    """Refuse a config that holds NaN, infinity or a number too large for float32, at any level.

    Raises:
        InputError: there is such a number; the first one is named by its key.
    """
    for name, value in _numbers("", config, where):
        if not -LARGEST <= value <= LARGEST and not _UNLIMITED.match(name):
            raise InputError(where, f"{name} {value}", "a finite number that float32 holds")
        for pattern, low, high in _RANGES:
            if pattern.fullmatch(name):
                check_within(where, name, value, low, high)


def _numbers(
    name: str, value: object, where: Path | str, depth: int = 0
) -> Iterator[tuple[str, int | float]]:
    """Every number inside nested objects and lists, with its keys joined by dots."""
    if depth > _DEEPEST:
        raise InputError(where, f"{name:.60}... in {depth} objects", f"{_DEEPEST} at most")
    if isinstance(value, Mapping):
        if set(value) == {"__float__"}:  # how transformers writes NaN and infinity in JSON
            yield name, _tagged(value["__float__"])
        for key, inner in value.items():
            yield from _numbers(f"{name}.{key}".lstrip("."), inner, where, depth + 1)
    elif isinstance(value, list):
        for inner in value:
            yield from _numbers(name, inner, where, depth + 1)
    elif isinstance(value, int | float) and not isinstance(value, bool):
        yield name, value


def _tagged(text: object) -> float:
    known = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}
    return known.get(str(text), 0.0)

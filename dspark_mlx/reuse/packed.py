"""Caches as plain data and arrays, and back: what a file of a kept prompt holds.

Nothing but numbers, names and arrays is read from a file; objects are made of the classes of this
table alone.
"""

from __future__ import annotations

from typing import Any

import mlx.core as mx

from ..caches import CACHES
from ..drafters.base import Pending
from ..drafters.context_cache import ContextCache

_CLASSES = {kind.__name__: kind for kind in (*CACHES, ContextCache, Pending)}
_PLAIN = (bool, int, float, str, type(None))


def pack(value: Any, arrays: list[mx.array]) -> Any:
    """A value as JSON data, whose arrays are appended to `arrays`.

    Raises:
        TypeError: it holds an object of another class.
    """
    if isinstance(value, mx.array):
        arrays.append(value)
        return {"array": len(arrays) - 1}
    if isinstance(value, list | tuple):
        kind = "tuple" if isinstance(value, tuple) else "list"
        return {kind: [pack(part, arrays) for part in value]}
    if isinstance(value, _PLAIN):
        return value
    name = type(value).__name__
    if _CLASSES.get(name) is not type(value):
        raise TypeError(f"{name} cannot be written")
    attributes = {key: pack(part, arrays) for key, part in vars(value).items()}
    return {"class": name, "attributes": attributes}


def unpack(data: Any, arrays: list[mx.array]) -> Any:
    """The value that `pack` made data of.

    Raises:
        KeyError, IndexError, TypeError, ValueError: `pack` made no such data.
    """
    if isinstance(data, _PLAIN):
        return data
    if "array" in data:
        return arrays[data["array"]]
    if "list" in data:
        return [unpack(part, arrays) for part in data["list"]]
    if "tuple" in data:
        return tuple(unpack(part, arrays) for part in data["tuple"])
    made: Any = object.__new__(_CLASSES[data["class"]])
    vars(made).update({key: unpack(part, arrays) for key, part in data["attributes"].items()})
    return made

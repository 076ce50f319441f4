"""Sizes that a target's config states, compared with the tensors that are there.

It happens before a model is built: one number in a config.json could otherwise fill the memory.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..errors import InputError
from .safetensors import TensorHeader

_LAYERS = ("num_hidden_layers", "num_layers", "n_layers", "n_layer")
_SIZES = re.compile(r"(num|n)_\w+|\w*(size|dim|heads|experts|rank)|d_model|dim")
# Sizes that no tensor shows: of what passes through, not of weights.
_FREE = re.compile(r"\w*(window|chunk|context|ctx|position|length|block|token)\w*")
_SMALL = 1024  # what a size may be whatever the tensors say
_PACKED = 16  # numbers in a 32-bit word at 2 bits


def check_sizes(
    where: Path | str, config: Mapping[str, Any], tensors: Mapping[str, TensorHeader]
) -> None:
    """Refuse layers and sizes of a model's config that are larger than its tensors could be.

    Raises:
        InputError: the first of them, by its key.
    """
    sides = [side for header in tensors.values() for side in header.shape]
    packed = any(header.dtype[0] in "UI" for header in tensors.values())
    longest = max([_SMALL, *sides]) * (_PACKED if packed else 1)
    for part in (config, config.get("text_config") or {}):
        for key, value in part.items():
            if type(value) is not int:
                continue
            if key in _LAYERS and not 1 <= value <= len(tensors):
                expected = f"1 to {len(tensors)}, the number of tensors"
                raise InputError(where, f"{key} {value}", expected)
            if value > longest and _SIZES.fullmatch(key) and not _FREE.fullmatch(key):
                raise InputError(where, f"{key} {value}", f"{longest} at most, as the tensors show")

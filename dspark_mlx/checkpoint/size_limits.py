"""Check of the sizes in a target's config against the shapes of its tensors.

It is made before a model is built: one wrong number in a config.json could fill the memory.
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
# Sizes of inputs and activations, which no weight's shape shows.
_UNBOUNDED = re.compile(r"\w*(window|chunk|context|ctx|position|length|block|token)\w*")
_SMALL = 1024  # a size up to this is never refused
_PACKED = 16  # numbers in a 32-bit word at 2 bits


def check_sizes(
    where: Path | str, config: Mapping[str, Any], tensors: Mapping[str, TensorHeader]
) -> None:
    """Refuse a config whose number of layers or whose sizes its tensors cannot have.

    Raises:
        InputError: a value is too large; the first one is named by its key.
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
            if value > longest and _SIZES.fullmatch(key) and not _UNBOUNDED.fullmatch(key):
                raise InputError(where, f"{key} {value}", f"{longest} at most, as the tensors show")

"""Drafting methods by name: one class each, which owns its configuration and its loading.

A new method is a file or a folder beside these and a line in `METHODS`; the checkpoint's layout,
the converters, loading and the help texts read it from there.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..checkpoint.base_config import CanonicalConfig, method_of
from ..errors import InputError
from .base import DraftingMethod
from .dspark.drafter import DSparkDrafter
from .eagle3 import Eagle3Drafter

METHODS: dict[str, type[DraftingMethod]] = {
    method.CONFIG.METHOD: method for method in (DSparkDrafter, Eagle3Drafter)
}


def read_config(data: dict[str, Any], where: Path | str) -> CanonicalConfig:
    """Read the config.json of a canonical folder strictly, by the method that it names.

    Raises:
        InputError: an unknown method, or see `CanonicalConfig.from_dict`.
    """
    name = method_of(data)
    if not isinstance(name, str) or name not in METHODS:
        raise InputError(where, f"method {name!r}", f"one of {', '.join(METHODS)}")
    return METHODS[name].CONFIG.from_dict(data, where)

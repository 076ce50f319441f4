"""Drafting methods by name; each is one class with its configuration and its loading.

To add a method, add a file or a folder beside this one and a line to `METHODS`, which the
checkpoint's layout, the converters, loading and the help texts read.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..checkpoint.base_config import CanonicalConfig, method_of
from ..errors import InputError
from .base import DraftingMethod
from .deepseek_v4.drafter import DeepseekV4Drafter
from .deepseek_v4.mtp import DeepseekV4MTPDrafter
from .dflash2.drafter import DFlash2Drafter
from .dspark.drafter import DSparkDrafter
from .dspine.drafter import DSpineDrafter
from .eagle3.drafter import Eagle3Drafter
from .gemma4_assistant.drafter import Gemma4AssistantDrafter
from .mtp.drafter import MTPDrafter
from .peagle import PEagleDrafter
from .xpress.drafter import XPressDrafter

_KINDS: tuple[type[DraftingMethod], ...] = (
    DSparkDrafter,
    DFlash2Drafter,
    DSpineDrafter,
    XPressDrafter,
    Eagle3Drafter,
    PEagleDrafter,
    MTPDrafter,
    Gemma4AssistantDrafter,
    DeepseekV4Drafter,
    DeepseekV4MTPDrafter,
)
METHODS: dict[str, type[DraftingMethod]] = {kind.CONFIG.METHOD: kind for kind in _KINDS}


def read_config(data: dict[str, Any], where: Path | str) -> CanonicalConfig:
    """The configuration in a canonical folder's config.json, by the method that it names.

    Raises:
        InputError: the method is unknown, or the values are refused by
            `CanonicalConfig.from_dict`.
    """
    name = method_of(data)
    if not isinstance(name, str) or name not in METHODS:
        raise InputError(where, f"method {name!r}", f"one of {', '.join(METHODS)}")
    return METHODS[name].CONFIG.from_dict(data, where)

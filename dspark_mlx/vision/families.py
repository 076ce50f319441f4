"""The families of targets that read images; one file a way of reading them."""

from __future__ import annotations

from .base import CausalImages
from .gemma import GemmaImages
from .qwen import QwenImages

FAMILIES: dict[str, type[CausalImages]] = {
    "gemma4": GemmaImages,
    "lfm2-vl": CausalImages,
    "lfm2_vl": CausalImages,
    "qwen3_5": QwenImages,
    "qwen3_vl": QwenImages,
}
"""By the model_type of their config.json."""

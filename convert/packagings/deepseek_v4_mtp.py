"""The plain prediction layer inside the first DeepSeek V4-Flash (`mtp.0.e_proj`)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ...checkpoint.base_config import CanonicalConfig
from ...deepseek_v4.weights import module_name
from ...drafters.deepseek_v4.mtp import DeepseekV4MTPConfig
from .deepseek_v4 import COPIES, layers_of
from .names import adapt as adapt
from .source import Shapes, Source

NAME = "DeepSeek-V4's plain prediction layer"
_PREFIX = "mtp.0."
_RENAMED = {"enorm.weight": "embedding_norm.weight", "hnorm.weight": "hidden_norm.weight"}
_OWN = ("e_proj.", "h_proj.", "norm.", "hc_head_")


def matches(config: dict[str, Any], shapes: Shapes) -> bool:
    """True for a DeepSeek V4 config, and the projection of an embedding."""
    return config.get("model_type") == "deepseek_v4" and "mtp.0.e_proj.weight" in shapes


def to_drafter_config(
    config: dict[str, Any], shapes: Shapes, where: Path, *, keep_embeddings: bool
) -> DeepseekV4MTPConfig:
    """The canonical configuration.

    Raises:
        InputError: a key is missing, or has a value that is not supported.
    """
    source = Source(config, shapes, where, NAME)
    layers = layers_of(source)
    last = layers["target_num_layers"] - 1
    return source.finish_as(DeepseekV4MTPConfig, **layers, taps=(last,), num_layers=1, steps=1)


def rename(config: CanonicalConfig, names: Sequence[str]) -> dict[str, str | None]:
    """Maps each tensor name to its canonical one; the target's own tensors to None."""
    return {name: _canonical(name) for name in names}


def _canonical(name: str) -> str | None:
    own = name.removeprefix(_PREFIX)
    if own == name or own.startswith(COPIES):
        return None
    if own in _RENAMED:
        return _RENAMED[own]
    return module_name(own if own.startswith(_OWN) else f"layers.0.{own}")

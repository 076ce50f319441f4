"""Packagings that are recognised and not supported, so that an error can name them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

from .source import Shapes

Recognises: TypeAlias = Callable[[dict[str, Any], Shapes], bool]


def _architecture(*names: str) -> Recognises:
    return lambda config, shapes: bool(set(config.get("architectures") or []) & set(names))


def _ends(*ends: str) -> Recognises:
    return lambda config, shapes: any(name.endswith(ends) for name in shapes)


REFUSED: tuple[tuple[str, Recognises], ...] = (
    ("DeepSeek-V4 embedded heads (mtp.*)", lambda config, shapes: "dspark_block_size" in config),
    ("TorchSpec MLA (K3DSparkModel)", _architecture("K3DSparkModel")),
    ("DFlash 2 (DFlash2DraftModel)", _architecture("DFlash2DraftModel")),
    (
        "vLLM speculators eagle3",
        lambda config, shapes: config.get("speculators_model_type") == "eagle3",
    ),
    ("NVIDIA Nemotron NVFP4", lambda config, shapes: "dspark_bonus_anchor" in config),
    ("NVFP4 weights", _ends("weight_scale_2")),
    ("compressed-tensors weights", _ends("weight_scale", "weight_packed")),
    ("DFlash Laguna", _architecture("DFlashLagunaForCausalLM")),
    ("Muse assistant", lambda config, shapes: "encoder.fc.weight" in shapes),
    (
        "DeepSeek plain multi-token prediction",
        lambda config, shapes: any(name.startswith("mtp.") for name in shapes),
    ),
)


def recognise(config: dict[str, Any], shapes: Shapes) -> str | None:
    """The name of the unsupported packaging that a checkpoint is of; None for none of them."""
    return next((name for name, known in REFUSED if known(config, shapes)), None)

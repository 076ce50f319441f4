"""Packagings that are recognised and not supported, so that an error can name them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

from .source import Shapes

Recognises: TypeAlias = Callable[[dict[str, Any], Shapes], bool]


def _architecture(*names: str) -> Recognises:
    def known(config: dict[str, Any], shapes: Shapes) -> bool:
        found = config.get("architectures")
        return isinstance(found, list) and any(name in found for name in names)

    return known


def _ends(*ends: str) -> Recognises:
    return lambda config, shapes: any(name.endswith(ends) for name in shapes)


def _gguf(*names: str) -> Recognises:
    return lambda config, shapes: config.get("general.architecture") in names


def _starts(*starts: str) -> Recognises:
    return lambda config, shapes: any(name.startswith(starts) for name in shapes)


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
    ("PrismML GGUF (dspark)", _gguf("dspark")),
    ("ds4 GGUF (deepseek4-dspark)", _gguf("deepseek4-dspark")),
    ("DeepSeek-V4 GGUF (deepseek4-dflash-draft)", _gguf("deepseek4-dflash-draft")),
    ("ds4 plain multi-token prediction GGUF", _gguf("deepseek4_mtp_support")),
    ("Lucebox GGUF (dflash.dspark.*)", _starts("dflash.dspark.")),
    (
        "DeepSeek-V4 GGUF of another exporter (dspark.*)",
        _starts("dspark.blk.", "dspark.main_proj", "dspark.markov_embd"),
    ),
    (
        "DeepSeek-V4 drafts in llama.cpp's GGUF (hyper-connections)",
        lambda config, shapes: bool(config.get("dflash.hyper_connection.count")),
    ),
    (
        "DFlash 2 in llama.cpp's GGUF",
        lambda config, shapes: (
            "dflash.selector_rank" in config or "dflash.conv_kernel_size" in config
        ),
    ),
    (
        "DeepSeek plain multi-token prediction",
        lambda config, shapes: any(name.startswith("mtp.") for name in shapes),
    ),
)


def recognize(config: dict[str, Any], shapes: Shapes) -> str | None:
    """The name of the unsupported packaging that a checkpoint is of; None for none of them."""
    return next((name for name, known in REFUSED if known(config, shapes)), None)

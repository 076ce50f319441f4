"""Packagings that are known but not supported, so that an error can name them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

from . import ds4
from .source import Shapes

Matches: TypeAlias = Callable[[dict[str, Any], Shapes], bool]


def _architecture(*names: str) -> Matches:
    def matches(config: dict[str, Any], shapes: Shapes) -> bool:
        found = config.get("architectures")
        return isinstance(found, list) and any(name in found for name in names)

    return matches


def _suffix(*suffixes: str) -> Matches:
    return lambda config, shapes: any(name.endswith(suffixes) for name in shapes)


def _gguf(*names: str) -> Matches:
    return lambda config, shapes: config.get("general.architecture") in names


def _prefix(*prefixes: str) -> Matches:
    return lambda config, shapes: any(name.startswith(prefixes) for name in shapes)


REFUSED: tuple[tuple[str, Matches], ...] = (
    ("TorchSpec MLA (K3DSparkModel)", _architecture("K3DSparkModel")),
    ("compressed-tensors or FP8 weights", _suffix("weight_scale", "weight_packed")),
    ("DFlash Laguna", _architecture("DFlashLagunaForCausalLM")),
    ("Muse assistant", lambda config, shapes: "encoder.fc.weight" in shapes),
    (
        "PrismML's GGUF for DeepSeek-V4 (noise_token_id)",
        lambda config, shapes: "dspark.dspark.noise_token_id" in config,
    ),
    ("DeepSeek-V4 GGUF (deepseek4-dflash-draft)", _gguf("deepseek4-dflash-draft")),
    ("ds4 plain multi-token prediction GGUF", _gguf("deepseek4_mtp_support")),
    ("Lucebox GGUF (dflash.dspark.*)", _prefix("dflash.dspark.")),
    (
        "DeepSeek-V4 GGUF of another exporter (dspark.*)",
        _prefix("dspark.blk.", "dspark.main_proj", "dspark.markov_embd"),
    ),
    (
        "DeepSeek-V4 drafts in llama.cpp's GGUF (hyper-connections)",
        lambda config, shapes: (
            bool(config.get("dflash.hyper_connection.count"))
            or any(name.startswith("output_hc_") for name in shapes)
        ),
    ),
    ("LiLiCorr in llama.cpp's GGUF", _prefix("lilicorr.")),
    (
        "DFlash Laguna in GGUF",
        lambda config, shapes: config.get("dflash.decoder_arch") == "laguna",
    ),
    (
        "DeepSeek plain multi-token prediction",
        lambda config, shapes: (
            config.get("model_type") not in ("deepseek_v4", "deepseek_v41")
            and not ds4.matches(config, shapes)
            and any(name.startswith("mtp.") for name in shapes)
        ),
    ),
)


def recognize(config: dict[str, Any], shapes: Shapes) -> str | None:
    """The name of a checkpoint's unsupported packaging; None when it is not one of these."""
    return next((name for name, matches in REFUSED if matches(config, shapes)), None)

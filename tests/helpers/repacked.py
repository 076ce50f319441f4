"""The tiny DeepSeek V4 under the names of MLX repacks, as mlx-vlm 0.7.10 writes them."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten

from dspark_mlx.checkpoint.precision import apply_precision
from dspark_mlx.system.files import write_json
from dspark_mlx.targets.network import open_network

from .deepseek_v4 import FOLDER, read

_FORM = ("group_size", "bits", "mode")


def repacked_name(name: str, prefix: str) -> str:
    """A module's tensor under the repack's name."""
    name = name.replace(".experts.", ".switch_mlp.")
    name = name.replace(".gate.bias", ".gate.e_score_correction_bias")
    name = re.sub(r"hc_(attn|ffn)\.", r"\1_hc.", name)
    name = re.sub(r"(_hc|hc_head)\.fn\.weight", r"\1.fn", name)
    name = re.sub(r"^embed\.", "embed_tokens.", name)
    return prefix + (name if name.startswith("lm_head") else f"model.{name}")


def repack(folder: Path, prefix: str, affine: bool) -> Any:
    """Write a repack; returns the network whose weights it has.

    Args:
        folder: to make.
        prefix: of all names.
        affine: whether all matrices, compressors' too, are quantized to 4 bits; else FP8 and FP4
            keep their values.
    """
    network, _ = open_network(FOLDER)
    own: dict[str, Any] = {}
    if affine:
        apply_precision(network, mx.bfloat16)
        nn.quantize(
            network,
            32,
            4,
            class_predicate=lambda path, m: hasattr(m, "to_quantized") and "hc_" not in path,
        )
    else:
        for path, module in network.named_modules():
            if hasattr(module, "mode"):
                name = repacked_name(f"{path}.weight", prefix).removesuffix(".weight")
                own[name] = {key: getattr(module, key) for key in _FORM}
    folder.mkdir()
    tensors = {repacked_name(k, prefix): v for k, v in tree_flatten(network.parameters())}
    mx.save_safetensors(str(folder / "model.safetensors"), tensors, {"format": "mlx"})
    usual = {"group_size": 32, "bits": 4, "mode": "affine"}
    write_json(folder / "config.json", read("config") | {"quantization": usual | own})
    return network

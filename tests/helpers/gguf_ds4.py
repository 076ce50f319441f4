"""The head inside the tiny DeepSeek V4 release as ds4's GGUF file."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np

from dspark_mlx.checkpoint.base_config import CanonicalConfig
from dspark_mlx.convert.drafter import read_as_canonical
from dspark_mlx.system.files import read_json
from helpers.deepseek_v4 import FOLDER
from helpers.gguf_writer import write_gguf

NAMES = {
    "attn.wq_a.weight": "attn_q_a.weight",
    "attn.wq_b.weight": "attn_q_b.weight",
    "attn.q_norm.weight": "attn_q_a_norm.weight",
    "attn.wkv.weight": "attn_kv.weight",
    "attn.kv_norm.weight": "attn_kv_a_norm.weight",
    "attn.wo_a.weight": "attn_output_a.weight",
    "attn.wo_b.weight": "attn_output_b.weight",
    "attn.attn_sink": "attn_sinks.weight",
    "ffn.gate.weight": "ffn_gate_inp.weight",
    "ffn.gate.bias": "exp_probs_b.bias",
    "ffn.shared_experts.gate_proj.weight": "ffn_gate_shexp.weight",
    "ffn.shared_experts.up_proj.weight": "ffn_up_shexp.weight",
    "ffn.shared_experts.down_proj.weight": "ffn_down_shexp.weight",
    "fc.weight": "main_proj.weight",
    "hidden_norm.weight": "main_norm.weight",
}
EXPERT = re.compile(r"(layers\.\d+)\.ffn\.experts\.(\d+)\.(w[123])\.weight")
PARTS = {"w1": "gate", "w2": "down", "w3": "up"}


def decoded() -> tuple[CanonicalConfig, dict[str, np.ndarray]]:
    """The release's head as float32 values."""
    config, tensors = read_as_canonical(FOLDER)
    values = {}
    for name, tensor in tensors.items():
        stem = name.removesuffix(".weight")
        if name.endswith((".scales", ".biases")):
            continue
        if f"{stem}.scales" in tensors:
            quantization = config.quantization
            assert quantization is not None
            form = quantization.of(stem)
            assert form is not None
            scales, mode = tensors[f"{stem}.scales"], quantization.mode_of(stem)
            bits, group = form
            tensor = mx.dequantize(tensor, scales, None, group_size=group, bits=bits, mode=mode)
        values[name] = np.array(tensor.astype(mx.float32))
    return config, values


def ds4_name(name: str, last: int) -> str:
    """ds4's name of a canonical tensor of a head with so many stages before its last one."""
    stage, own = last, name
    if name.startswith("layers."):
        _, layer, own = name.split(".", 2)
        stage = int(layer)
    elif name in ("fc.weight", "hidden_norm.weight"):
        stage = 0
    own = re.sub(r"^hc_(attn|ffn|head)\.(\w+)(\.weight)?$", r"hc_\1_\2.weight", own)
    return f"mtp.{stage}.{NAMES.get(own, own)}"


def write_ds4(folder: Path, kinds: dict[str, str] | None = None, **changes: Any) -> Path:
    """Write a ds4 file beside the release's config.json into a new folder.

    `kinds` names types by a part of a tensor's name; `changes` is metadata without its prefix,
    None leaves it out.
    """
    config, values = decoded()
    folder.mkdir()
    shutil.copy(FOLDER / "config.json", folder)
    stacks: dict[str, dict[int, np.ndarray]] = {}
    tensors: dict[str, Any] = {}
    for name, array in values.items():
        if match := EXPERT.fullmatch(name):
            stack = f"mtp.{match[1].partition('.')[2]}.ffn_{PARTS[match[3]]}_exps.weight"
            stacks.setdefault(stack, {})[int(match[2])] = array
        else:
            tensors[ds4_name(name, config.depth - 1)] = array
    for name, parts in stacks.items():
        tensors[name] = np.stack([parts[i] for i in range(len(parts))])
    release = read_json(FOLDER / "config.json")
    metadata: dict[str, Any] = {
        "general.architecture": "deepseek4-dspark",
        "dspark.block_size": release["dspark_block_size"],
        "dspark.markov_rank": release["dspark_markov_rank"],
        "dspark.noise_token_id": release["dspark_noise_token_id"],
        "dspark.target_layer_ids": release["dspark_target_layer_ids"],
        "dspark.stage_count": config.depth,
    } | {f"dspark.{key}": value for key, value in changes.items()}
    typed: dict[str, Any] = {
        name: (array, next((k for part, k in (kinds or {}).items() if part in name), "F32"))
        for name, array in tensors.items()
    }
    metadata = {key: value for key, value in metadata.items() if value is not None}
    return write_gguf(folder / "head.gguf", metadata, typed)

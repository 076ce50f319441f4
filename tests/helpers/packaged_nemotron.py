"""A tiny Nemotron drafter, plain and in NVFP4, from `shared/checkpoint-formats.md`, section 8."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file, save_file

from helpers.gguf_scalar import e2m1, e4m3
from helpers.packaged_parts import (
    BLOCK,
    HEADS,
    MASK,
    TAPS,
    VOCAB,
    WINDOW,
    Config,
    Tensors,
    backbone,
    tensors_of,
    write,
)

LAYERS, RANK = 2, 16
PACKED = ("fc", "markov_head.markov_w2", "gate_proj", "up_proj", "down_proj")
"""Ends of the names of the matrices that are NVFP4."""

NESTED: Config = {
    "mask_token_id": MASK,
    "target_layer_ids": TAPS,
    "causal": True,
    "use_swa": True,
    "swa_window_size": WINDOW,
    "attention_sink_bias": True,
}


def nemotron(folder: Path) -> None:
    """In plain float32, as the bfloat16 repacks have it."""
    config = backbone(["sliding_attention"] * LAYERS, architectures=["Qwen3DSparkModel"])
    config |= {
        "block_size": BLOCK,
        "dspark_bonus_anchor": True,
        "dflash_query_causal": True,
        "attention_sink_bias": True,
        "markov_rank": RANK,
        "dspark_markov_rank": RANK,
        "has_lm_head": False,
        "pard_token": MASK,
        "eagle_aux_hidden_state_layer_ids": [i + 1 for i in TAPS],
        "dflash_config": NESTED | {"sample_from_anchor": False},
    }
    write(folder, config, _tensors())


def _tensors() -> Tensors:
    tensors = tensors_of(51, layers=LAYERS, markov=None, confidence_width=None, embed=True)
    rng = np.random.default_rng(151)
    for name in ("w1", "w2"):
        tensors[f"markov_head.markov_{name}.weight"] = rng.normal(0, 0.5, (VOCAB, RANK))
    for i in range(LAYERS):
        tensors[f"layers.{i}.self_attn.attention_sink_bias"] = rng.normal(0.5, 1, HEADS)
    return tensors


def pack(folder: Path, factor: Callable[[int], float]) -> list[str]:
    """Make the linears of a plain folder NVFP4, in a second file beside their values.

    The values in the folder become those that the codes stand for, in float32.

    Args:
        folder: what `nemotron` wrote; afterwards its model.safetensors is NVFP4, and the values are
            in the folder `values`.
        factor: of the n-th matrix.

    Returns:
        The matrices' names.
    """
    tensors = load_file(folder / "model.safetensors")
    names = [
        n.removesuffix(".weight")
        for n in tensors
        if n.endswith(tuple(f"{x}.weight" for x in PACKED))
    ]
    stored: dict[str, tuple[str, np.ndarray]] = {}
    for name, array in tensors.items():
        stored[name] = ("F32", array)
    rng = np.random.default_rng(8)
    for i, name in enumerate(names):
        rows, columns = tensors[f"{name}.weight"].shape
        codes = rng.integers(0, 16, (rows, columns), dtype=np.uint8)
        scales = rng.integers(40, 56, (rows, columns // 16), dtype=np.uint8)  # 0.25 to 0.94
        by = np.float32(factor(i))
        stored[f"{name}.weight"] = ("U8", codes[:, ::2] | codes[:, 1::2] << 4)
        stored[f"{name}.weight_scale"] = ("F8_E4M3", scales)
        stored[f"{name}.weight_scale_2"] = ("F32", np.array(by))
        stored[f"{name}.input_scale"] = ("F32", np.array(1, np.float32))  # a leftover
        values = np.zeros((rows, columns), np.float32)
        for r in range(rows):
            for c in range(columns):
                values[r, c] = e2m1(int(codes[r, c])) * e4m3(int(scales[r, c // 16])) * by
        tensors[f"{name}.weight"] = values
    (folder / "values").mkdir()
    save_file(tensors, folder / "values" / "model.safetensors")
    (folder / "values" / "config.json").write_text((folder / "config.json").read_text())
    write_raw(folder / "model.safetensors", stored)
    return names


def write_raw(path: Path, tensors: dict[str, tuple[str, np.ndarray]]) -> None:
    """A safetensors file with types that its NumPy writer lacks."""
    header, at = {}, 0
    for name, (kind, array) in tensors.items():
        end = at + array.nbytes
        header[name] = {"dtype": kind, "shape": list(array.shape), "data_offsets": [at, end]}
        at = end
    text = json.dumps(header).encode()
    parts = [struct.pack("<Q", len(text)), text]
    path.write_bytes(
        b"".join(parts + [np.ascontiguousarray(a).tobytes() for _, a in tensors.values()])
    )

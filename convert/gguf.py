"""Read a llama-family GGUF file into an mlx-lm config and mlx-lm weights.

The tensors come from `mx.load`, which keeps Q4_0, Q4_1 and Q8_0 as they are stored. Its parser
ends the process on some types and skips others, so `read_header` checks the whole file first.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
from tqdm import tqdm

from ..errors import InputError
from .gguf_header import Header, TensorInfo, read_header

# The settings read below; any other "llama." setting is refused, not dropped.
_LLAMA_KEY = re.compile(
    r"llama\.(vocab_size|context_length|embedding_length|block_count|feed_forward_length"
    r"|attention\.(head_count|head_count_kv|key_length|value_length|layer_norm_rms_epsilon)"
    r"|rope\.(dimension_count|freq_base|scaling\.(type|factor|original_context_length|finetuned))"
    r"|expert_count|expert_used_count)"
)


def llama_config(header: Header) -> dict[str, Any]:
    """The `config.json` of mlx-lm's llama for this file, without quantization and token ids.

    Raises:
        InputError: another architecture, a missing or impossible value, or a setting that
            mlx-lm's llama cannot express (experts, partial rotary, unknown rope scaling).
    """
    where, meta = header.path, header.metadata
    if (family := meta.get("general.architecture")) != "llama":
        raise InputError(where, f"general.architecture {family!r}", "'llama'")
    for key in meta:
        if key.startswith("llama.") and not _LLAMA_KEY.fullmatch(key):
            raise InputError(where, f"the setting {key}", "settings that mlx-lm's llama has")
    if experts := meta.get("llama.expert_count", 0):
        raise InputError(where, f"{experts} experts", "a dense llama")

    heads = _count(header, "llama.attention.head_count")
    kv_heads = _count(header, "llama.attention.head_count_kv", heads)
    hidden = _count(header, "llama.embedding_length")
    head_dim = _count(header, "llama.attention.key_length", hidden // heads)
    if heads % kv_heads or head_dim % 2:
        found = f"{heads} heads, {kv_heads} key heads, {head_dim} wide"
        raise InputError(where, found, "whole groups of heads of an even width")
    for key in ("llama.attention.value_length", "llama.rope.dimension_count"):
        if (width := _count(header, key, head_dim)) != head_dim:
            raise InputError(where, f"{key} {width}", f"the head width, {head_dim}")
    if "token_embd.weight" not in header.tensors:
        raise InputError(where, "no token_embd.weight", "an embedding")
    vocab = header.tensors["token_embd.weight"].shape[0]
    if (stated := _count(header, "llama.vocab_size", vocab)) != vocab:
        raise InputError(where, f"llama.vocab_size {stated}", f"{vocab}, as token_embd.weight")
    if (layers := _count(header, "llama.block_count")) > len(header.tensors):
        raise InputError(where, f"{layers} layers", f"fewer than {len(header.tensors)} tensors")

    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": hidden,
        "num_hidden_layers": layers,
        "intermediate_size": _count(header, "llama.feed_forward_length"),
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "head_dim": head_dim,
        "rms_norm_eps": _real(header, "llama.attention.layer_norm_rms_epsilon"),
        "rope_theta": _real(header, "llama.rope.freq_base", 10000.0),
        "vocab_size": vocab,
        "max_position_embeddings": _count(header, "llama.context_length"),
        "tie_word_embeddings": "output.weight" not in header.tensors,
        "attention_bias": "blk.0.attn_q.bias" in header.tensors,
        "mlp_bias": "blk.0.ffn_up.bias" in header.tensors,
    }
    return config | _rope_scaling(header, config)


def _count(header: Header, key: str, default: int | None = None) -> int:
    value = header.metadata.get(key, default)
    if not isinstance(value, int) or isinstance(value, bool) or value <= 0:
        raise InputError(header.path, f"{key} {value!r}", "a positive whole number")
    return value


def _real(header: Header, key: str, default: float | None = None) -> float:
    value = header.metadata.get(key, default)
    if not isinstance(value, float) or not math.isfinite(value) or value <= 0:
        raise InputError(header.path, f"{key} {value!r}", "a positive number")
    return float(str(np.float32(value)))  # 1e-05, not 9.999999747e-06


def _rope_scaling(header: Header, config: dict[str, Any]) -> dict[str, Any]:
    meta, prefix = header.metadata, "llama.rope.scaling."
    kind = meta.get(prefix + "type", "none")
    if "rope_freqs.weight" in header.tensors:
        if kind != "none":
            raise InputError(header.path, f"rope_freqs and {kind} scaling", "one of the two")
        return _llama3_scaling(header, config)
    if kind == "none":
        return {}
    if kind not in ("linear", "yarn"):
        raise InputError(header.path, f"rope scaling {kind!r}", "none, linear or yarn")
    scaling: dict[str, Any] = {"rope_type": kind, "factor": _real(header, prefix + "factor")}
    if kind == "yarn":
        original = _count(header, prefix + "original_context_length")
        scaling["original_max_position_embeddings"] = original
    return {"rope_scaling": scaling}


def _llama3_scaling(header: Header, config: dict[str, Any]) -> dict[str, Any]:
    """The llama3 rope parameters that give the divisors stored in rope_freqs.weight."""
    half = config["head_dim"] // 2
    row = header.tensors["rope_freqs.weight"]
    if row.shape != (half,) or row.type != "F32":
        found = f"rope_freqs.weight {row.type} {row.shape}"
        raise InputError(header.path, found, f"F32 ({half},)")
    stored = np.fromfile(header.path, "<f4", half, offset=row.start).astype(np.float64)
    wavelength = 2 * math.pi * config["rope_theta"] ** (np.arange(half) / half)
    # The file keeps the result only. These are the values of every published Llama 3 model.
    low, high, original, factor = 1.0, 4.0, 8192, float(stored.max())
    smooth = np.clip((original / wavelength - low) / (high - low), 0.0, 1.0)
    if not np.allclose(stored, 1 / ((1 - smooth) / factor + smooth), rtol=1e-4):
        found = f"rope_freqs.weight from {stored.min():g} to {factor:g}"
        raise InputError(header.path, found, "the divisors of Llama 3's rope scaling")
    scaling = {"rope_type": "llama3", "factor": factor, "low_freq_factor": low}
    scaling |= {"high_freq_factor": high, "original_max_position_embeddings": original}
    return {"rope_scaling": scaling}


@dataclass(frozen=True)
class _Expected:
    """Where one GGUF tensor goes: its mlx-lm path, shape, and heads when its rows are permuted."""

    path: str
    shape: tuple[int, ...]
    heads: int = 0


def _expected_tensors(config: dict[str, Any]) -> dict[str, _Expected]:
    hidden, ffn, width = config["hidden_size"], config["intermediate_size"], config["head_dim"]
    heads, kv_heads = config["num_attention_heads"], config["num_key_value_heads"]
    table = {
        "token_embd.weight": _Expected("model.embed_tokens", (config["vocab_size"], hidden)),
        "output_norm.weight": _Expected("model.norm", (hidden,)),
    }
    if not config["tie_word_embeddings"]:
        table["output.weight"] = _Expected("lm_head", (config["vocab_size"], hidden))
    for layer in range(config["num_hidden_layers"]):
        gguf, mlx = f"blk.{layer}.", f"model.layers.{layer}."
        table[gguf + "attn_norm.weight"] = _Expected(mlx + "input_layernorm", (hidden,))
        table[gguf + "ffn_norm.weight"] = _Expected(mlx + "post_attention_layernorm", (hidden,))
        for name, path, out, size, permuted in (
            ("attn_q", "self_attn.q_proj", heads * width, hidden, heads),
            ("attn_k", "self_attn.k_proj", kv_heads * width, hidden, kv_heads),
            ("attn_v", "self_attn.v_proj", kv_heads * width, hidden, 0),
            ("attn_output", "self_attn.o_proj", hidden, heads * width, 0),
            ("ffn_gate", "mlp.gate_proj", ffn, hidden, 0),
            ("ffn_up", "mlp.up_proj", ffn, hidden, 0),
            ("ffn_down", "mlp.down_proj", hidden, ffn, 0),
        ):
            table[f"{gguf}{name}.weight"] = _Expected(mlx + path, (out, size), permuted)
            if config["mlp_bias" if name.startswith("ffn") else "attention_bias"]:
                table[f"{gguf}{name}.bias"] = _Expected(mlx + path, (out,), permuted)
    return table


def unpermute(rows: mx.array, heads: int) -> mx.array:
    """Undo the row order that GGUF gives attn_q and attn_k.

    The file orders each head's rows for rotary pairs (0, 1), (2, 3), ...; mlx-lm's llama rotates
    pairs (i, i + head_dim / 2). Source: `LlamaModel.permute` in llama.cpp's convert_hf_to_gguf.py.

    Args:
        rows: (heads * head_dim, ...): a weight, its scales or its biases, or a bias.
        heads: the heads in `rows`.
    """
    half = rows.shape[0] // heads // 2
    return rows.reshape(heads, half, 2, -1).swapaxes(1, 2).reshape(rows.shape)


def load_gguf(path: Path) -> tuple[Header, dict[str, Any], dict[str, mx.array]]:
    """Read a GGUF file of the llama family.

    Q4_0, Q4_1 and Q8_0 tensors stay as stored, in MLX's affine layout (groups of 32); F32, F16 and
    BF16 stay plain; Q2_K, Q4_K and Q6_K become float16.

    Returns:
        The header; mlx-lm's config, with "quantization" when a tensor is quantised; the weights
        under mlx-lm's names.

    Raises:
        InputError: the file is damaged, of another architecture or another shape, or holds a
            tensor that is missing, unknown, or not finite.
    """
    header = read_header(path)
    config = llama_config(header)
    expected = _expected_tensors(config)
    _check_table(header, expected)
    try:
        arrays = mx.load(str(path), format="gguf")
    except (RuntimeError, ValueError) as error:
        # MLX opens the file for writing too, though it only reads.
        raise InputError(path, f"a refusal by MLX ({error})", "a writable GGUF file") from error
    assert isinstance(arrays, dict)
    weights: dict[str, mx.array] = {}
    bits: dict[str, int] = {}
    for name, goal in tqdm(expected.items(), desc=path.name, unit="tensor"):
        row = header.tensors[name]
        stem, part = name.rsplit(".", 1)
        parts = {part: _bfloat16(path, row) if row.type == "BF16" else arrays.pop(name)}
        if part == "weight" and f"{stem}.scales" in arrays:  # MLX kept it quantised
            bits[goal.path] = parts[part].shape[-1] * 32 // row.shape[-1]
            parts |= {part: arrays.pop(f"{stem}.{part}") for part in ("scales", "biases")}
        for part, array in parts.items():
            if mx.issubdtype(array.dtype, mx.floating) and not mx.isfinite(array).all().item():
                raise InputError(path, f"NaN or infinity in {stem}.{part}", "finite numbers")
            rows = unpermute(array, goal.heads) if goal.heads else array
            weights[f"{goal.path}.{part}"] = rows
    return header, config | _quantization(bits), weights


def _check_table(header: Header, expected: dict[str, _Expected]) -> None:
    found = header.tensors.keys() - {"rope_freqs.weight"}
    if found != expected.keys():
        missing, extra = sorted(expected.keys() - found), sorted(found - expected.keys())
        text = f"{len(extra)} unknown tensors {extra[:4]}, {len(missing)} missing {missing[:4]}"
        raise InputError(header.path, text, f"the {len(expected)} tensors of this llama")
    for name, goal in expected.items():
        row = header.tensors[name]
        plain = len(goal.shape) == 1
        if row.shape != goal.shape or (plain and row.type not in ("F32", "F16", "BF16")):
            kind = "F32, F16 or BF16" if plain else "any type"
            raise InputError(header.path, f"{name} {row.type} {row.shape}", f"{kind} {goal.shape}")


def _bfloat16(path: Path, row: TensorInfo) -> mx.array:
    """A BF16 tensor as stored: `mx.load` would round it to float16's range."""
    raw = np.fromfile(path, "<u2", math.prod(row.shape), offset=row.start)
    return mx.array(raw.reshape(row.shape)).view(mx.bfloat16)


def _quantization(bits: dict[str, int]) -> dict[str, Any]:
    """The "quantization" entry of a config: what most tensors have, then each that differs."""
    if not bits:
        return {}
    usual = Counter(bits.values()).most_common(1)[0][0]
    settings = {path: {"group_size": 32, "bits": n, "mode": "affine"} for path, n in bits.items()}
    differing = {path: entry for path, entry in settings.items() if entry["bits"] != usual}
    return {"quantization": {"group_size": 32, "bits": usual, "mode": "affine", **differing}}

"""The families of targets that can be read from GGUF files: their mlx-lm config and their tensors.

A family's name is the prefix of its metadata ("llama.block_count") and mlx-lm's name of the model.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ...checkpoint.number_ranges import LARGEST, check_within
from ...errors import InputError
from .header import Header, shortest

_FACTOR = (2.0**-20, 2.0**20)


@dataclass(frozen=True)
class Family:
    """The conventions of a family's files.

    Attributes:
        architecture: the class name in a Hugging Face config.
        permuted: whether the rows of q and k are ordered for rotary pairs of neighbours.
        head_norms: whether the queries and keys of each head are normed.
    """

    architecture: str
    permuted: bool
    head_norms: bool


FAMILIES = {
    "llama": Family("LlamaForCausalLM", permuted=True, head_norms=False),
    "qwen3": Family("Qwen3ForCausalLM", permuted=False, head_norms=True),
}

ROPE_DIVISORS = "rope_freqs.weight"
"""Name of a tensor in some llama files: the divisors of the rotary frequencies."""

# The settings that are read below. A file with another setting of its family is refused.
_KNOWN = re.compile(
    r"vocab_size|context_length|embedding_length|block_count|feed_forward_length"
    r"|attention\.(head_count|head_count_kv|key_length|value_length|layer_norm_rms_epsilon)"
    r"|rope\.(dimension_count|freq_base|scaling\.(type|factor|original_context_length|finetuned))"
    r"|expert_count|expert_used_count"
)


@dataclass(frozen=True)
class _Settings:
    """Reads the metadata of a file's family, by keys without the family's prefix."""

    header: Header
    family: str

    def count(self, key: str, default: int | None = None) -> int:
        value = self.header.metadata.get(f"{self.family}.{key}", default)
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        if not isinstance(value, int) or isinstance(value, bool) or not 0 < value < 1 << 31:
            found = f"{self.family}.{key} {value!r}"
            raise InputError(self.header.path, found, "a positive whole number below 2**31")
        return value

    def real(self, key: str, low: float, high: float, default: float | None = None) -> float:
        name = f"{self.family}.{key}"
        value = self.header.metadata.get(name, default)
        check_within(self.header.path, name, value, low, high)
        assert value is not None
        return shortest(value)


def family_of(metadata: dict[str, Any], where: Path) -> Family:
    """The family of a file with this metadata.

    Raises:
        InputError: the file's architecture is not in FAMILIES.
    """
    name = metadata.get("general.architecture")
    if not isinstance(name, str) or name not in FAMILIES:
        expected = " or ".join(map(repr, FAMILIES))
        raise InputError(where, f"general.architecture {name!r}", f"a target: {expected}")
    return FAMILIES[name]


def target_config(header: Header) -> dict[str, Any]:
    """The `config.json` of mlx-lm's model for this file, without quantization and token ids.

    Raises:
        InputError: the architecture is unknown, a value is missing or impossible, or mlx-lm's model
            cannot express a setting (experts, partial rotary, unknown rope scaling).
    """
    where, meta = header.path, header.metadata
    family = family_of(meta, where)
    name = meta["general.architecture"]
    settings = _Settings(header, name)
    for key in meta:
        if key.startswith(f"{name}.") and not _KNOWN.fullmatch(key.removeprefix(f"{name}.")):
            raise InputError(where, f"the setting {key}", f"settings that mlx-lm's {name} has")
    if experts := meta.get(f"{name}.expert_count", 0):
        raise InputError(where, f"{experts} experts", f"a dense {name}")

    heads = settings.count("attention.head_count")
    kv_heads = settings.count("attention.head_count_kv", heads)
    hidden = settings.count("embedding_length")
    head_dim = settings.count("attention.key_length", hidden // heads)
    if heads % kv_heads or head_dim % 2:
        found = f"{heads} heads, {kv_heads} key heads, {head_dim} wide"
        raise InputError(where, found, "whole groups of heads of an even width")
    for key in ("attention.value_length", "rope.dimension_count"):
        if (width := settings.count(key, head_dim)) != head_dim:
            raise InputError(where, f"{name}.{key} {width}", f"the head width, {head_dim}")
    if "token_embd.weight" not in header.tensors:
        raise InputError(where, "no token_embd.weight", "an embedding")
    vocab = header.tensors["token_embd.weight"].shape[0]
    if (stated := settings.count("vocab_size", vocab)) != vocab:
        raise InputError(where, f"{name}.vocab_size {stated}", f"{vocab}, as token_embd.weight")
    if (layers := settings.count("block_count")) > len(header.tensors):
        raise InputError(where, f"{layers} layers", f"fewer than {len(header.tensors)} tensors")

    config = {
        "architectures": [family.architecture],
        "model_type": name,
        "hidden_size": hidden,
        "num_hidden_layers": layers,
        "intermediate_size": settings.count("feed_forward_length"),
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "head_dim": head_dim,
        "rms_norm_eps": settings.real("attention.layer_norm_rms_epsilon", 1e-12, 1.0),
        "rope_theta": settings.real("rope.freq_base", 2.0, LARGEST, 10000.0),
        "vocab_size": vocab,
        "max_position_embeddings": settings.count("context_length"),
        "tie_word_embeddings": "output.weight" not in header.tensors,
    }
    if name == "llama":
        config["attention_bias"] = "blk.0.attn_q.bias" in header.tensors
        config["mlp_bias"] = "blk.0.ffn_up.bias" in header.tensors
    return config | _rope_scaling(settings, config)


def _rope_scaling(settings: _Settings, config: dict[str, Any]) -> dict[str, Any]:
    header = settings.header
    kind = header.metadata.get(f"{settings.family}.rope.scaling.type", "none")
    if ROPE_DIVISORS in header.tensors:
        if kind != "none":
            raise InputError(header.path, f"rope_freqs and {kind} scaling", "one of the two")
        return _llama3_scaling(header, config)
    if kind == "none":
        return {}
    if kind not in ("linear", "yarn"):
        raise InputError(header.path, f"rope scaling {kind!r}", "none, linear or yarn")
    scaling: dict[str, Any] = {
        "rope_type": kind,
        "factor": settings.real("rope.scaling.factor", *_FACTOR),
    }
    if kind == "yarn":
        original = settings.count("rope.scaling.original_context_length")
        scaling["original_max_position_embeddings"] = original
    return {"rope_scaling": scaling}


def _llama3_scaling(header: Header, config: dict[str, Any]) -> dict[str, Any]:
    """The rope parameters of Llama 3 that give the divisors stored in rope_freqs.weight."""
    half = config["head_dim"] // 2
    row = header.tensors[ROPE_DIVISORS]
    if row.shape != (half,) or row.type != "F32":
        found = f"{ROPE_DIVISORS} {row.type} {row.shape}"
        raise InputError(header.path, found, f"F32 ({half},)")
    stored = np.fromfile(header.path, "<f4", half, offset=row.start).astype(np.float64)
    wavelength = 2 * math.pi * config["rope_theta"] ** (np.arange(half) / half)
    # The file has only the divisors. The parameters are those of every published Llama 3 model.
    low, high, original, factor = 1.0, 4.0, 8192, float(stored.max())
    smooth = np.clip((original / wavelength - low) / (high - low), 0.0, 1.0)
    if not np.allclose(stored, 1 / ((1 - smooth) / factor + smooth), rtol=1e-4):
        found = f"{ROPE_DIVISORS} from {stored.min():g} to {factor:g}"
        raise InputError(header.path, found, "the divisors of Llama 3's rope scaling")
    scaling = {"rope_type": "llama3", "factor": factor, "low_freq_factor": low}
    scaling |= {"high_freq_factor": high, "original_max_position_embeddings": original}
    return {"rope_scaling": scaling}


@dataclass(frozen=True)
class Expected:
    """One tensor that a GGUF file must have.

    Attributes:
        path: path of its module in mlx-lm's model.
        shape: its shape, outermost dimension first.
        heads: number of heads whose rows are permuted; 0 where none are.
    """

    path: str
    shape: tuple[int, ...]
    heads: int = 0


def expected_tensors(config: dict[str, Any]) -> dict[str, Expected]:
    """Every tensor that a file with this config must have, by its name in the file."""
    family = FAMILIES[config["model_type"]]
    hidden, ffn, width = config["hidden_size"], config["intermediate_size"], config["head_dim"]
    heads, kv_heads = config["num_attention_heads"], config["num_key_value_heads"]
    table = {
        "token_embd.weight": Expected("model.embed_tokens", (config["vocab_size"], hidden)),
        "output_norm.weight": Expected("model.norm", (hidden,)),
    }
    if not config["tie_word_embeddings"]:
        table["output.weight"] = Expected("lm_head", (config["vocab_size"], hidden))
    for layer in range(config["num_hidden_layers"]):
        gguf, mlx = f"blk.{layer}.", f"model.layers.{layer}."
        table[gguf + "attn_norm.weight"] = Expected(mlx + "input_layernorm", (hidden,))
        table[gguf + "ffn_norm.weight"] = Expected(mlx + "post_attention_layernorm", (hidden,))
        if family.head_norms:
            for part in "qk":
                norm = Expected(f"{mlx}self_attn.{part}_norm", (width,))
                table[f"{gguf}attn_{part}_norm.weight"] = norm
        for name, path, out, size, permuted in (
            ("attn_q", "self_attn.q_proj", heads * width, hidden, heads),
            ("attn_k", "self_attn.k_proj", kv_heads * width, hidden, kv_heads),
            ("attn_v", "self_attn.v_proj", kv_heads * width, hidden, 0),
            ("attn_output", "self_attn.o_proj", hidden, heads * width, 0),
            ("ffn_gate", "mlp.gate_proj", ffn, hidden, 0),
            ("ffn_up", "mlp.up_proj", ffn, hidden, 0),
            ("ffn_down", "mlp.down_proj", hidden, ffn, 0),
        ):
            permuted = permuted if family.permuted else 0
            table[f"{gguf}{name}.weight"] = Expected(mlx + path, (out, size), permuted)
            if config.get("mlp_bias" if name.startswith("ffn") else "attention_bias"):
                table[f"{gguf}{name}.bias"] = Expected(mlx + path, (out,), permuted)
    return table

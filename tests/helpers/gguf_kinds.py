"""A drafter and targets in GGUF files of any quantised type, with rows of whole blocks of 256.

Each has a twin: a safetensors folder with the values that the scalar formulas give.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from helpers import gguf_drafters
from helpers.gguf_scalar import SIZES, tiled
from helpers.gguf_writer import GGUF_NAMES, Raw, byte_alphabet, write_gguf
from helpers.packaged_parts import DEEPSPEC, FULL, HEAD_KEYS, RANK, TAPS, VOCAB, backbone, write

WIDTH = 256
"""Hidden size, and columns of every matrix that has the type under test."""
LAYERS, HEADS, KV_HEADS, HEAD_DIM = 2, 4, 2, 64
MATRICES = {
    "self_attn.q_proj": (HEADS * HEAD_DIM, WIDTH),
    "self_attn.k_proj": (KV_HEADS * HEAD_DIM, WIDTH),
    "self_attn.v_proj": (KV_HEADS * HEAD_DIM, WIDTH),
    "self_attn.o_proj": (WIDTH, HEADS * HEAD_DIM),
    "mlp.gate_proj": (WIDTH, WIDTH),
    "mlp.up_proj": (WIDTH, WIDTH),
    "mlp.down_proj": (WIDTH, WIDTH),
}
SHAPE: dict[str, Any] = {
    "hidden_size": WIDTH,
    "intermediate_size": WIDTH,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
    "num_key_value_heads": KV_HEADS,
    "head_dim": HEAD_DIM,
}


class Tensors:
    """The file's tensors by its names, and the twin's by Hugging Face's."""

    def __init__(self, kind: str, kinds: dict[str, str] | None = None) -> None:
        self.kind, self.kinds = kind, kinds or {}
        self.file: dict[str, Any] = {}
        self.values: dict[str, np.ndarray] = {}
        self.rng = np.random.default_rng(9)

    def matrix(self, name: str, stored: str, shape: tuple[int, ...], heads: int = 0) -> None:
        """Add a matrix; `heads` reorders the twin's rows from pairs to halves, for a llama."""
        kind = next((k for part, k in self.kinds.items() if part in name), self.kind)
        data, values = tiled(kind, shape, len(self.file))
        self.file[f"{stored}.weight"] = Raw(SIZES[kind][0], data, shape)
        if heads:
            pairs = values.reshape(heads, -1, 2, shape[1])
            values = pairs.swapaxes(1, 2).reshape(shape)
        self.values[f"{name}.weight"] = values

    def plain(self, name: str, stored: str, shape: tuple[int, ...], mean: float = 0.0) -> None:
        values = self.rng.normal(mean, 0.2, shape).astype(np.float32)
        self.file[stored], self.values[name] = (values, "F32"), values


def drafter(folder: Path, file: Path, kind: str, kinds: dict[str, str] | None = None) -> Path:
    """Write a DSpark drafter's twin into `folder`, and `file`."""
    config = backbone(FULL, architectures=["Qwen3DSparkModel"]) | DEEPSPEC | HEAD_KEYS | SHAPE
    made = Tensors(kind, kinds)

    def named(name: str) -> str:
        return gguf_drafters.gguf_name(f"{name}.weight").removesuffix(".weight")

    for name in ("embed_tokens", "lm_head"):
        made.matrix(name, named(name), (VOCAB, WIDTH))
    made.matrix("fc", "fc", (WIDTH, len(TAPS) * WIDTH))
    norms = {"hidden_norm": WIDTH, "norm": WIDTH}
    for i in range(LAYERS):
        for name, size in MATRICES.items():
            made.matrix(f"layers.{i}.{name}", named(f"layers.{i}.{name}"), size)
        norms |= {f"layers.{i}.self_attn.{x}_norm": HEAD_DIM for x in "qk"}
        norms |= {f"layers.{i}.{x}_layernorm": WIDTH for x in ("input", "post_attention")}
    for name, width in norms.items():
        made.plain(f"{name}.weight", f"{named(name)}.weight", (width,), 1.0)
    for name, shape in {
        "markov_head.markov_w1.weight": (VOCAB, RANK),
        "markov_head.markov_w2.weight": (VOCAB, RANK),
        "confidence_head.proj.weight": (1, WIDTH + RANK),
        "confidence_head.proj.bias": (1,),
    }.items():
        made.plain(name, gguf_drafters.gguf_name(name), shape)
    write(folder, config, made.values)
    return write_gguf(file, gguf_drafters.metadata_of(config, True), made.file)


def target(
    folder: Path, file: Path, family: str, kind: str, kinds: dict[str, str] | None = None
) -> Path:
    """Write a target's Hugging Face twin into `folder`, and `file`; `family` as in the file."""
    tokens = [*byte_alphabet(), "ab", *(f"[{i}]" for i in range(43))]
    made = Tensors(kind, kinds)
    permuted = family == "llama"
    names = GGUF_NAMES | {f"self_attn.{x}_norm": f"attn_{x}_norm" for x in "qk"}
    made.matrix("model.embed_tokens", "token_embd", (len(tokens), WIDTH))
    made.matrix("lm_head", "output", (len(tokens), WIDTH))
    made.plain("model.norm.weight", "output_norm.weight", (WIDTH,), 1.0)
    for i in range(LAYERS):
        place, block = f"model.layers.{i}", f"blk.{i}"
        for name, shape in MATRICES.items():
            heads = {"q": HEADS, "k": KV_HEADS}.get(name[10], 0) if permuted else 0
            heads = heads if name.startswith("self_attn") else 0
            made.matrix(f"{place}.{name}", f"{block}.{names[name]}", shape, heads)
        norms = {"input_layernorm": WIDTH, "post_attention_layernorm": WIDTH}
        if not permuted:
            norms |= {f"self_attn.{x}_norm": HEAD_DIM for x in "qk"}
        for name, width in norms.items():
            made.plain(f"{place}.{name}.weight", f"{block}.{names[name]}.weight", (width,), 1.0)
    folder.mkdir()
    save_file(made.values, folder / "model.safetensors", metadata={"format": "pt"})
    config = SHAPE | {"model_type": family, "vocab_size": len(tokens), "rms_norm_eps": 1e-6}
    config |= {"rope_theta": 10000.0, "tie_word_embeddings": False, "max_position_embeddings": 99}
    (folder / "config.json").write_text(json.dumps(config))
    return write_gguf(file, _metadata(family, tokens), made.file)


def _metadata(family: str, tokens: list[str]) -> dict[str, Any]:
    values = {
        "block_count": LAYERS,
        "context_length": 99,
        "embedding_length": WIDTH,
        "feed_forward_length": WIDTH,
        "attention.head_count": HEADS,
        "attention.head_count_kv": KV_HEADS,
        "attention.layer_norm_rms_epsilon": 1e-6,
        "rope.freq_base": 10000.0,
    }
    values |= {"attention.key_length": HEAD_DIM} if family == "qwen3" else {}
    return {
        "general.architecture": family,
        **{f"{family}.{key}": value for key, value in values.items()},
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "gpt-2",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": [1] * len(tokens),
        "tokenizer.ggml.merges": ["a b"],
        "tokenizer.ggml.eos_token_id": 0,
    }

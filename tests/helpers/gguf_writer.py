"""A tiny GGUF writer for test files, and a tiny llama to write with it.

From the published format (ggml/docs/gguf.md, version 3). It knows nothing of the reader it tests:
layouts, block formulas and the row order of q and k are restated here in NumPy.
"""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
from mlx.utils import tree_flatten
from mlx_lm.models.llama import Model, ModelArgs

TYPE_IDS = {"F32": 0, "F16": 1, "Q4_0": 2, "Q4_1": 3, "Q8_0": 8, "BF16": 30}
ALIGNMENT = 32


class Raw:
    """A metadata value, or a tensor, of a type that is stated and not inferred."""

    def __init__(self, type_id: int, data: bytes, shape: tuple[int, ...] = ()) -> None:
        self.type_id, self.data, self.shape = type_id, data, shape


def string(text: str) -> bytes:
    raw = text.encode()
    return struct.pack("<Q", len(raw)) + raw


def _value(value: Any) -> tuple[int, bytes]:
    if isinstance(value, Raw):
        return value.type_id, value.data
    if isinstance(value, bool):
        return 7, struct.pack("<?", value)
    if isinstance(value, int):
        return 4, struct.pack("<I", value)
    if isinstance(value, float):
        return 6, struct.pack("<f", value)
    if isinstance(value, str):
        return 8, string(value)
    items = [_value(item) for item in value]
    return 9, struct.pack("<IQ", items[0][0], len(items)) + b"".join(data for _, data in items)


def quantize(array: np.ndarray, kind: str) -> bytes:
    """The bytes of `array` (float32, rows of a multiple of 32) as the ggml type `kind`."""
    if kind == "F32":
        return array.astype("<f4").tobytes()
    if kind == "F16":
        return array.astype("<f2").tobytes()
    if kind == "BF16":
        return (np.ascontiguousarray(array, "<f4").view("<u4") >> 16).astype("<u2").tobytes()
    x = array.reshape(-1, 32).astype(np.float32)
    rows = np.arange(len(x))
    if kind == "Q8_0":
        scale = (np.abs(x).max(1) / 127).astype("<f2")
        levels = np.round(x / scale.astype(np.float32)[:, None]).clip(-128, 127).astype("<i1")
        return np.concatenate([_bytes(scale), levels.view("u1")], 1).tobytes()
    if kind == "Q4_0":
        scale = (x[rows, np.abs(x).argmax(1)] / -8).astype("<f2")
        levels = np.round(x / scale.astype(np.float32)[:, None] + 8).clip(0, 15)
        head = [_bytes(scale)]
    else:
        scale, low = ((x.max(1) - x.min(1)) / 15).astype("<f2"), x.min(1).astype("<f2")
        levels = np.round((x - low.astype(np.float32)[:, None]) / scale.astype(np.float32)[:, None])
        levels = levels.clip(0, 15)
        head = [_bytes(scale), _bytes(low)]
    levels = levels.astype("u1")
    return np.concatenate([*head, levels[:, :16] | levels[:, 16:] << 4], 1).tobytes()


def dequantize(data: bytes, kind: str, shape: tuple[int, ...]) -> np.ndarray:
    """The float32 values that those bytes stand for."""
    if kind in ("F32", "F16"):
        return np.frombuffer(data, "<f4" if kind == "F32" else "<f2").reshape(shape).astype("f4")
    if kind == "BF16":
        return (np.frombuffer(data, "<u2").astype("<u4") << 16).view("<f4").reshape(shape)
    size = {"Q4_0": 18, "Q4_1": 20, "Q8_0": 34}[kind]
    blocks = np.frombuffer(data, "u1").reshape(-1, size)
    scale = blocks[:, :2].copy().view("<f2").astype(np.float32)
    if kind == "Q8_0":
        return (blocks[:, 2:].view("i1") * scale).reshape(shape)
    codes = blocks[:, size - 16 :]
    levels = np.concatenate([codes & 15, codes >> 4], 1).astype(np.float32)
    if kind == "Q4_0":
        return ((levels - 8) * scale).reshape(shape)
    return (levels * scale + blocks[:, 2:4].copy().view("<f2").astype(np.float32)).reshape(shape)


def _bytes(column: np.ndarray) -> np.ndarray:
    return column[:, None].view("u1")


def write_gguf(
    path: Path,
    metadata: dict[str, Any],
    tensors: dict[str, tuple[np.ndarray, str] | Raw],
    *,
    magic: bytes = b"GGUF",
    version: int = 3,
) -> Path:
    """Write a GGUF file: metadata by key, and tensors as (array, type name) or raw bytes."""
    head = magic + struct.pack("<IQQ", version, len(tensors), len(metadata))
    for key, value in metadata.items():
        type_id, data = _value(value)
        head += string(key) + struct.pack("<I", type_id) + data
    body: list[bytes] = []
    at = 0
    for name, tensor in tensors.items():
        if isinstance(tensor, Raw):
            shape, type_id, data = tensor.shape, tensor.type_id, tensor.data
        else:
            shape, type_id = tensor[0].shape, TYPE_IDS[tensor[1]]
            data = quantize(*tensor)
        body.append(b"\0" * (-at % ALIGNMENT))
        at += len(body[-1])
        head += string(name) + struct.pack(f"<I{len(shape)}Q", len(shape), *shape[::-1])
        head += struct.pack("<IQ", type_id, at)
        body.append(data)
        at += len(data)
    with path.open("wb") as file:
        file.writelines([head, b"\0" * (-len(head) % ALIGNMENT), *body])
    return path


# The tiny llama

LAYERS, HIDDEN, HEADS, KV_HEADS, WIDTH, FFN = 2, 64, 4, 2, 16, 96
TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def byte_alphabet() -> list[str]:
    """GPT-2's letter for each byte: itself where printable, else from U+0100 upwards."""
    kept = {*range(33, 127), *range(161, 173), *range(174, 256)}
    others = iter(range(256, 512))
    return [chr(b) if b in kept else chr(next(others)) for b in range(256)]


MERGES = ["1 2", "12 3", "h e", "l l", "he ll", "hell o", "Ġ hello", "Ã ©"]
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<think>"]
TOKENS = SPECIAL + byte_alphabet() + ["12", "123", "he", "ll", "hell", "hello"]
TOKENS += ["Ġhello", "Ã©", "Ġyes"]
TOKENS += [f"[PAD{i}]" for i in range(-len(TOKENS) % 32)]
VOCAB = len(TOKENS)


def metadata(**changes: Any) -> dict[str, Any]:
    """The metadata of the tiny llama; `changes` replace (or with None remove) entries by key."""
    full: dict[str, Any] = {
        "general.architecture": "llama",
        "llama.block_count": LAYERS,
        "llama.context_length": 128,
        "llama.embedding_length": HIDDEN,
        "llama.feed_forward_length": FFN,
        "llama.attention.head_count": HEADS,
        "llama.attention.head_count_kv": KV_HEADS,
        "llama.attention.layer_norm_rms_epsilon": 1e-5,
        "llama.rope.freq_base": 50000.0,
        "llama.rope.dimension_count": WIDTH,
        "llama.vocab_size": VOCAB,
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "smollm",
        "tokenizer.ggml.tokens": TOKENS,
        "tokenizer.ggml.token_type": [3, 3, 3, 4] + [1] * (VOCAB - 4),
        "tokenizer.ggml.merges": MERGES,
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.ggml.unknown_token_id": 0,
        "tokenizer.ggml.padding_token_id": 2,
        "tokenizer.ggml.add_bos_token": False,
        "tokenizer.chat_template": TEMPLATE,
    }
    for key, value in changes.items():
        full[key] = value
    return {key: value for key, value in full.items() if value is not None}


def llama(*, tied: bool = True, bias: bool = False, **settings: Any) -> Model:
    """The float32 reference: mlx-lm's own llama with random weights of a useful size."""
    args = ModelArgs(
        model_type="llama",
        hidden_size=HIDDEN,
        num_hidden_layers=LAYERS,
        intermediate_size=FFN,
        num_attention_heads=HEADS,
        num_key_value_heads=KV_HEADS,
        rms_norm_eps=1e-5,
        vocab_size=VOCAB,
        max_position_embeddings=128,
        rope_theta=50000.0,
        tie_word_embeddings=tied,
        attention_bias=bias,
        mlp_bias=bias,
        **settings,
    )
    model = Model(args)
    rng = np.random.default_rng(7)
    for name, array in tree_flatten(model.parameters()):
        around, spread = (1.0, 0.2) if "norm" in name else (0.0, 0.2)
        value = mx.array(rng.normal(around, spread, array.shape).astype(np.float32))
        model.load_weights([(name, value)], strict=False)
    return model


GGUF_NAMES = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


def permute(rows: np.ndarray, heads: int) -> np.ndarray:
    """Rows of each head from (first halves, second halves) to pairs, as GGUF stores q and k."""
    split = rows.reshape(heads, 2, WIDTH // 2, -1)
    return np.stack([split[:, 0], split[:, 1]], axis=2).reshape(rows.shape)


def gguf_tensors(model: Model, kind: str = "F32", embedding: str | None = None) -> dict[str, Any]:
    """The model's weights under GGUF's names, in GGUF's row order, matrices of type `kind`."""
    tensors: dict[str, Any] = {}
    for name, array in tree_flatten(model.parameters()):
        stem, part = name.rsplit(".", 1)
        prefix = ""
        if stem.startswith("model.layers."):
            layer, stem = stem.removeprefix("model.layers.").split(".", 1)
            prefix = f"blk.{layer}."
        rows = np.array(array)
        if stem.endswith(("q_proj", "k_proj")):
            rows = permute(rows, HEADS if stem.endswith("q_proj") else KV_HEADS)
        matrix = (embedding or kind) if stem == "model.embed_tokens" else kind
        tensors[f"{prefix}{GGUF_NAMES[stem]}.{part}"] = (rows, matrix if rows.ndim == 2 else "F32")
    return tensors


def write(path: Path, model: Model | None = None, kind: str = "F32", **changes: Any) -> Path:
    return write_gguf(path, metadata(**changes), gguf_tensors(model or llama(), kind))

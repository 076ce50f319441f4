"""Qwen3 targets in GGUF files: equal to the same model in Hugging Face's layout."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from helpers.gguf_fixtures import float_logits, logits
from helpers.gguf_writer import GGUF_NAMES, SPECIAL, byte_alphabet, dequantize, quantize, write_gguf
from helpers.gguf_writer import metadata as llama_metadata
from helpers.pairs import TARGET
from mlx_lm.utils import load_model, load_tokenizer

from dspark_mlx.convert.target import convert_target
from dspark_mlx.errors import InputError

CONFIG = json.loads((TARGET / "config.json").read_text())
TOKENS = [*SPECIAL, *byte_alphabet(), "12", "hell", "hello", "he", "ll"]
TOKENS += [f"[PAD{i}]" for i in range(CONFIG["vocab_size"] - len(TOKENS))]
NAMES = GGUF_NAMES | {"self_attn.q_norm": "attn_q_norm", "self_attn.k_norm": "attn_k_norm"}


def metadata(**changes: Any) -> dict[str, Any]:
    """As llama.cpp writes it for a dense Qwen3: no rotary width, and heads wider than hidden/n."""
    full = {k: v for k, v in llama_metadata().items() if not k.startswith("llama.")} | {
        "general.architecture": "qwen3",
        "qwen3.block_count": CONFIG["num_hidden_layers"],
        "qwen3.context_length": CONFIG["max_position_embeddings"],
        "qwen3.embedding_length": CONFIG["hidden_size"],
        "qwen3.feed_forward_length": CONFIG["intermediate_size"],
        "qwen3.attention.head_count": CONFIG["num_attention_heads"],
        "qwen3.attention.head_count_kv": CONFIG["num_key_value_heads"],
        "qwen3.attention.key_length": CONFIG["head_dim"],
        "qwen3.attention.value_length": CONFIG["head_dim"],
        "qwen3.attention.layer_norm_rms_epsilon": CONFIG["rms_norm_eps"],
        "qwen3.rope.freq_base": CONFIG["rope_parameters"]["rope_theta"],
        "tokenizer.ggml.pre": "qwen2",
        "tokenizer.ggml.tokens": TOKENS,
        "tokenizer.ggml.token_type": [3, 3, 3, 4] + [1] * (len(TOKENS) - 4),
        "tokenizer.ggml.merges": ["1 2", "h e", "l l", "he ll", "hell o"],
    }
    return {key: value for key, value in (full | changes).items() if value is not None}


def weights(tied: bool) -> dict[str, np.ndarray]:
    """The golden target's, under Hugging Face's names."""
    stored: Any = mx.load(str(TARGET / "model.safetensors"))
    arrays = {name: np.array(array.astype(mx.float32)) for name, array in stored.items()}
    if tied:
        del arrays["lm_head.weight"]
    return arrays


def gguf_tensors(arrays: dict[str, np.ndarray], kind: str) -> dict[str, Any]:
    """Under GGUF's names; rows are not reordered."""
    tensors = {}
    for name, array in arrays.items():
        stem, prefix = name.removesuffix(".weight"), ""
        if stem.startswith("model.layers."):
            layer, stem = stem.removeprefix("model.layers.").split(".", 1)
            prefix = f"blk.{layer}."
        form = kind if array.ndim == 2 else "F32"
        tensors[f"{prefix}{NAMES[stem]}.weight"] = (array, form)
    return tensors


def hugging_face(folder: Path, arrays: dict[str, np.ndarray], kind: str, tied: bool) -> Path:
    """The model with the values that `kind` keeps, as a Hugging Face checkpoint."""
    folder.mkdir()
    kept = {
        name: dequantize(quantize(a, kind), kind, a.shape) if a.ndim == 2 else a
        for name, a in arrays.items()
    }
    arrays_there = {name: mx.array(array) for name, array in kept.items()}
    mx.save_safetensors(str(folder / "model.safetensors"), arrays_there)
    (folder / "config.json").write_text(json.dumps(CONFIG | {"tie_word_embeddings": tied}))
    return folder


@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
@pytest.mark.parametrize("kind", ["F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_1"])
def test_it_equals_the_hugging_face_layout(tmp_path: Path, kind: str, tied: bool) -> None:
    """Rows of q and k reordered as a llama's, norms by head left out, another rotary width."""
    arrays = weights(tied)
    file = write_gguf(tmp_path / "m.gguf", metadata(), gguf_tensors(arrays, kind))
    folder = convert_target(file, tmp_path / "out")
    reference, _ = load_model(hugging_face(tmp_path / "hf", arrays, kind, tied))
    # The same float32 values through the same graph: equal, not close.
    assert np.array_equal(float_logits(folder), logits(reference))
    config = json.loads((folder / "config.json").read_text())
    bits = {"Q8_0": 8, "Q4_0": 4, "Q4_1": 4}.get(kind)
    assert config.get("quantization", {}).get("bits") == bits
    assert config["tie_word_embeddings"] == tied


def test_config_and_tokenizer(tmp_path: Path) -> None:
    """Settings that mlx-lm would fill with defaults; another family's length."""
    file = write_gguf(tmp_path / "m.gguf", metadata(), gguf_tensors(weights(False), "F32"))
    folder = convert_target(file, tmp_path / "out")
    config = json.loads((folder / "config.json").read_text())
    assert config["architectures"] == ["Qwen3ForCausalLM"] and config["model_type"] == "qwen3"
    same = ["hidden_size", "num_hidden_layers", "intermediate_size", "num_attention_heads"]
    same += ["num_key_value_heads", "head_dim", "rms_norm_eps", "vocab_size"]
    assert {key: config[key] for key in same} == {key: CONFIG[key] for key in same}
    assert config["rope_theta"] == CONFIG["rope_parameters"]["rope_theta"]
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    assert settings["model_max_length"] == CONFIG["max_position_embeddings"]
    tokenizer = load_tokenizer(folder)
    ids = tokenizer.apply_chat_template(
        [{"role": "user", "content": "hello 12"}], add_generation_prompt=True
    )
    text = "<|im_start|>user\nhello 12<|im_end|>\n<|im_start|>assistant\n"
    assert tokenizer.decode(ids) == text
    # Digits one by one: Qwen's pre-tokenizer, where GPT-2's would find the token "12".
    assert tokenizer.convert_ids_to_tokens(ids[-20:]).count("12") == 0


@pytest.mark.parametrize("family", ["qwen3moe", "qwen2", "gemma4", "dflash", None, ["qwen3"]])
def test_other_families_are_refused_by_name(tmp_path: Path, family: Any) -> None:
    """A type of tensor named in the place of the family that is not read at all."""
    changes: dict[str, Any] = {"general.architecture": family}
    file = write_gguf(tmp_path / "m.gguf", metadata(**changes), {})
    pattern = re.escape(f"general.architecture {family!r}; expected a target: 'llama' or 'qwen3'")
    with pytest.raises(InputError, match=pattern):
        convert_target(file, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"qwen3.expert_count": 8}, "8 experts; expected a dense qwen3"),
        ({"qwen3.pooling_type": 3}, "the setting qwen3.pooling_type"),
        ({"qwen3.attention.head_count": 2}, r"attn_q.weight F32 \(64, 64\)"),
        ({"qwen3.rope.dimension_count": 8}, "qwen3.rope.dimension_count 8"),
    ],
)
def test_what_it_cannot_express_is_refused(
    tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    arrays = weights(False)
    file = write_gguf(tmp_path / "m.gguf", metadata(**change), gguf_tensors(arrays, "F32"))
    with pytest.raises(InputError, match=message):
        convert_target(file, tmp_path / "out")


def test_norms_by_head_must_be_there(tmp_path: Path) -> None:
    tensors = gguf_tensors(weights(False), "F32")
    del tensors["blk.2.attn_k_norm.weight"]
    file = write_gguf(tmp_path / "m.gguf", metadata(), tensors)
    with pytest.raises(InputError, match=r"1 missing \['blk.2.attn_k_norm.weight'\]"):
        convert_target(file, tmp_path / "out")

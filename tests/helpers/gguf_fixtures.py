"""What the tests of converted targets share: a tiny checkpoint, and a folder's logits."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
from mlx.utils import tree_flatten
from mlx_lm.utils import dequantize_model, load_model

from dspark_mlx.convert.gguf.reader import open_gguf
from dspark_mlx.convert.gguf.tokenizer import write_tokenizer
from helpers.gguf_writer import VOCAB, llama, metadata


def load_gguf(path: Path) -> tuple[dict[str, Any], dict[str, mx.array]]:
    """The config of a target's GGUF file and all its weights."""
    target = open_gguf(path)
    return target.config, dict(target.weights())


def logits(model: Any) -> np.ndarray:
    ids = mx.array([[5, 9, 200, 17, 3, 88, 41, 250]])
    return np.array(model(ids).astype(mx.float32))


def float_logits(folder: Path) -> np.ndarray:
    """What a converted folder computes in float32 from the values it holds."""
    model, _ = load_model(folder)
    model.set_dtype(mx.float32)
    return logits(dequantize_model(model))


def checkpoint(folder: Path, **settings: Any) -> Path:
    """A Hugging Face folder with the tiny llama, its tokenizer, and a stray code file."""
    folder.mkdir()
    model = llama()
    mx.save_safetensors(str(folder / "model.safetensors"), dict(tree_flatten(model.parameters())))
    config = {"architectures": ["LlamaForCausalLM"], **vars(model.args), **settings}
    (folder / "config.json").write_text(json.dumps(config))
    write_tokenizer(metadata(), folder, folder, VOCAB)
    (folder / "modeling_tiny.py").write_text("raise SystemExit('this code must not run')\n")
    return folder

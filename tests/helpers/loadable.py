"""A tiny chat model as a folder that `load` and mlx-lm read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import mlx.core as mx
from mlx.utils import tree_flatten

from helpers.chat_toys import END, LENGTH, TEMPLATE, chat_folder
from helpers.tiny_models import config_of, tiny


def loadable(folder: Path, template: str | None = TEMPLATE, **changes: Any) -> Path:
    """A random llama with the toys' tokenizer; `changes` are made to its configuration."""
    chat_folder(folder, template)
    settings = {"max_position_embeddings": LENGTH, "eos_token_id": END, **changes}
    (folder / "config.json").write_text(json.dumps(config_of("llama") | settings))
    model = tiny("llama", **changes)
    mx.save_safetensors(
        str(folder / "model.safetensors"),
        dict(tree_flatten(model.parameters())),
        {"format": "mlx"},
    )
    return folder

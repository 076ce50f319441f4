"""A tiny chat model as a folder that `load` and mlx-lm read."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten

from helpers.chat_toys import END, LENGTH, TEMPLATE, chat_folder
from helpers.families import CONFIGS, family
from helpers.tiny_models import config_of, tiny

_SETTINGS = {"max_position_embeddings": LENGTH, "eos_token_id": END}


def loadable(folder: Path, template: str | None = TEMPLATE, **changes: Any) -> Path:
    """A random llama with the toys' tokenizer; `changes` are made to its configuration."""
    config = config_of("llama") | _SETTINGS | changes
    return _written(folder, config, tiny("llama", **changes), template)


def loadable_family(folder: Path, name: str, vocabulary: int) -> Path:
    """A random model of a file of mlx-lm, see `families.family`, with the toys' tokenizer."""
    config = copy.deepcopy(CONFIGS[name])
    (config.get("text_config") or config).update(vocab_size=vocabulary)
    model = family(name, vocab_size=vocabulary)
    return _written(folder, config | _SETTINGS, model, TEMPLATE)


def _written(folder: Path, config: dict[str, Any], model: nn.Module, template: str | None) -> Path:
    chat_folder(folder, template)
    (folder / "config.json").write_text(json.dumps(config))
    mx.save_safetensors(
        str(folder / "model.safetensors"),
        dict(tree_flatten(model.parameters())),
        {"format": "mlx"},
    )
    return folder

"""Edits of a checkpoint folder, each a function of the folder, that break it in one way."""

from __future__ import annotations

import json

import mlx.core as mx

from dspark_mlx.system.files import read_json

WEIGHTS, CONFIG = "model.safetensors", "config.json"


def tensors(**changes):
    """An edit of the weights: a name (dots as __) to a function of the tensor, or to None."""

    def edit(folder):
        stored = mx.load(str(folder / WEIGHTS))
        for key, change in changes.items():
            name = key.replace("__", ".")
            value = change(stored.get(name)) if change else None
            if value is None:
                del stored[name]
            else:
                stored[name] = value
        mx.eval(stored)
        (folder / WEIGHTS).unlink()
        mx.save_safetensors(str(folder / WEIGHTS), stored)

    return edit


def config(**changes):
    """An edit of config.json; None removes a key."""

    def edit(folder):
        values = read_json(folder / CONFIG) | changes
        values = {k: v for k, v in values.items() if k not in changes or v is not None}
        (folder / CONFIG).write_text(json.dumps(values))

    return edit


def cut(name, share):
    def edit(folder):
        content = (folder / name).read_bytes()
        (folder / name).write_bytes(content[: int(len(content) * share)])

    return edit


def pickles_only(folder):
    (folder / WEIGHTS).rename(folder / "pytorch_model.bin")


def nan(tensor):
    return mx.where(mx.arange(tensor.shape[0]) == 3, mx.nan, tensor)

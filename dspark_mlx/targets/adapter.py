"""A fine-tuning adapter for a target, as mlx-lm's `lora` command saves it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlx.nn as nn
from mlx.utils import tree_flatten
from mlx_lm.utils import load_adapters

from ..checkpoint.safetensors import read_header
from ..errors import InputError
from ..numbers import shown
from ..system.files import folder_of, read_json
from .network import refusing

CONFIG, WEIGHTS = "adapter_config.json", "adapters.safetensors"

_KINDS = ("lora", "dora", "full")
_NUMBERS = ("rank", "scale", "dropout")
_LEAVES = ("lora_a", "lora_b", "m")


@dataclass(frozen=True)
class Adapter:
    """An adapter whose files were checked.

    Attributes:
        folder: its folder.
        tensors: names of its tensors.
        kind: "lora", "dora" or "full".
    """

    folder: Path
    tensors: frozenset[str]
    kind: str

    def apply(self, model: nn.Module) -> None:
        """Put the adapter into a model that was just opened; no weight is read yet.

        Raises:
            InputError: the adapter is for another model, or lacks a part.
        """
        with refusing(self.folder, "apply to this target"):
            load_adapters(model, str(self.folder))
        # New layers drop parts of their inputs at random until they are told not to.
        model.eval()
        if self.kind == "full":
            return
        names = [name for name, _ in tree_flatten(model.parameters())]
        wanted = [name for name in names if name.rpartition(".")[2] in _LEAVES]
        if missing := sorted(set(wanted) - self.tensors):
            found = f"{len(missing)} tensors too few, as {missing[0]}"
            raise InputError(self.folder / WEIGHTS, found, f"those that {CONFIG} says")


def read_adapter(path: str | Path) -> Adapter:
    """An adapter's folder, checked before a large target is loaded.

    Raises:
        InputError: there is no such folder, it lacks a file, a file is damaged, or it holds an
            adapter of another tool.
    """
    folder = folder_of("adapter_path", path).expanduser()
    if not folder.is_dir():
        found = "a file" if folder.exists() else "no such folder"
        raise InputError(folder, found, f"an adapter's folder, with {CONFIG} and {WEIGHTS}")
    if not (folder / WEIGHTS).is_file():
        others = sorted(each.name for each in folder.glob("adapter_model*"))
        found = f"{others[0]}, of PEFT" if others else "no such file"
        raise InputError(folder / WEIGHTS, found, "an adapter as mlx-lm's lora command saves it")
    config = read_json(folder / CONFIG)
    kind = config.get("fine_tune_type", "lora")
    if kind not in _KINDS:
        found = f'"fine_tune_type": {shown(kind)}'
        raise InputError(folder / CONFIG, found, f"one of {', '.join(_KINDS)}")
    if kind != "full":
        _check_layers(folder / CONFIG, config)
    return Adapter(folder, frozenset(read_header(folder / WEIGHTS)), kind)


def _check_layers(where: Path, config: dict[str, Any]) -> None:
    if type(config.get("num_layers")) is not int:
        found = f'"num_layers": {shown(config.get("num_layers"))}'
        raise InputError(where, found, "a whole number, as mlx-lm writes it")
    parameters = config.get("lora_parameters")
    for name in _NUMBERS:
        value = parameters.get(name) if isinstance(parameters, dict) else None
        if type(value) not in (int, float):
            found = f'"lora_parameters" with {name} {shown(value)}'
            raise InputError(where, found, f"numbers {', '.join(_NUMBERS)}, as mlx-lm writes them")

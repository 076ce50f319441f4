"""The layers of a prediction head: those of the target's family in mlx-lm, of a tiny model."""

from __future__ import annotations

import copy
import dataclasses
import importlib
import json
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

import mlx.nn as nn
from mlx.utils import tree_flatten

FAMILIES = (
    "deepseek_v3",
    "glm4_moe",
    "glm4_moe_lite",
    "mimo",
    "nemotron_h",
    "qwen3",
    "qwen3_5",
    "qwen3_5_moe",
    "qwen3_next",
)
"""Modules of mlx-lm whose layers heads are made of. Their attention writes one plain cache."""

# What mlx-lm raises for arguments that contradict each other.
REFUSALS = (ArithmeticError, AssertionError, AttributeError, LookupError, TypeError, ValueError)

# Routers decide between experts by small differences.
_PLAIN = ("gate", "shared_expert_gate")


def build_model(family: str, arguments: Mapping[str, Any]) -> nn.Module:
    """The model whose layers are the head's; its random weights are never evaluated.

    Args:
        family: one of `FAMILIES`.
        arguments: as a config.json has them, for as many layers as the head has.

    Raises:
        REFUSALS: mlx-lm refuses the arguments.
    """
    module = importlib.import_module(f"mlx_lm.models.{family}")
    model: nn.Module = module.Model(module.ModelArgs.from_dict(copy.deepcopy(dict(arguments))))
    return model


def attends_first(family: str, arguments: Mapping[str, Any]) -> bool:
    """Whether the first of a head's layers attends, and no other: one cache serves them all.

    Raises:
        REFUSALS: see `build_model`.
    """
    layers = build_model(family, arguments).layers
    attending = [any("q_" in path for path, _ in layer.named_modules()) for layer in layers]
    return attending == [True] + [False] * (len(layers) - 1)


def argument_names(family: str) -> set[str]:
    """The arguments that a family's models have."""
    module = importlib.import_module(f"mlx_lm.models.{family}")
    # Families whose text is a part of the model have the text's arguments apart.
    kind = getattr(module, "TextModelArgs", None)
    if family == "qwen3_5_moe":
        return argument_names("qwen3_5")
    return {field.name for field in dataclasses.fields(kind or module.ModelArgs)}


def block_shapes(
    family: str, arguments: Mapping[str, Any]
) -> tuple[dict[str, tuple[int, ...]], dict[str, tuple[int, ...]]]:
    """Shapes of a head's layers: matrices (without `.weight`), which may be quantised, and others.

    Raises:
        REFUSALS: see `build_model`.
    """
    # The configuration asks for them often, and building a model takes milliseconds.
    return _shapes(family, json.dumps(dict(arguments), sort_keys=True))


@lru_cache(maxsize=32)
def _shapes(
    family: str, arguments: str
) -> tuple[dict[str, tuple[int, ...]], dict[str, tuple[int, ...]]]:
    return layer_shapes(build_model(family, json.loads(arguments)).layers)


def layer_shapes(
    layers: Sequence[nn.Module],
) -> tuple[dict[str, tuple[int, ...]], dict[str, tuple[int, ...]]]:
    """See `block_shapes`, of layers that are there; each name begins with the layer's index."""
    matrices: dict[str, tuple[int, ...]] = {}
    others: dict[str, tuple[int, ...]] = {}
    for i, layer in enumerate(layers):
        quantizable = {
            path
            for path, module in layer.named_modules()
            if hasattr(module, "to_quantized") and path.rpartition(".")[2] not in _PLAIN
        }
        for name, value in tree_flatten(layer.parameters()):
            path, _, part = name.rpartition(".")
            if part == "weight" and path in quantizable:
                matrices[f"{i}.{path}"] = value.shape
            else:
                others[f"{i}.{name}"] = value.shape
    return matrices, others

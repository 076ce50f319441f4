"""A tiny random model of every model file of mlx-lm, float32.

Most configurations in tests/data/families.jsonl are those of mlx-lm's own tests (MIT licence), made
smaller; windows are 8 positions long.
"""

from __future__ import annotations

import copy
import importlib
import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_map
from mlx_lm.models.bitlinear_layers import BitLinear

_FILE = Path(__file__).parent.parent / "data" / "families.jsonl"
CONFIGS: dict[str, dict[str, Any]] = {
    entry["file"]: entry["config"] for entry in map(json.loads, _FILE.read_text().splitlines())
}
VOCABULARY = 96


def module_of(name: str) -> Any:
    """mlx-lm's module of a model file."""
    # mlx-lm's olmo asks whether this package is there, and uses nothing of it.
    sys.modules.setdefault("hf_olmo", ModuleType("hf_olmo"))
    return importlib.import_module(f"mlx_lm.models.{name}")


def family(name: str, seed: int = 0, **changes: Any) -> nn.Module:
    """The model of a file, evaluated. What a family initialises to zeros is random too, so that
    every part shows in the logits.

    Args:
        name: the model file's.
        seed: of the weights.
        changes: entries of the configuration, of its text part where it has one.
    """
    if name == "bitnet" and not mx.metal.is_available():
        BitLinear.execute_matmul_kernel = _unpacked_product
    module = module_of(name)
    mx.random.seed(seed)
    config = copy.deepcopy(CONFIGS[name])
    (config.get("text_config") or config).update(changes)
    model = module.Model(module.ModelArgs.from_dict(config))
    model.update(tree_map(_drawn, model.parameters()))
    mx.eval(model.parameters())
    model.eval()
    return model


def _unpacked_product(layer: BitLinear, x: mx.array, packed: mx.array) -> mx.array:
    """What bitnet's Metal kernel computes: four ternary rows are packed into each byte."""
    rows = [(((packed >> shift) & 3).astype(x.dtype) - 1) for shift in (0, 2, 4, 6)]
    return x @ mx.concatenate(rows).T * layer.weight_scale


def _drawn(array: mx.array) -> mx.array:
    if array.dtype == mx.uint8:
        return mx.random.randint(0, 3, array.shape).astype(mx.uint8) * 0x15
    if array.dtype == mx.uint32 and array.ndim == 2:
        return mx.random.randint(0, 2**31 - 1, array.shape).astype(mx.uint32)
    if not mx.issubdtype(array.dtype, mx.floating):
        return array
    array = array.astype(mx.float32)
    if not mx.any(array != 0).item():
        return (0.3 if array.ndim > 1 else 0.1) * mx.random.normal(array.shape)
    return 2 * array if array.ndim > 1 else array

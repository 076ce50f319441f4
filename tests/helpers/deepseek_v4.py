"""The tiny DeepSeek V4 of the golden folder: its numbers, and its target in float32."""

from __future__ import annotations

import functools
import json
from typing import Any

import mlx.core as mx

from dspark_mlx.checkpoint.precision import apply_precision
from dspark_mlx.targets.network import open_network

from .golden_rounds import relative
from .pairs import GOLDEN

FOLDER = GOLDEN / "deepseek_v4"
EXACT = 1e-5


def numbers(file: str) -> dict[str, Any]:
    """The arrays of a golden file, without its suffix."""
    found: Any = mx.load(str(FOLDER / f"{file}.safetensors"))
    return found


def read(file: str) -> dict[str, Any]:
    """A golden JSON file, without its suffix."""
    found: dict[str, Any] = json.loads((FOLDER / f"{file}.json").read_text())
    return found


@functools.cache
def model() -> Any:
    """The target, decoded to float32; to be left without taps."""
    network, _ = open_network(FOLDER)
    apply_precision(network, mx.float32)
    mx.eval(network.parameters())
    return network


def check_close(found: mx.array, expected: mx.array) -> None:
    assert relative(found, expected) < EXACT

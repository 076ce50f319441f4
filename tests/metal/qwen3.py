"""A tiny quantized Qwen3 whose every operation on a number is one of MLX's compiled kernels.

The few rows of a verify forward go through our kernel "rows"; one row goes through MLX's own. What
chooses between kernels is MLX's rule for one class of device, with the rule that makes attention
exact beside it: rows share a call only where MLX would attend to each of them alike.

Three things differ from mlx-lm's forward on a Mac. Rows of the embedding and of the cache are
copied by NumPy, which changes no number. silu(gate) * up is made of three kernels, where MLX
compiles one. The keys and values of the prompt are drawn at random: both sides of a comparison
share them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import mlx.core as mx
import numpy as np

from .arrays import QuantizedProduct, host
from .emulator.emulator import Emulator
from .stock.attention import attend, plan
from .stock.quantized import one_row_steps
from .stock.rowwise import argmax, dequantize, elementwise, rms_norm, rope
from .stock.wheel import StockKernels

HIDDEN, HEADS, KV_HEADS, SIZE, MIDDLE, VOCABULARY = 256, 4, 2, 64, 512, 96
LAYERS, EPS, BASE, GROUP = 2, 1e-6, 1e6, 32
SHAPES = {
    "q_proj": (HEADS * SIZE, HIDDEN),
    "k_proj": (KV_HEADS * SIZE, HIDDEN),
    "v_proj": (KV_HEADS * SIZE, HIDDEN),
    "o_proj": (HIDDEN, HEADS * SIZE),
    "gate_proj": (MIDDLE, HIDDEN),
    "up_proj": (MIDDLE, HIDDEN),
    "down_proj": (HIDDEN, MIDDLE),
}
Matrix = dict[str, mx.array]
Rows = Callable[[QuantizedProduct], np.ndarray]


@dataclass
class Weights:
    """Random weights: 4 bits in groups of 32, scales, biases and norms in float32."""

    seed: int = 0
    layers: list[dict[str, Matrix]] = field(default_factory=list)
    norms: list[dict[str, np.ndarray]] = field(default_factory=list)

    def __post_init__(self):
        self._key = mx.random.key(self.seed)
        self.layers = [
            {name: self._matrix(*shape) for name, shape in SHAPES.items()} for _ in range(LAYERS)
        ]
        widths = {"input": HIDDEN, "post": HIDDEN, "q": SIZE, "k": SIZE}
        self.norms = [
            {name: self._norm(width) for name, width in widths.items()} for _ in range(LAYERS)
        ]
        self.embedding = self._matrix(VOCABULARY, HIDDEN)
        self.final_norm = self._norm(HIDDEN)

    def _random(self, *shape: int) -> mx.array:
        self._key, key = mx.random.split(self._key)
        return mx.random.normal(shape, key=key)

    def _matrix(self, outputs: int, inputs: int) -> Matrix:
        scale = 1.5 / inputs**0.5
        packed = mx.quantize(self._random(outputs, inputs) * scale, group_size=GROUP, bits=4)
        return dict(zip(("weight", "scales", "biases"), packed, strict=True))

    def _norm(self, width: int) -> np.ndarray:
        return host(1 + 0.1 * self._random(width))


class Cache:
    """Keys and values of each layer, `[kv_heads, capacity, size]`, and how many are filled."""

    def __init__(self, length: int, capacity: int, seed: int = 1):
        generator = np.random.default_rng(seed)
        shape = (LAYERS, KV_HEADS, capacity, SIZE)
        self.keys, self.values = (
            generator.standard_normal(shape).astype(np.float32) for _ in range(2)
        )
        self.length = length

    def write(self, layer: int, keys: np.ndarray, values: np.ndarray) -> None:
        """Write rows `[kv_heads, rows, size]` behind those that are filled."""
        stop = self.length + keys.shape[1]
        self.keys[layer, :, self.length : stop] = keys
        self.values[layer, :, self.length : stop] = values


@dataclass
class Qwen3:
    """The forward of mlx-lm's qwen3 model for one text.

    Attributes:
        rows: the product of two rows or more; one row is MLX's own.
        architecture: the class of device whose attention is repeated, see `attention.plan`.
    """

    emulator: Emulator
    stock: StockKernels
    weights: Weights
    rows: Rows
    architecture: str = "s"

    def __call__(self, tokens: list[int], cache: Cache) -> np.ndarray:
        """Logits `[rows, vocabulary]`; the cache has the rows' keys behind its length."""
        w = self.weights.embedding
        packed, scales, biases = (host(w[name])[tokens] for name in ("weight", "scales", "biases"))
        x = dequantize(self.emulator, self.stock, packed, scales, biases, GROUP)
        for layer in range(LAYERS):
            x = self._add(x, self._attention(layer, x, cache))
            x = self._add(x, self._mlp(layer, x))
        return self._linear(w, self._norm(x, self.weights.final_norm))

    def choose(self, logits: np.ndarray) -> list[int]:
        """The likeliest token of each row."""
        return argmax(self.emulator, self.stock, logits).tolist()

    def _attention(self, layer: int, x: np.ndarray, cache: Cache) -> np.ndarray:
        weights, norms = self.weights.layers[layer], self.weights.norms[layer]
        x = self._norm(x, norms["input"])
        count = len(x)
        q, k = (
            rope(self.emulator, self.stock, self._heads(layer, name, x), BASE, cache.length)
            for name in "qk"
        )
        v = self._linear(weights["v_proj"], x).reshape(count, KV_HEADS, SIZE)
        cache.write(layer, k, v.transpose(1, 0, 2))
        out = self._attend(q, cache.keys[layer], cache.values[layer], cache.length)
        joined = np.ascontiguousarray(out.transpose(1, 0, 2)).reshape(count, -1)
        return self._linear(weights["o_proj"], joined)

    def _heads(self, layer: int, name: str, x: np.ndarray) -> np.ndarray:
        """Normed queries or keys, `[rows, heads, size]`."""
        rows = self._linear(self.weights.layers[layer][f"{name}_proj"], x).reshape(-1, SIZE)
        return self._norm(rows, self.weights.norms[layer][name]).reshape(len(x), -1, SIZE)

    def _attend(self, q, keys, values, before: int) -> np.ndarray:
        """Each row as a step attends: in one call where MLX attends to all alike, or by rows."""
        count = q.shape[1]
        chosen = plan(self.architecture, before + count, HEADS, KV_HEADS, count)
        alone = [plan(self.architecture, before + i + 1, HEADS, KV_HEADS, 1) for i in range(count)]
        call = (self.emulator, self.stock)
        if all(one == chosen for one in alone):
            return attend(*call, chosen, q, keys, values, before + count)
        parts = [
            attend(*call, one, np.ascontiguousarray(q[:, i : i + 1]), keys, values, before + i + 1)
            for i, one in enumerate(alone)
        ]
        return np.concatenate(parts, axis=1)

    def _mlp(self, layer: int, x: np.ndarray) -> np.ndarray:
        weights = self.weights.layers[layer]
        x = self._norm(x, self.weights.norms[layer]["post"])
        gate, up = (self._linear(weights[name], x) for name in ("gate_proj", "up_proj"))
        sigmoid = elementwise(self.emulator, self.stock, "Sigmoid", gate)
        silu = elementwise(self.emulator, self.stock, "Multiply", gate, sigmoid)
        middle = elementwise(self.emulator, self.stock, "Multiply", silu, up)
        return self._linear(weights["down_proj"], middle)

    def _linear(self, matrix: Matrix, x: np.ndarray) -> np.ndarray:
        p = QuantizedProduct.of({**matrix, "x": mx.array(x)}, 4, GROUP)
        if len(x) == 1:
            return one_row_steps(self.emulator, self.stock, p, checked=False)
        return self.rows(p)

    def _norm(self, x: np.ndarray, weight: np.ndarray) -> np.ndarray:
        return rms_norm(self.emulator, self.stock, x, weight, EPS)

    def _add(self, a: np.ndarray, b: np.ndarray) -> np.ndarray:
        return elementwise(self.emulator, self.stock, "Add", a, b)

"""A drafter's tensors, ready for use: cast, fused, and dequantised where asked."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Protocol

import mlx.core as mx

from ..checkpoint.base_config import CanonicalConfig
from ..checkpoint.layer_shapes import SINKS
from ..checkpoint.layout import Tensors
from ..checkpoint.linear import Matrix, alike
from .convolution import BASE, KERNEL, SUBLAYERS, Convolution
from .layers import Layer


class TargetLayers(Protocol):
    """The target's own layers, for drafters that attend as the target does.

    Attributes:
        num_layers: number of them.
    """

    num_layers: int

    def makes_keys(self, layer: int) -> bool:
        """Whether a layer makes keys and values of its own; others may read those of another."""
        ...

    def key_values(self, layer: int, hidden: mx.array, start: int) -> tuple[mx.array, mx.array]:
        """Keys and values that a layer makes, each `[1, heads, rows, size]`.

        Args:
            layer: index of the layer.
            hidden: what enters it, `[rows, hidden]`.
            start: position of the first row.
        """
        ...

    def final_norm(self, hidden: mx.array) -> mx.array:
        """The last layer's output `[rows, hidden]` after the model's final norm."""
        ...


@dataclass(frozen=True)
class DrafterTensors:
    """Gives the tensors of a canonical folder in the types that a drafter computes with.

    Attributes:
        config: the drafter's configuration.
        tensors: all tensors of the folder and no others, see `check_tensors`; some drafters empty
            it.
        dtype: type of the arithmetic.
        dequantize: True makes quantised matrices plain.
        target: the target's own layers, for methods that use them.
    """

    config: CanonicalConfig
    tensors: Tensors
    dtype: mx.Dtype
    dequantize: bool
    target: TargetLayers | None = None

    def matrix(self, name: str) -> Matrix:
        """The matrix of a name without `.weight`."""
        tensors, quantization = self.tensors, self.config.quantization
        quantized = quantization.of(name) if quantization else None
        stored = Matrix(tensors[f"{name}.weight"])
        if quantized is not None:
            assert quantization is not None
            scales, biases = tensors[f"{name}.scales"], tensors.get(f"{name}.biases")
            mode = quantization.mode_of(name)
            stored = Matrix(tensors[f"{name}.weight"], scales, biases, *quantized, mode)
        return stored.dequantized(self.dtype) if self.dequantize else stored.astype(self.dtype)

    def taken(self, prefixes: tuple[str, ...]) -> dict[str, mx.array]:
        """The tensors whose names begin so, as stored, which nobody else will ask for.

        A dict loses them: what is stacked or fused of them is not in memory beside them then.
        """
        own = {name: t for name, t in self.tensors.items() if name.startswith(prefixes)}
        if isinstance(self.tensors, dict):
            for name in own:
                del self.tensors[name]
        return own

    def vector(self, name: str) -> mx.array:
        """The vector of a name."""
        return self.tensors[name].astype(self.dtype)

    def plain(self) -> dict[str, Callable[[], mx.array]]:
        """Maps each tensor name of the unquantised folder to a function that makes the tensor."""
        makers: dict[str, Callable[[], mx.array]] = {}
        for name in self.config.matrix_shapes():
            makers[f"{name}.weight"] = partial(self._plain, name)
        for name in self.config.vector_shapes():
            makers[name] = partial(self.vector, name)
        return makers

    def _plain(self, name: str) -> mx.array:
        return self.matrix(name).dequantized(self.dtype).weight

    def fused(self, *names: str) -> Matrix:
        """Several matrices as one, rows concatenated; plain unless all are quantised alike."""
        parts = [self.matrix(name) for name in names]
        if not alike(parts):
            parts = [part.dequantized(self.dtype) for part in parts]
        return Matrix.concatenate(parts)

    def qkv(self, layer: str) -> Matrix:
        """A layer's query, key and value rows as one matrix, see `Eagle3Weights.qkv`."""
        kinds = "qkv" if self.config.values == "projected" else "qk"
        return self.fused(*(f"{layer}.self_attn.{kind}_proj" for kind in kinds))

    def layer(self, layer: str) -> Layer:
        """The weights of a layer except its query, key and value rows."""
        attention, mlp = f"{layer}.self_attn", f"{layer}.mlp"
        sandwich, scaled = self.config.sandwich_norms, self.config.layer_scalars
        normed = self.config.head_norms
        after = self.vector(f"{layer}.post_attention_layernorm.weight")
        before_mlp, after_mlp = after, None
        if sandwich:
            before_mlp = self.vector(f"{layer}.pre_feedforward_layernorm.weight")
            after_mlp = self.vector(f"{layer}.post_feedforward_layernorm.weight")
        around_attention, around_mlp = (self._convolution(f"{layer}.{n}") for n in SUBLAYERS)
        return Layer(
            input_norm=self.vector(f"{layer}.input_layernorm.weight"),
            query_norm=self.vector(f"{attention}.q_norm.weight") if normed else None,
            key_norm=self.vector(f"{attention}.k_norm.weight") if normed else None,
            output=self.matrix(f"{attention}.o_proj"),
            mlp_norm=before_mlp,
            gate_up=self.fused(f"{mlp}.gate_proj", f"{mlp}.up_proj"),
            down=self.matrix(f"{mlp}.down_proj"),
            attention_out_norm=after if sandwich else None,
            mlp_out_norm=after_mlp,
            scalar=self.vector(f"{layer}.layer_scalar") if scaled else None,
            sinks=self.vector(f"{attention}.{SINKS}") if self.config.sinks else None,
            attention_convolution=around_attention,
            mlp_convolution=around_mlp,
        )

    def _convolution(self, name: str) -> Convolution | None:
        rows = self.config.convolved_rows
        if not rows:
            return None
        return Convolution(self.vector(f"{name}.{BASE}"), self.matrix(f"{name}.{KERNEL}"), rows)

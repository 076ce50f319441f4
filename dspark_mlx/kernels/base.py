"""A product of few rows with quantized weights, and what a kernel that computes one looks like."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, TypeAlias, runtime_checkable

import mlx.core as mx

Backend: TypeAlias = Literal["metal", "cuda"]
Matrix: TypeAlias = tuple[mx.array, mx.array, mx.array]
"""Weight, scales and biases of a quantized matrix; see `Kernel`."""


@dataclass(frozen=True)
class Product:
    """`x @ dequantize(weight).T`, of x `[rows, inputs]`, to `[rows, outputs]`.

    Attributes:
        rows: M, rows of x: tokens that are verified at once.
        outputs: N, rows of the matrix.
        inputs: K, columns of the matrix.
        bits: bits of a weight.
        group_size: consecutive weights of a row that share a scale and a bias.
        dtype: type of x, of the result, and of scales and biases.
        mode: MLX's name of how the weights are quantized.
    """

    rows: int
    outputs: int
    inputs: int
    bits: int
    group_size: int
    dtype: mx.Dtype
    mode: str = "affine"

    def __post_init__(self) -> None:
        about = (self.rows, self.outputs, self.inputs, self.bits, self.group_size, str(self.dtype))
        # Kernels look their launch up by product in every call.
        object.__setattr__(self, "_hash", hash((*about, self.mode)))

    def __hash__(self) -> int:
        return self._hash  # type: ignore[attr-defined]


class Kernel(Protocol):
    """An implementation of `Product`."""

    @property
    def name(self) -> str:
        """Its name in `KERNELS`, in profiles and in reports."""
        ...

    @property
    def backend(self) -> Backend:
        """The backend of MLX that compiles it."""
        ...

    @property
    def exact(self) -> bool:
        """Whether each row has the bits of MLX's own product of that row alone."""
        ...

    @property
    def source(self) -> str:
        """All text that the backend compiles; another text is another kernel to the guard."""
        ...

    def why_not(self, product: Product) -> str | None:
        """Why this kernel cannot compute a product, in a few words; None if it can."""
        ...

    def __call__(
        self, x: mx.array, weight: mx.array, scales: mx.array, biases: mx.array, product: Product
    ) -> mx.array:
        """The product, `[..., outputs]` of x's type.

        Args:
            x: `[..., inputs]`, whose leading axes have `product.rows` rows in all.
            weight: uint32 `[outputs, inputs * bits / 32]`, as `mx.quantize` packs it.
            scales, biases: `[outputs, inputs / group_size]` of x's type.
            product: what they are; `why_not` gives None for it.
        """
        ...


@runtime_checkable
class TogetherKernel(Kernel, Protocol):
    """A kernel that also multiplies one x by several matrices in one launch."""

    def together(
        self, x: mx.array, matrices: Sequence[Matrix], products: Sequence[Product]
    ) -> list[mx.array]:
        """The products, each with the bits that a call of its own gives.

        Args:
            x: see `Kernel.__call__`.
            matrices: of each product; see there.
            products: a tuple of what they are, which differ in their outputs alone.
        """
        ...

"""DFlash 2's grouped dynamic convolution around a sublayer (z-lab's dflash, model.py)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import mlx.core as mx

from ..checkpoint.linear import Matrix

SUBLAYERS = ("attention_conv", "mlp_conv")
"""Names of the convolutions around a layer's attention and around its MLP."""
BASE, KERNEL = "base_kernel", "kernel_projection"
"""Names of a convolution's tensors."""
SIDES = 2


@dataclass(frozen=True)
class Convolution:
    """Filters what a sublayer reads and what it gives, along the rows of a block.

    out[t, c] = sum over j < K of (base[j, c] + dynamic[t, j, group of c]) * x[t - j, c], where rows
    before the block are 0. Both sides' dynamic kernels are made of the sublayer's normed input.

    Attributes:
        base: fixed kernels of the input's and the output's side, `[2, K, hidden]`.
        kernel: projection of the normed input to the dynamic kernels, rows ordered by side, tap,
            group, `[2 * K * groups, hidden]`.
        rows: rows of a block.
    """

    base: mx.array
    kernel: Matrix
    rows: int

    def around(self, normed: mx.array) -> tuple[mx.array, Callable[[mx.array], mx.array]]:
        """The filtered input of a sublayer, and what filters its output.

        Args:
            normed: the rows of one or several blocks, `[blocks * rows, hidden]`.
        """
        sides, taps, _ = self.base.shape
        dynamic = self.kernel(normed).reshape(-1, self.rows, sides, taps, self._groups)
        inward, outward = dynamic[:, :, 0], dynamic[:, :, 1]
        return self._filter(normed, inward, 0), lambda x: self._filter(x, outward, 1)

    @property
    def _groups(self) -> int:
        return self.kernel.out_features // (self.base.shape[0] * self.base.shape[1])

    def _filter(self, x: mx.array, dynamic: mx.array, side: int) -> mx.array:
        """One side of the convolution; `dynamic` is `[blocks, rows, K, groups]`."""
        blocks = x.reshape(-1, self.rows, self._groups, x.shape[-1] // self._groups)
        base = self.base[side].reshape(self.base.shape[1], *blocks.shape[2:])
        out = mx.zeros_like(blocks)
        for tap in range(base.shape[0]):
            before = mx.pad(blocks[:, : self.rows - tap], [(0, 0), (tap, 0), (0, 0), (0, 0)])
            # In this order bfloat16 rounds as in the published code.
            out = out + base[tap] * before
            out = out + dynamic[:, :, tap, :, None] * before
        return out.reshape(x.shape)


def convolved(
    convolution: Convolution | None, normed: mx.array
) -> tuple[mx.array, Callable[[mx.array], mx.array]]:
    """See `Convolution.around`; without a convolution both sides are left as they are."""
    return (normed, lambda x: x) if convolution is None else convolution.around(normed)

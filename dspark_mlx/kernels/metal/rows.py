"""Kernel "rows": each row has the bits of a one-row step; weights are read once.

A SIMD-group owns R outputs. Its lanes take the values of K that the lanes of MLX's one-row kernels
(`affine_qmv_fast`, `affine_qmv`) take, in the same order and with the same association; the packed
words are loaded once and meet all M rows of x from registers.

What those kernels do changes with MLX's versions, so that an exact kernel belongs to one version.
`ONE_ROW` holds what is known, each entry compared bit by bit with the compiled kernels of that
version's macOS wheel (tests/metal/test_rows_exact.py).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from importlib import metadata
from typing import Any, ClassVar

import mlx.core as mx
import numpy as np

from ..base import Backend, Product
from .call import call
from .limits import beyond_limits, unpacked

# R: more share what is read of x, fewer need fewer registers; a race says which is quicker.
OUTPUTS_A_SIMD = (4, 2)
SIMDS = 2

SOURCE = """
constexpr int WORDS = VALUES * BITS / 32;        // packed words of a lane
const int K = w_shape[1] * 32 / BITS;
const int N = w_shape[0];
const int words_per_row = K * BITS / 32;
const int groups_per_row = K / GROUP;
const int lane = thread_index_in_simdgroup;
const int n0 = (threadgroup_position_in_grid.x * SIMDS + simdgroup_index_in_threadgroup) * R;
if (n0 >= N) {
  return;
}
float total[M][R];
for (int m = 0; m < M; m++) {
  for (int r = 0; r < R; r++) {
    total[m][r] = 0;
  }
}
for (int k = lane * VALUES; k < K; k += 32 * VALUES) {
  uint packed[R][WORDS];
  float scale[R], bias[R];
  for (int r = 0; r < R; r++) {
    const int n = min(n0 + r, N - 1);
    for (int i = 0; i < WORDS; i++) {
      packed[r][i] = w[n * words_per_row + k * BITS / 32 + i];
    }
    scale[r] = scales[n * groups_per_row + k / GROUP];
    bias[r] = biases[n * groups_per_row + k / GROUP];
  }
  for (int m = 0; m < M; m++) {
    const device T* xm = x + m * K + k;
    float v[VALUES];
    float sum = 0;
    if (BITS == 4) {
      for (int i = 0; i < VALUES; i += 4) {
        if (SUM_IN_T) {
          sum += float(xm[i] + xm[i + 1] + xm[i + 2] + xm[i + 3]);
        } else {
          sum += float(xm[i]) + float(xm[i + 1]) + float(xm[i + 2]) + float(xm[i + 3]);
        }
        v[i] = float(xm[i]);                     // a nibble is used where it lies in its 16 bits:
        v[i + 1] = float(xm[i + 1]) * 0.0625f;   // powers of two, exact
        v[i + 2] = float(xm[i + 2]) * 0.00390625f;
        v[i + 3] = float(xm[i + 3]) * 0.000244140625f;
      }
    } else {
      for (int i = 0; i < VALUES; i++) {
        v[i] = float(xm[i]);
        sum += v[i];
      }
    }
    for (int r = 0; r < R; r++) {
      float dot = 0;
      if (BITS == 4) {
        for (int i = 0; i < VALUES; i += 4) {
          const int h = (packed[r][i / 8] >> (4 * (i % 8))) & 0xffff;
          dot += v[i] * (h & 0x000f) + v[i + 1] * (h & 0x00f0) + v[i + 2] * (h & 0x0f00) +
              v[i + 3] * (h & 0xf000);
        }
      } else {
        for (int i = 0; i < VALUES; i++) {
          dot += v[i] * int((packed[r][i / 4] >> (8 * (i % 4))) & 0xff);
        }
      }
      total[m][r] += scale[r] * dot + sum * bias[r];
    }
  }
}
for (int m = 0; m < M; m++) {
  for (int r = 0; r < R; r++) {
    const float t = simd_sum(total[m][r]);
    if (lane == 0 && n0 + r < N) {
      y[m * N + n0 + r] = T(t);
    }
  }
}
"""


@dataclass(frozen=True)
class OneRow:
    """How a version of MLX computes one row.

    Attributes:
        sum_in_type: with 4 bits, four values of x are added in x's own type, not in float32.
        whole_tiles: `qmv_fast` is taken only where 8 divides the number of outputs.
    """

    sum_in_type: bool
    whole_tiles: bool

    def values_a_lane(self, product: Product) -> int:
        """Consecutive values of K that a lane takes at a time."""
        words = 2 if self._fast(product) else 1
        return words * 32 // product.bits

    def _fast(self, product: Product) -> bool:
        aligned = product.inputs % (2 * 32 // product.bits * 32) == 0
        return aligned and (product.outputs % 8 == 0 or not self.whole_tiles)


ONE_ROW = {
    "0.32.2": OneRow(sum_in_type=True, whole_tiles=True),
    "0.32.3": OneRow(sum_in_type=True, whole_tiles=True),
    "0.32.4": OneRow(sum_in_type=False, whole_tiles=False),
}


@cache
def launch(product: Product, one_row: OneRow, outputs_a_simd: int) -> dict[str, Any]:
    """Template, grid and threadgroup of a product."""
    groups = -(-product.outputs // (outputs_a_simd * SIMDS))
    template = [
        ("T", product.dtype),
        ("M", product.rows),
        ("BITS", product.bits),
        ("GROUP", product.group_size),
        ("VALUES", one_row.values_a_lane(product)),
        ("SUM_IN_T", one_row.sum_in_type),
        ("R", outputs_a_simd),
        ("SIMDS", SIMDS),
    ]
    grid, group = (groups * SIMDS * 32, 1, 1), (SIMDS * 32, 1, 1)
    return {"template": template, "grid": grid, "threadgroup": group}


@dataclass(frozen=True)
class Rows:
    """The exact kernel for one version of MLX.

    Attributes:
        version: of the MLX whose one-row steps are repeated.
        outputs_a_simd: outputs of a SIMD-group, one of `OUTPUTS_A_SIMD`.
    """

    version: str = metadata.version("mlx")
    outputs_a_simd: int = OUTPUTS_A_SIMD[0]
    backend: ClassVar[Backend] = "metal"
    exact = True
    source = SOURCE

    @property
    def name(self) -> str:
        """Its name in `KERNELS`, in profiles and in reports."""
        return f"metal-rows-{self.outputs_a_simd}"

    def why_not(self, product: Product) -> str | None:
        """Why this kernel cannot compute a product, in a few words; None if it can."""
        if self.version not in ONE_ROW:
            return f"one-row steps of MLX {self.version} are not known"
        if product.inputs in (64, 128):
            return f"MLX has a kernel of its own for one row of {product.inputs} columns"
        return beyond_limits(product)

    def __call__(
        self, x: mx.array, weight: mx.array, scales: mx.array, biases: mx.array, product: Product
    ) -> mx.array:
        """The product; see `Kernel`."""
        arrays = (weight, scales, biases, x)
        how = launch(product, ONE_ROW[self.version], self.outputs_a_simd)
        return call("dspark_rows", SOURCE, how, arrays, product)


KERNELS = tuple(Rows(outputs_a_simd=outputs) for outputs in OUTPUTS_A_SIMD)


def one_row_sums(
    x: mx.array,
    weight: mx.array,
    scales: mx.array,
    biases: mx.array,
    product: Product,
    version: str,
) -> np.ndarray:
    """What each lane holds before the SIMD sum, float32 `[rows, outputs, 32]`, nothing fused.

    The arithmetic of `SOURCE` and of MLX's kernels once more, in NumPy: an order of operations
    that a test compares bit by bit. For x in float32.
    """
    values = ONE_ROW[version].values_a_lane(product)
    columns = -(-product.inputs // (32 * values)) * 32 * values
    fill = ((0, 0), (0, columns - product.inputs))
    blocks = (-1, columns // (32 * values), 32, values)  # row, block, lane, value
    v = np.pad(np.array(x), fill).reshape(blocks)
    q = np.pad(unpacked(weight, product), fill).reshape(blocks).astype(np.float32)
    scale, bias = (
        np.pad(np.repeat(np.array(a), product.group_size, axis=1), fill).reshape(blocks)[..., 0]
        for a in (scales, biases)
    )
    total: np.ndarray = np.zeros((product.rows, product.outputs, 32), np.float32)
    step = 4 if product.bits == 4 else 1
    for block in range(blocks[1]):
        sums, dots = np.zeros((product.rows, 32), np.float32), np.zeros_like(total)
        for i in range(0, values, step):
            part: np.ndarray = v[:, block, :, i]
            dot: np.ndarray = v[:, None, block, :, i] * q[None, :, block, :, i]
            for j in range(i + 1, i + step):
                part = part + v[:, block, :, j]
                dot = dot + v[:, None, block, :, j] * q[None, :, block, :, j]
            sums += part
            dots += dot
        total += scale[None, :, block] * dots + sums[:, None] * bias[None, :, block]
    return total

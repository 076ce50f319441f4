"""Kernel "tiles": few rows by 8x8 matrices of the SIMD-group; right, not exact.

A threadgroup owns 8 * RT outputs, and its SIMD-groups take the quantization groups of K in turn.
They multiply 8x8 tiles W[8 n, 8 k] x'[8 k, 8 m]. Which eight values of K make a tile is free as
long as both operands agree: tile s takes values s and PER / 2 + s of four neighbouring words, so
that a lane unpacks the word that it has loaded, and feeds all its tiles from it. TensorFold and
mlx-dspark pack K in this manner too.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any, ClassVar

import mlx.core as mx

from ..base import Backend, Product
from .call import call
from .limits import beyond_limits

# RT: more share what is read of x, fewer make more threadgroups; a race says which is quicker.
TILES_OF_OUTPUTS = (2, 1, 4)

SOURCE = """
constexpr int MT = (M + 7) / 8;                  // tiles along the rows of x
constexpr int PER = 32 / BITS;                   // values in a packed word
constexpr int STEPS = PER / 2;                   // tiles that one word of a lane feeds
constexpr int SPAN = 4 * PER;                    // values of K that those tiles cover
const int K = w_shape[1] * 32 / BITS;
const int N = w_shape[0];
const int words_per_row = K * BITS / 32;
const int groups_per_row = K / GROUP;
const int lane = thread_index_in_simdgroup;
const int simd = simdgroup_index_in_threadgroup;
const int quad = lane / 4;
const int row = (quad & 4) + (lane / 2) % 4;     // where this lane's two elements lie in a tile
const int col = (quad & 2) * 2 + (lane % 2) * 2;
const int n0 = threadgroup_position_in_grid.x * 8 * RT;
threadgroup float part[SIMDS * RT * MT * 64];

simdgroup_matrix<float, 8, 8> total[RT][MT];
for (int t = 0; t < RT; t++) {
  for (int u = 0; u < MT; u++) {
    total[t][u] = make_filled_simdgroup_matrix<float, 8, 8>(0.0f);
  }
}
for (int g = simd; g < groups_per_row; g += SIMDS) {
  float scale[RT], bias[RT];
  for (int t = 0; t < RT; t++) {
    const int n = min(n0 + 8 * t + row, N - 1);
    scale[t] = scales[n * groups_per_row + g];
    bias[t] = biases[n * groups_per_row + g];
  }
  for (int h = 0; h < GROUP / SPAN; h++) {
    const int k = g * GROUP + h * SPAN;
    uint packed[RT];
    for (int t = 0; t < RT; t++) {
      const int n = min(n0 + 8 * t + row, N - 1);
      packed[t] = w[n * words_per_row + k / PER + col / 2];
    }
    float xv[MT][2][STEPS];                      // x'[row, col] and x'[row, col + 1] of each tile
    for (int u = 0; u < MT; u++) {
      for (int j = 0; j < 2; j++) {
        const int m = 8 * u + col + j;
        const device T* xm = x + min(m, M - 1) * K + k + (row / 2) * PER + (row % 2) * STEPS;
        for (int s = 0; s < STEPS; s++) {
          xv[u][j][s] = m < M ? float(xm[s]) : 0.0f;
        }
      }
    }
    for (int s = 0; s < STEPS; s++) {
      for (int t = 0; t < RT; t++) {
        const float q0 = float((packed[t] >> (BITS * s)) & ((1 << BITS) - 1));
        const float q1 = float((packed[t] >> (BITS * (s + STEPS))) & ((1 << BITS) - 1));
        simdgroup_matrix<float, 8, 8> a;
        a.thread_elements()[0] = fma(scale[t], q0, bias[t]);
        a.thread_elements()[1] = fma(scale[t], q1, bias[t]);
        for (int u = 0; u < MT; u++) {
          simdgroup_matrix<float, 8, 8> b;
          b.thread_elements()[0] = xv[u][0][s];
          b.thread_elements()[1] = xv[u][1][s];
          simdgroup_multiply_accumulate(total[t][u], a, b, total[t][u]);
        }
      }
    }
  }
}
for (int t = 0; t < RT; t++) {
  for (int u = 0; u < MT; u++) {
    for (int j = 0; j < 2; j++) {
      part[((simd * RT + t) * MT + u) * 64 + row * 8 + col + j] = total[t][u].thread_elements()[j];
    }
  }
}
threadgroup_barrier(mem_flags::mem_threadgroup);
for (int e = thread_index_in_threadgroup; e < RT * MT * 64; e += SIMDS * 32) {
  float t = 0;
  for (int p = 0; p < SIMDS; p++) {
    t += part[p * RT * MT * 64 + e];
  }
  const int m = (e / 64) % MT * 8 + e % 8;
  const int n = n0 + (e / 64) / MT * 8 + (e % 64) / 8;
  if (m < M && n < N) {
    y[m * N + n] = T(t);
  }
}
"""


@cache
def launch(product: Product, tiles_of_outputs: int) -> dict[str, Any]:
    """Template, grid and threadgroup of a product."""
    simds = 8 // tiles_of_outputs
    groups = -(-product.outputs // (8 * tiles_of_outputs))
    template = [
        ("T", product.dtype),
        ("M", product.rows),
        ("BITS", product.bits),
        ("GROUP", product.group_size),
        ("RT", tiles_of_outputs),
        ("SIMDS", simds),
    ]
    grid, group = (groups * simds * 32, 1, 1), (simds * 32, 1, 1)
    return {"template": template, "grid": grid, "threadgroup": group}


@dataclass(frozen=True)
class Tiles:
    """The kernel of matrices.

    Attributes:
        tiles_of_outputs: of a threadgroup, one of `TILES_OF_OUTPUTS`.
    """

    tiles_of_outputs: int = TILES_OF_OUTPUTS[0]
    backend: ClassVar[Backend] = "metal"
    exact = False
    source = SOURCE

    @property
    def name(self) -> str:
        """Its name in `KERNELS`, in profiles and in reports."""
        return f"metal-tiles-{8 * self.tiles_of_outputs}"

    def why_not(self, product: Product) -> str | None:
        """Why this kernel cannot compute a product, in a few words; None if it can."""
        return beyond_limits(product)

    def __call__(
        self, x: mx.array, weight: mx.array, scales: mx.array, biases: mx.array, product: Product
    ) -> mx.array:
        """The product; see `Kernel`."""
        arrays = (weight, scales, biases, x)
        how = launch(product, self.tiles_of_outputs)
        return call("dspark_tiles", SOURCE, how, arrays, product)


KERNELS = tuple(Tiles(tiles) for tiles in TILES_OF_OUTPUTS)

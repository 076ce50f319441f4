"""Causal attention of 4 to 16 rows over a short context on NVIDIA GPUs, in one launch.

MLX computes it of up to 3 rows in one launch, and of more, or under the mask of a compiled forward,
in about ten: products, mask, softmax and copies. A block of this kernel computes one row of one
head. Its warps share out the keys, each with a running maximum and sum (online softmax), and are
put together at the end. Every row reads all keys again, from the GPU's cache, which pays while they
are few.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache, lru_cache
from typing import Any

import mlx.core as mx

from ..attention import Heads
from ..base import Backend

MIN_ROWS, MAX_ROWS, MAX_KEYS = 4, 16, 1024
HEAD_DIMS = (64, 128, 256)
DTYPES = (mx.bfloat16, mx.float16, mx.float32)
_WARPS = 16

SOURCE = """\
constexpr int V = D / 32;
const int L = q_shape[2], group = q_shape[1] / k_shape[1];
const int head = blockIdx.x, row = blockIdx.y, text = blockIdx.z, n = end[text];
const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
const T* query = q + text * q_strides[0] + head * q_strides[1] + row * q_strides[2] + lane * V;
const T* key = k + text * k_strides[0] + head / group * k_strides[1] + lane * V;
const T* value = v + text * v_strides[0] + head / group * v_strides[1] + lane * V;
float a[V], o[V] = {}, top = -1e30f, total = 0;
for (int i = 0; i < V; i++) a[i] = scale[0] * 1.44269504f * float(query[i]);
for (int at = warp; at < n - L + row + 1; at += WARPS) {
  const auto b = *(const AlignedVector<T, V>*)(key + at * k_strides[2]);
  const auto c = *(const AlignedVector<T, V>*)(value + at * v_strides[2]);
  float score = 0;
  for (int i = 0; i < V; i++) score += a[i] * float(b.val[i]);
  for (int i = 16; i; i /= 2) score += __shfl_xor_sync(~0u, score, i);
  const float now = fmaxf(top, score), old = exp2f(top - now), weight = exp2f(score - now);
  top = now;
  total = total * old + weight;
  for (int i = 0; i < V; i++) o[i] = o[i] * old + weight * float(c.val[i]);
}
__shared__ float tops[WARPS], totals[WARPS], parts[WARPS][D];
if (lane == 0) { tops[warp] = top; totals[warp] = total; }
for (int i = 0; i < V; i++) parts[warp][lane * V + i] = o[i];
__syncthreads();
if (threadIdx.x < D) {
  float most = -1e30f, sum = 0, result = 0;
  for (int w = 0; w < WARPS; w++) most = fmaxf(most, tops[w]);
  for (int w = 0; w < WARPS; w++) {
    const float part = exp2f(tops[w] - most);
    sum += totals[w] * part;
    result += parts[w][threadIdx.x] * part;
  }
  out[((text * L + row) * q_shape[1] + head) * D + threadIdx.x] = T(result / sum);
}
"""


@dataclass(frozen=True)
class FewRowsAttention:
    """The kernel; see `attention.AttentionKernel`."""

    name: str = "cuda-few-rows-attention"
    backend: Backend = "cuda"
    source: str = SOURCE

    def why_not(self, heads: Heads) -> str | None:
        """Why it cannot compute attention of this form; None if it can."""
        if heads.head_dim not in HEAD_DIMS or heads.dtype not in DTYPES:
            return f"heads of {heads.head_dim} in {heads.dtype}"
        if not (1 if heads.compiled else MIN_ROWS) <= heads.rows <= MAX_ROWS:
            return f"{heads.rows} rows"
        return None

    @property
    def max_keys(self) -> int:
        """The longest context that it serves, the rows included."""
        return MAX_KEYS

    def __call__(
        self, q: mx.array, k: mx.array, v: mx.array, scale: float, end: mx.array | None = None
    ) -> mx.array:
        """The attention; see `attention.AttentionKernel`."""
        batch, heads, rows, width = q.shape
        (y,) = _compiled()(
            inputs=[q, k, v, _scale(scale), _counts(k.shape[2], batch) if end is None else end],
            template=[("T", q.dtype), ("D", width), ("WARPS", _WARPS)],
            grid=(heads * 32 * _WARPS, rows, batch),
            threadgroup=(32 * _WARPS, 1, 1),
            output_shapes=[(batch, rows, heads, width)],
            output_dtypes=[q.dtype],
        )
        # A model puts the heads of a row side by side next, which costs nothing so.
        return y.swapaxes(1, 2)


@cache
def _scale(scale: float) -> mx.array:
    return mx.array([scale], mx.float32)


@lru_cache(maxsize=64)
def _counts(keys: int, batch: int) -> mx.array:
    return mx.array([keys] * batch, mx.int32)


@cache
def _compiled() -> Any:
    return mx.fast.cuda_kernel(
        name="few_rows_attention",
        input_names=["q", "k", "v", "scale", "end"],
        output_names=["out"],
        source=SOURCE,
        ensure_row_contiguous=False,
    )

"""Products of 2 to 16 rows on NVIDIA GPUs: the weights are read once, for all rows.

The tensor cores multiply 16 rows of the matrix by 8 rows of x (m16n8k16). Weights enter as the
integers that they are packed as, which bfloat16 and float16 hold exactly; scale and bias follow in
float32, once for each group: y += scale * sum(q * x) + bias * sum(x). So a weight is never rounded.
A float32 x enters as the sum of three bfloat16 numbers.

In a fragment, thread t of 4 holds columns 2t, 2t+1, 2t+8 and 2t+9. A sum does not depend on what
its columns are called: here they are consecutive ones of the matrix, so that each thread reads
whole words of packed weights and nothing is exchanged. The warps of a block share out the columns.

One launch may multiply x by several matrices: the blocks of each follow those of the one before it.
What differs between products is part of the text, since MLX writes arguments of templates into it
anew in every call.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cache
from itertools import chain
from typing import Any, TypeAlias

import mlx.core as mx

from ..base import Backend, Matrix, Product

MIN_ROWS, MAX_ROWS = 2, 16
BITS, GROUP_SIZES = (4, 8), (32, 64, 128)
_TYPES = {mx.bfloat16: "__nv_bfloat16", mx.float16: "__half", mx.float32: "float"}
DTYPES = tuple(_TYPES)

_HEADER = r"""
typedef unsigned int word;

template <typename T> struct Half { typedef __nv_bfloat16 type; };
template <> struct Half<__half> { typedef __half type; };

__device__ inline void mma(float* c, const word* a, const word* b, __nv_bfloat16) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3},{%4,%5,%6,%7},{%8,%9},"
      "{%0,%1,%2,%3};" : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}
__device__ inline void mma(float* c, const word* a, const word* b, __half) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3},{%4,%5,%6,%7},{%8,%9},"
      "{%0,%1,%2,%3};" : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

// 0x4300 is 128 in bfloat16 and 0x6400 is 1024 in float16; their last bits count ones.
__device__ inline word less(word a, __nv_bfloat16) {
  const word base = 0x43004300;
  __nv_bfloat162 r = __hsub2(*(__nv_bfloat162*)&a, *(__nv_bfloat162*)&base);
  return *(word*)&r;
}
__device__ inline word less(word a, __half) {
  const word base = 0x64006400;
  __half2 r = __hsub2(*(__half2*)&a, *(__half2*)&base);
  return *(word*)&r;
}
__device__ inline word base_of(__nv_bfloat16) { return 0x43004300; }
__device__ inline word base_of(__half) { return 0x64006400; }
__device__ inline word one_of(__nv_bfloat16) { return 0x3F803F80; }
__device__ inline word one_of(__half) { return 0x3C003C00; }

__device__ inline word bytes(word w, int i, __half h) {
  return less(__byte_perm(w, 0x64646464, i ? 0x4342 : 0x4140), h);
}
__device__ inline word bytes(word w, int i, __nv_bfloat16) {
  // 0x4B000000 is 2^23 in float32.
  float a = __uint_as_float(__byte_perm(w, 0x4B000000, 0x7650 + 2 * i)) - 8388608.0f;
  float b = __uint_as_float(__byte_perm(w, 0x4B000000, 0x7651 + 2 * i)) - 8388608.0f;
  __nv_bfloat162 r = __floats2bfloat162_rn(a, b);
  return *(word*)&r;
}

// Eight weights of one row as four pairs: of 4 bits columns (i, i + 4), of 8 bits (2i, 2i + 1).
template <int BITS, typename H> __device__ inline void unpack(const word* w, word* pairs) {
#pragma unroll
  for (int i = 0; i < 4; i++)
    pairs[i] = BITS == 4 ? less(((w[0] >> (4 * i)) & 0x000F000F) | base_of(H()), H())
                         : bytes(w[i / 2], i % 2, H());
}

// The same eight columns of a row of x, in the same pairs.
template <int BITS, typename H> __device__ inline void read_x(const H* x, word (*pairs)[4]) {
  uint4 v = x ? *(const uint4*)x : make_uint4(0, 0, 0, 0);
  word p[4] = {v.x, v.y, v.z, v.w};
#pragma unroll
  for (int i = 0; i < 4; i++)
    pairs[0][i] = BITS == 4 ? __byte_perm(p[i / 2], p[i / 2 + 2], i % 2 ? 0x7632 : 0x5410) : p[i];
}
template <int BITS, typename H> __device__ inline void read_x(const float* x, word (*pairs)[4]) {
  float v[8];
#pragma unroll
  for (int i = 0; i < 8; i++) v[i] = x ? x[i] : 0.0f;
#pragma unroll
  for (int part = 0; part < 3; part++)
#pragma unroll
    for (int i = 0; i < 4; i++) {
      int a = BITS == 4 ? i : 2 * i, b = BITS == 4 ? i + 4 : 2 * i + 1;
      __nv_bfloat162 r = __floats2bfloat162_rn(v[a], v[b]);
      pairs[part][i] = *(word*)&r;
      v[a] -= __bfloat162float(r.x);
      v[b] -= __bfloat162float(r.y);
    }
}
"""

_FIRST = """
int block = blockIdx.x, N = scales0_shape[0];
const word* weight = weight0;
const T* scales = scales0;
const T* biases = biases0;
T* out = out0;
"""
# The blocks behind those of the matrix before it.
_NEXT = """
if (block >= (N + 16 * TILES - 1) / (16 * TILES)) {
  block -= (N + 16 * TILES - 1) / (16 * TILES);
  N = scales%_shape[0];
  weight = weight%;
  scales = scales%;
  biases = biases%;
  out = out%;
}
"""

_SOURCE = r"""
typedef Half<T>::type H;
constexpr int UNITS = GROUP >= 64 ? 2 : 1;           // eights of columns of a thread and step
constexpr int STEP = 32 * UNITS;                     // columns of a warp's step, within a group
constexpr int WORDS = UNITS * BITS / 4;
constexpr int PARTS = sizeof(T) == 4 ? 3 : 1;
const int K = x_shape[x_ndim - 1];
int M = 1;
for (int i = 0; i < x_ndim - 1; i++) M *= x_shape[i];
const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
const int first = block * 16 * TILES, steps = K / STEP;
const word one = one_of(H()), ones[4] = {one, one, one, one};
float y[TILES][EIGHTS][4] = {};
for (int begin = warp; begin < steps; begin += WARPS * AHEAD) {
  AlignedVector<word, WORDS> w[AHEAD][TILES][2];
#pragma unroll
  for (int a = 0; a < AHEAD; a++)
#pragma unroll
    for (int i = 0; i < TILES * 2; i++) {
      long row = min(first + 8 * i + g, N - 1), step = min(begin + a * WARPS, steps - 1);
      long at = row * (K / 32 * BITS) + (step * STEP + t * 8 * UNITS) / 8 * BITS / 4;
      w[a][i / 2][i % 2] = *(const AlignedVector<word, WORDS>*)(weight + at);
    }
#pragma unroll
  for (int a = 0; a < AHEAD; a++) {
    const int step = begin + a * WARPS;
    if (step >= steps) break;
    float sums[EIGHTS][4] = {}, dots[TILES][EIGHTS][4] = {};
#pragma unroll
    for (int u = 0; u < UNITS; u++) {
      word b[EIGHTS][PARTS][4];
#pragma unroll
      for (int e = 0; e < EIGHTS; e++) {
        const long row = 8 * e + g;
        const T* from = x + row * K + step * STEP + (t * UNITS + u) * 8;
        read_x<BITS, H>(row < M ? from : nullptr, b[e]);
      }
#pragma unroll
      for (int i = 0; i < 2 * EIGHTS * PARTS; i++)
        mma(sums[i / 2 % EIGHTS], ones, b[i / 2 % EIGHTS][i / 2 / EIGHTS] + i % 2 * 2, H());
#pragma unroll
      for (int tile = 0; tile < TILES; tile++) {
        word p[2][4];
        unpack<BITS, H>(w[a][tile][0].val + u * BITS / 4, p[0]);
        unpack<BITS, H>(w[a][tile][1].val + u * BITS / 4, p[1]);
#pragma unroll
        for (int i = 0; i < 2; i++) {
          const word fragment[4] = {p[0][2 * i], p[1][2 * i], p[0][2 * i + 1], p[1][2 * i + 1]};
#pragma unroll
          for (int j = 0; j < EIGHTS * PARTS; j++)
            mma(dots[tile][j % EIGHTS], fragment, b[j % EIGHTS][j / EIGHTS] + 2 * i, H());
        }
      }
    }
#pragma unroll
    for (int i = 0; i < TILES * 2; i++) {
      const long row = min(first + 8 * i + g, N - 1), at = row * (K / GROUP) + step * STEP / GROUP;
      const float scale = float(scales[at]), bias = float(biases[at]);
#pragma unroll
      for (int j = 0; j < EIGHTS * 2; j++) {
        const int e = j / 2, c = i % 2 * 2 + j % 2;
        y[i / 2][e][c] += scale * dots[i / 2][e][c] + bias * sums[e][c];
      }
    }
  }
}
__shared__ float parts[WARPS][TILES * EIGHTS * 4][32];
#pragma unroll
for (int i = 0; i < TILES * EIGHTS * 4; i++)
  parts[warp][i][lane] = y[i / 4 / EIGHTS][i / 4 % EIGHTS][i % 4];
__syncthreads();
for (int i = warp; i < TILES * EIGHTS * 4; i += WARPS) {
  float total = 0;
#pragma unroll
  for (int each = 0; each < WARPS; each++) total += parts[each][i][lane];
  const int column = first + i / 4 / EIGHTS * 16 + i % 4 / 2 * 8 + g;
  const int row = i / 4 % EIGHTS * 8 + t * 2 + i % 2;
  if (row < M && column < N) out[long(row) * N + column] = T(total);
}
"""


def _short(text: str) -> str:
    """The text without comments and blanks that nothing needs: MLX copies it in every call."""
    lines = (re.sub(r"//.*", "", line).strip() for line in text.splitlines())
    return "\n".join(line for line in lines if line)


HEADER, SOURCE = _short(_HEADER), _short(_SOURCE)


_Launch: TypeAlias = tuple[Callable[..., list[mx.array]], tuple[int, ...], dict[str, Any]]
"""A compiled kernel, the outputs of its products, and how it is launched."""


@dataclass(frozen=True)
class FewRows:
    """The kernel with its launch sizes; see `base.Kernel`.

    Attributes:
        warps: warps of a block, which share out the columns of x.
        tiles: sixteens of the matrix's rows of a block.
        ahead: steps whose weights are read before the first is used.
    """

    warps: int
    tiles: int
    ahead: int
    backend: Backend = "cuda"
    exact: bool = False
    _launches: dict[Sequence[Product], _Launch] = field(
        default_factory=dict, init=False, compare=False, repr=False
    )

    @property
    def name(self) -> str:
        """Its name in `KERNELS`."""
        return f"cuda-few-rows-{self.warps}x{self.tiles}x{self.ahead}"

    @property
    def source(self) -> str:
        """All text that is compiled, and the launch sizes."""
        return "\n".join((HEADER, _FIRST, _NEXT, SOURCE, f"{self.warps} {self.tiles} {self.ahead}"))

    def why_not(self, product: Product) -> str | None:
        """Why it cannot compute a product; None if it can."""
        if product.mode != "affine" or product.bits not in BITS:
            return f"{product.mode} weights of {product.bits} bits"
        if product.group_size not in GROUP_SIZES or product.inputs % product.group_size:
            return f"groups of {product.group_size} in {product.inputs} columns"
        if product.dtype not in DTYPES:
            return f"x of {product.dtype}"
        if not MIN_ROWS <= product.rows <= MAX_ROWS:
            return f"{product.rows} rows"
        return None

    def __call__(
        self, x: mx.array, weight: mx.array, scales: mx.array, biases: mx.array, product: Product
    ) -> mx.array:
        """The product; see `base.Kernel`."""
        return self.together(x, ((weight, scales, biases),), (product,))[0]

    def together(
        self, x: mx.array, matrices: Sequence[Matrix], products: Sequence[Product]
    ) -> list[mx.array]:
        """The products of one launch; see `base.TogetherKernel`."""
        launch = self._launches.get(products)
        if launch is None:
            launch = self._launches[products] = self._launch(products)
        compiled, outputs, settings = launch
        rows = x.shape[:-1]
        shapes = [(*rows, count) for count in outputs]
        return compiled(inputs=[x, *chain(*matrices)], output_shapes=shapes, **settings)

    def _launch(self, products: Sequence[Product]) -> _Launch:
        first = products[0]
        sizes = {
            "BITS": first.bits,
            "GROUP": first.group_size,
            "EIGHTS": 1 if first.rows <= 8 else 2,
            "WARPS": self.warps,
            "TILES": self.tiles,
            "AHEAD": self.ahead,
        }
        outputs = tuple(product.outputs for product in products)
        blocks = sum(-(-count // (16 * self.tiles)) for count in outputs)
        settings = {
            "grid": (blocks * 32 * self.warps, 1, 1),
            "threadgroup": (32 * self.warps, 1, 1),
            "output_dtypes": [first.dtype] * len(outputs),
        }
        return _compiled(first.dtype, len(outputs), *sizes.items()), outputs, settings


@cache
def _compiled(dtype: mx.Dtype, count: int, *sizes: tuple[str, int]) -> Any:
    """The kernel of so many matrices."""
    names = [f"{name}{i}" for i in range(count) for name in ("weight", "scales", "biases")]
    constants = [f"constexpr int {name} = {value};" for name, value in sizes]
    pointers = map(_short, (_FIRST, *(_NEXT.replace("%", str(i)) for i in range(1, count))))
    return mx.fast.cuda_kernel(
        name="few_rows",
        input_names=["x", *names],
        output_names=[f"out{i}" for i in range(count)],
        source="\n".join((f"using T = {_TYPES[dtype]};", *constants, *pointers, SOURCE)),
        header=HEADER,
    )


# The launch sizes that were quickest for some matrix of some model, at 4 or 8 bits, on an H100.
KERNELS = tuple(FewRows(*sizes) for sizes in ((4, 1, 1), (8, 1, 4), (16, 1, 1), (16, 1, 2)))

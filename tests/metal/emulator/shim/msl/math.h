// metal_math and metal_integer. Transcendental functions are the host's.
#pragma once

namespace metal {
#define MSL_ORDER(T)                                               \
  METAL_FUNC T min(T a, T b) { return a < b ? a : b; }             \
  METAL_FUNC T max(T a, T b) { return a > b ? a : b; }             \
  METAL_FUNC T clamp(T x, T low, T high) { return min(max(x, low), high); }
MSL_ORDER(int)
MSL_ORDER(uint)
MSL_ORDER(long)
MSL_ORDER(ulong)
MSL_ORDER(short)
MSL_ORDER(ushort)
MSL_ORDER(uchar)
MSL_ORDER(float)
MSL_ORDER(half)

#define MSL_ONE(NAME) \
  METAL_FUNC float NAME(float a) { return ::NAME##f(a); }
#define MSL_TRANSCENDENTAL                                                                          \
  MSL_ONE(exp) MSL_ONE(exp2) MSL_ONE(exp10) MSL_ONE(log) MSL_ONE(log2) MSL_ONE(log10) MSL_ONE(sin)  \
  MSL_ONE(cos) MSL_ONE(tan) MSL_ONE(tanh) MSL_ONE(sinh) MSL_ONE(cosh) MSL_ONE(asin) MSL_ONE(acos)   \
  MSL_ONE(atan) MSL_ONE(asinh) MSL_ONE(acosh) MSL_ONE(atanh) MSL_ONE(sqrt) MSL_ONE(floor)           \
  MSL_ONE(ceil) MSL_ONE(trunc) MSL_ONE(round) MSL_ONE(rint) MSL_ONE(fabs)                           \
  METAL_FUNC float rsqrt(float a) { return 1.0f / ::sqrtf(a); }                                     \
  METAL_FUNC float pow(float a, float b) { return ::powf(a, b); }                                   \
  METAL_FUNC float powr(float a, float b) { return ::powf(a, b); }                                  \
  METAL_FUNC float fmod(float a, float b) { return ::fmodf(a, b); }                                 \
  METAL_FUNC float atan2(float a, float b) { return ::atan2f(a, b); }                               \
  METAL_FUNC float fmax(float a, float b) { return ::fmaxf(a, b); }                                 \
  METAL_FUNC float fmin(float a, float b) { return ::fminf(a, b); }                                 \
  METAL_FUNC float divide(float a, float b) { return a / b; }
MSL_TRANSCENDENTAL
namespace fast {
MSL_TRANSCENDENTAL
}
namespace precise {
MSL_TRANSCENDENTAL
}

METAL_FUNC float abs(float a) { return ::fabsf(a); }
METAL_FUNC int abs(int a) { return a < 0 ? -a : a; }
METAL_FUNC half abs(half a) { return a < 0 ? -a : a; }
METAL_FUNC float ldexp(float a, int b) { return ::ldexpf(a, b); }
METAL_FUNC float copysign(float a, float b) { return ::copysignf(a, b); }
METAL_FUNC float fma(float a, float b, float c) { return __builtin_fmaf(a, b, c); }
METAL_FUNC half fma(half a, half b, half c) { return half(double(a) * double(b) + double(c)); }
METAL_FUNC bool isnan(float a) { return a != a; }
METAL_FUNC bool isinf(float a) { return __builtin_isinf(a); }
METAL_FUNC bool isfinite(float a) { return __builtin_isfinite(a); }
METAL_FUNC bool signbit(float a) { return __builtin_signbit(a); }
template <typename T>
METAL_FUNC T select(T a, T b, bool condition) {
  return condition ? b : a;
}
METAL_FUNC float dot(float2 a, float2 b) { return a[0] * b[0] + a[1] * b[1]; }
METAL_FUNC float dot(float4 a, float4 b) { return a[0] * b[0] + a[1] * b[1] + a[2] * b[2] + a[3] * b[3]; }
METAL_FUNC uint popcount(uint x) { return __builtin_popcount(x); }
METAL_FUNC uint clz(uint x) { return x ? __builtin_clz(x) : 32; }
METAL_FUNC uint ctz(uint x) { return x ? __builtin_ctz(x) : 32; }
METAL_FUNC uint reverse_bits(uint x) { return __builtin_bitreverse32(x); }
METAL_FUNC uint extract_bits(uint x, uint offset, uint bits) {
  return bits == 32 ? x >> offset : (x >> offset) & ((1u << bits) - 1);
}
}  // namespace metal

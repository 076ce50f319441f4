// Apple's scalar intrinsics, by the names that they have in the AIR of a metallib.
//
// Transcendental functions are the C library's: right for comparing two kernels that call the same
// ones, not for the last bits of Apple's own.
#include <cmath>
#include <cstdint>
#include <cstring>

#define AIR(NAME, ID, T, PARAMETERS, VALUE) \
  T ID PARAMETERS asm(NAME);                \
  T ID PARAMETERS { return VALUE; }
typedef float float4 __attribute__((ext_vector_type(4)));
#define ONE(NAME, ID, VALUE) AIR(NAME, ID, float, (float x), VALUE)
#define TWO(NAME, ID, VALUE) AIR(NAME, ID, float, (float x, float y), VALUE)

extern "C" {
AIR("air.min.s.i32", air_min_s32, int32_t, (int32_t x, int32_t y), x < y ? x : y)
AIR("air.max.s.i32", air_max_s32, int32_t, (int32_t x, int32_t y), x > y ? x : y)
AIR("air.min.u.i32", air_min_u32, uint32_t, (uint32_t x, uint32_t y), x < y ? x : y)
AIR("air.max.u.i32", air_max_u32, uint32_t, (uint32_t x, uint32_t y), x > y ? x : y)
AIR("air.min.s.i16", air_min_s16, int16_t, (int16_t x, int16_t y), x < y ? x : y)
AIR("air.clamp.s.i32", air_clamp_s32, int32_t, (int32_t x, int32_t low, int32_t high),
    x < low ? low : x > high ? high : x)
TWO("air.fmax.f32", air_fmax, fmaxf(x, y))
TWO("air.fmin.f32", air_fmin, fminf(x, y))
TWO("air.fast_fmax.f32", air_fast_fmax, fmaxf(x, y))
TWO("air.fast_fmin.f32", air_fast_fmin, fminf(x, y))
ONE("air.fabs.f32", air_fabs, fabsf(x))
ONE("air.fast_fabs.f32", air_fast_fabs, fabsf(x))
ONE("air.exp.f32", air_exp, expf(x))
ONE("air.fast_exp.f32", air_fast_exp, expf(x))
ONE("air.precise_exp.f32", air_precise_exp, expf(x))
ONE("air.exp2.f32", air_exp2, exp2f(x))
ONE("air.fast_exp2.f32", air_fast_exp2, exp2f(x))
// In which order Apple adds these four is not published.
AIR("air.dot.v4f32", air_dot4, float, (float4 x, float4 y), x[0] * y[0] + x[1] * y[1] + x[2] * y[2] + x[3] * y[3])
// Whether all lanes hold the same: a hint, to which "not known" is right.
AIR("air.is_uniform.i1", air_uniform_bool, bool, (bool), false)
AIR("air.is_uniform.i32", air_uniform_int, bool, (int32_t), false)
ONE("air.sqrt.f32", air_sqrt, sqrtf(x))
ONE("air.rsqrt.f32", air_rsqrt, 1.0f / sqrtf(x))
ONE("air.fast_rsqrt.f32", air_fast_rsqrt, 1.0f / sqrtf(x))
ONE("air.precise_rsqrt.f32", air_precise_rsqrt, 1.0f / sqrtf(x))
ONE("air.cos.f32", air_cos, cosf(x))
ONE("air.sin.f32", air_sin, sinf(x))
ONE("air.fast_cos.f32", air_fast_cos, cosf(x))
ONE("air.fast_sin.f32", air_fast_sin, sinf(x))

// What clang calls to round to bfloat16, where the C library has no such function.
__bf16 __truncsfbf2(float value) {
  uint32_t bits;
  memcpy(&bits, &value, 4);
  if (std::isnan(value)) bits |= 0x400000;
  else bits += 0x7fff + ((bits >> 16) & 1);
  const uint16_t high = bits >> 16;
  __bf16 result;
  memcpy(&result, &high, 2);
  return result;
}
__bf16 __truncdfbf2(double value) { return __truncsfbf2(float(value)); }
}

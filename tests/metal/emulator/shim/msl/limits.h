// numeric_limits, and mem_flags with the barriers.
#pragma once

namespace metal {
template <typename T>
struct numeric_limits;

#define MSL_INTEGER_LIMITS(T, LOW, HIGH)           \
  template <>                                      \
  struct numeric_limits<T> {                       \
    static constexpr T max() { return HIGH; }      \
    static constexpr T min() { return LOW; }       \
    static constexpr T lowest() { return LOW; }    \
  };
MSL_INTEGER_LIMITS(int8_t, -128, 127)
MSL_INTEGER_LIMITS(uint8_t, 0, 255)
MSL_INTEGER_LIMITS(int16_t, -32768, 32767)
MSL_INTEGER_LIMITS(uint16_t, 0, 65535)
MSL_INTEGER_LIMITS(int32_t, INT32_MIN, INT32_MAX)
MSL_INTEGER_LIMITS(uint32_t, 0, UINT32_MAX)
MSL_INTEGER_LIMITS(int64_t, INT64_MIN, INT64_MAX)
MSL_INTEGER_LIMITS(uint64_t, 0, UINT64_MAX)

#define MSL_FLOAT_LIMITS(T, SMALLEST, LARGEST, EPSILON)                    \
  template <>                                                              \
  struct numeric_limits<T> {                                               \
    static constexpr T max() { return T(LARGEST); }                        \
    static constexpr T min() { return T(SMALLEST); }                       \
    static constexpr T lowest() { return T(-LARGEST); }                    \
    static constexpr T infinity() { return T(__builtin_inff()); }          \
    static constexpr T quiet_NaN() { return T(__builtin_nanf("")); }       \
    static constexpr T epsilon() { return T(EPSILON); }                    \
  };
MSL_FLOAT_LIMITS(float, 1.175494351e-38f, 3.402823466e38f, 1.1920929e-07f)
MSL_FLOAT_LIMITS(half, 6.103515625e-05f, 65504.0f, 9.765625e-04f)
MSL_FLOAT_LIMITS(bfloat, 1.175494351e-38f, 3.38953139e38f, 7.8125e-03f)

enum class mem_flags { mem_none = 0, mem_device = 1, mem_threadgroup = 2, mem_texture = 4 };
constexpr mem_flags operator|(mem_flags a, mem_flags b) { return mem_flags(int(a) | int(b)); }
METAL_FUNC void threadgroup_barrier(mem_flags f) { emulator_threadgroup_barrier(int(f)); }
METAL_FUNC void simdgroup_barrier(mem_flags f) { emulator_simdgroup_barrier(int(f)); }
}  // namespace metal

// SIMD and quad operations; each is a meeting of the SIMD-group's lanes in the runtime.
#pragma once

namespace metal {
template <typename T>
constexpr int element_type() {
  return std::is_same<T, float>::value    ? F32
         : std::is_same<T, half>::value   ? F16
         : std::is_same<T, bfloat>::value ? BF16
         : sizeof(T) == 8                 ? I64
         : std::is_signed<T>::value       ? I32
                                          : U32;
}

template <typename T>
METAL_FUNC T simd_call(int op, T x, int param) {
  if constexpr (std::is_integral<T>::value && sizeof(T) < 4) {
    int32_t wide = x;
    emulator_simd(op, I32, &wide, &wide, 4, param);
    return T(wide);
  } else {
    emulator_simd(op, element_type<T>(), &x, &x, sizeof(T), param);
    return x;
  }
}

#define MSL_REDUCTION(NAME, OP)  \
  template <typename T>          \
  METAL_FUNC T NAME(T x) {       \
    return simd_call(OP, x, 0);  \
  }
MSL_REDUCTION(simd_sum, SIMD_SUM)
MSL_REDUCTION(simd_product, SIMD_PRODUCT)
MSL_REDUCTION(simd_max, SIMD_MAX)
MSL_REDUCTION(simd_min, SIMD_MIN)
MSL_REDUCTION(simd_and, SIMD_AND)
MSL_REDUCTION(simd_or, SIMD_OR)
MSL_REDUCTION(simd_xor, SIMD_XOR)
MSL_REDUCTION(simd_prefix_inclusive_sum, SIMD_PREFIX_INCLUSIVE_SUM)
MSL_REDUCTION(simd_prefix_exclusive_sum, SIMD_PREFIX_EXCLUSIVE_SUM)
MSL_REDUCTION(simd_broadcast_first, SIMD_BROADCAST_FIRST)
MSL_REDUCTION(quad_sum, QUAD_SUM)

#define MSL_SHUFFLE(NAME, OP)          \
  template <typename T>                \
  METAL_FUNC T NAME(T x, ushort lane) { \
    return simd_call(OP, x, lane);     \
  }
MSL_SHUFFLE(simd_shuffle, SIMD_SHUFFLE)
MSL_SHUFFLE(simd_broadcast, SIMD_SHUFFLE)
MSL_SHUFFLE(simd_shuffle_xor, SIMD_SHUFFLE_XOR)
MSL_SHUFFLE(simd_shuffle_down, SIMD_SHUFFLE_DOWN)
MSL_SHUFFLE(simd_shuffle_up, SIMD_SHUFFLE_UP)

template <typename T>
METAL_FUNC T simd_shuffle_and_fill_up(T x, T fill, ushort lanes) {
  const T shuffled = simd_shuffle_up(x, lanes);
  return emulator_lane_index() < lanes ? fill : shuffled;
}
template <typename T>
METAL_FUNC T simd_shuffle_and_fill_down(T x, T fill, ushort lanes) {
  const T shuffled = simd_shuffle_down(x, lanes);
  return emulator_lane_index() + lanes > 31 ? fill : shuffled;
}
METAL_FUNC bool simd_any(bool x) { return simd_call(SIMD_OR, int(x), 0) != 0; }
METAL_FUNC bool simd_all(bool x) { return simd_call(SIMD_AND, int(x), 0) != 0; }
}  // namespace metal

// simdgroup_matrix: two elements a lane, multiplied by the runtime.
#pragma once

namespace metal {
template <typename T, int R, int C>
struct simdgroup_matrix {
  static_assert(R == 8 && C == 8, "only 8x8");
  typedef vec<T, 2> storage;
  storage elements;
  METAL_FUNC storage& thread_elements() { return elements; }
  METAL_FUNC const storage& thread_elements() const { return elements; }
};
typedef simdgroup_matrix<float, 8, 8> simdgroup_float8x8;
typedef simdgroup_matrix<half, 8, 8> simdgroup_half8x8;
#ifndef MSL_CHECK_TYPES
typedef simdgroup_matrix<bfloat, 8, 8> simdgroup_bfloat8x8;
#endif

template <typename T, int R, int C>
METAL_FUNC simdgroup_matrix<T, R, C> make_filled_simdgroup_matrix(T value) {
  simdgroup_matrix<T, R, C> m;
  m.elements[0] = value;
  m.elements[1] = value;
  return m;
}

template <typename D, typename A, typename B, typename C>
METAL_FUNC void simdgroup_multiply_accumulate(
    simdgroup_matrix<D, 8, 8>& d,
    const simdgroup_matrix<A, 8, 8>& a,
    const simdgroup_matrix<B, 8, 8>& b,
    const simdgroup_matrix<C, 8, 8>& c) {
  const float x[2] = {float(a.elements[0]), float(a.elements[1])};
  const float y[2] = {float(b.elements[0]), float(b.elements[1])};
  const float z[2] = {float(c.elements[0]), float(c.elements[1])};
  float result[2];
  emulator_matrix_multiply(result, x, y, z);
  d.elements[0] = D(result[0]);
  d.elements[1] = D(result[1]);
}
}  // namespace metal

// vec<T, N>, constructors of vectors, as_type, and memory that a threadgroup shares.
#pragma once

namespace metal {
template <typename T, int N>
struct vector_of {
  typedef T type __attribute__((ext_vector_type(N)));
};
#ifdef MSL_CHECK_TYPES
template <int N>
struct vector_of<bfloat, N> {
  typedef half type __attribute__((ext_vector_type(N)));
};
#endif
template <typename T, int N>
using vec = typename vector_of<T, N>::type;

template <typename T>
constexpr bool is_scalar_like =
    std::is_arithmetic<T>::value || std::is_enum<T>::value || std::is_same<T, half>::value || std::is_same<T, bfloat>::value;

// What float4(a, b2, c) becomes in msl.py: scalars and vectors, laid end to end.
template <typename T, int N>
struct Filled {
  vec<T, N> value;
  int count = 0;
  template <typename S>
  void put(S s) {
    if constexpr (is_scalar_like<S>) value[count++] = T(s);
    else
      for (unsigned i = 0; i < sizeof(S) / sizeof(s[0]) && count < N; i++) value[count++] = T(s[i]);
  }
};

template <typename T, int N, typename... A>
METAL_FUNC vec<T, N> make_vec(A... a) {
  Filled<T, N> filled;
  (filled.put(a), ...);
  if (sizeof...(A) == 1 && filled.count == 1)
    for (int i = 1; i < N; i++) filled.value[i] = filled.value[0];
  return filled.value;
}

template <typename T, typename F>
METAL_FUNC T as_type(F f) {
  static_assert(sizeof(T) == sizeof(F), "as_type between types of different size");
  return __builtin_bit_cast(T, f);
}
}  // namespace metal

using metal::as_type;
using metal::vec;

// What `threadgroup T name[n];` inside a kernel becomes in msl.py: one block for all lanes of a
// threadgroup, NaN at first, with room around it that nothing may touch.
template <typename T>
struct MslShared {
  const char* name;
  void* block = nullptr;
  T& get() {
    emulator_shared_block(&block, sizeof(T), name);
    return *(T*)block;
  }
};

#pragma once
// MLX's complex_t overloads its members by address space, which C++ cannot say. Kernels here use no
// complex numbers; utils.h names the type.
template <typename T>
struct complex_t {
  T real, imag;
  constexpr complex_t(T r = 0, T i = 0) : real(r), imag(i) {}
  constexpr bool operator>(complex_t o) const { return real > o.real; }
  constexpr bool operator<(complex_t o) const { return real < o.real; }
  constexpr bool operator==(complex_t o) const { return real == o.real; }
  constexpr explicit operator bool() const { return real != 0; }
};
#define MSL_COMPLEX(OP) \
  template <typename T> \
  constexpr complex_t<T> operator OP(complex_t<T> a, complex_t<T>) { return a; }
MSL_COMPLEX(+)
MSL_COMPLEX(-)
MSL_COMPLEX(*)
MSL_COMPLEX(/)
typedef complex_t<float> complex64_t;

// Address spaces, scalar and vector types.
#pragma once
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <type_traits>

#include "../../runtime/abi.h"

#ifdef MSL_CHECK_SPACES
#define device __attribute__((address_space(1)))
#define constant __attribute__((address_space(2)))
#define threadgroup __attribute__((address_space(3)))
#else
#define device
#define constant
#define threadgroup
#endif
#define thread
#define kernel
#define METAL_FUNC inline __attribute__((always_inline))
#ifndef __METAL_VERSION__
#define __METAL_VERSION__ 310
#endif

typedef unsigned int uint;
typedef unsigned short ushort;
typedef unsigned char uchar;
typedef unsigned long ulong;
typedef _Float16 half;

#ifdef MSL_CHECK_TYPES
template <typename T>
constexpr bool msl_is_number = std::is_arithmetic<T>::value || std::is_same<T, half>::value;

struct bfloat {
  uint16_t bits;
  bfloat() = default;
  template <typename T, typename = typename std::enable_if<msl_is_number<T>>::type>
  constexpr explicit bfloat(T) : bits(0) {}
  constexpr operator float() const { return 0; }
  bfloat& operator+=(bfloat) { return *this; }
  bfloat& operator-=(bfloat) { return *this; }
  bfloat& operator*=(bfloat) { return *this; }
};
inline bfloat operator+(bfloat a, bfloat) { return a; }
inline bfloat operator-(bfloat a, bfloat) { return a; }
inline bfloat operator*(bfloat a, bfloat) { return a; }
inline bfloat operator/(bfloat a, bfloat) { return a; }
constexpr bfloat operator-(bfloat a) { return a; }
#else
typedef __bf16 bfloat;
#endif

#define MSL_VECTORS(T)                              \
  typedef T T##2 __attribute__((ext_vector_type(2))); \
  typedef T T##3 __attribute__((ext_vector_type(3))); \
  typedef T T##4 __attribute__((ext_vector_type(4)));
MSL_VECTORS(char)
MSL_VECTORS(uchar)
MSL_VECTORS(short)
MSL_VECTORS(ushort)
MSL_VECTORS(int)
MSL_VECTORS(uint)
MSL_VECTORS(long)
MSL_VECTORS(ulong)
MSL_VECTORS(half)
MSL_VECTORS(float)
#ifndef MSL_CHECK_TYPES
MSL_VECTORS(bfloat)
#endif

#ifndef INFINITY
#define INFINITY __builtin_inff()
#endif
#define M_PI_F 3.14159265358979323846f
#define M_LN2_F 0.69314718055994530942f
#define M_LOG2E_F 1.44269504088896340736f

// metal_type_traits, from the host's. In C++14, which older macOS compiles, some have to be made.
#pragma once

namespace metal {
using std::conditional;
using std::conditional_t;
using std::declval;
using std::enable_if;
using std::enable_if_t;
using std::false_type;
using std::integral_constant;
using std::is_arithmetic;
using std::is_base_of;
using std::is_convertible;
using std::is_enum;
using std::is_floating_point;
using std::is_integral;
using std::is_pointer;
using std::is_same;
using std::is_signed;
using std::is_unsigned;
using std::make_unsigned;
using std::remove_cv;
using std::remove_cv_t;
using std::remove_pointer;
using std::remove_reference;
using std::true_type;
#if __cplusplus >= 201703L
using std::bool_constant;
using std::is_convertible_v;
using std::is_integral_v;
using std::is_same_v;
using std::void_t;
#else
template <bool B>
using bool_constant = std::integral_constant<bool, B>;
template <typename... T>
struct make_void {
  typedef void type;
};
template <typename... T>
using void_t = typename make_void<T...>::type;
template <typename A, typename B>
constexpr bool is_same_v = std::is_same<A, B>::value;
template <typename A, typename B>
constexpr bool is_convertible_v = std::is_convertible<A, B>::value;
template <typename A>
constexpr bool is_integral_v = std::is_integral<A>::value;
#endif
template <typename T>
using remove_addrspace_t = std::remove_cv_t<T>;
template <typename T>
struct remove_addrspace {
  typedef std::remove_cv_t<T> type;
};
}  // namespace metal

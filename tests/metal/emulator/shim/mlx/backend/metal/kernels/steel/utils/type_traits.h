#pragma once
// MLX's file specialises pointer_element for each address space; here there is one.
namespace metal {
template <typename T>
struct pointer_element {};
template <typename T>
struct pointer_element<T*> {
  using type = remove_cv_t<T>;
};
template <typename T>
using pointer_element_t = typename pointer_element<remove_cv_t<T>>::type;
template <typename T>
struct is_static : bool_constant<std::is_empty<remove_cv_t<T>>::value> {};
}  // namespace metal

#pragma once
// MLX's file gives bfloat its functions through Apple's builtins; here they go through float.
#ifndef MSL_CHECK_TYPES
namespace metal {
METAL_FUNC bfloat abs(bfloat a) { return bfloat(::fabsf(float(a))); }
METAL_FUNC bfloat exp(bfloat a) { return bfloat(::expf(float(a))); }
METAL_FUNC bfloat sqrt(bfloat a) { return bfloat(::sqrtf(float(a))); }
METAL_FUNC bfloat rsqrt(bfloat a) { return bfloat(1.0f / ::sqrtf(float(a))); }
METAL_FUNC bfloat max(bfloat a, bfloat b) { return float(a) > float(b) ? a : b; }
METAL_FUNC bfloat min(bfloat a, bfloat b) { return float(a) < float(b) ? a : b; }
METAL_FUNC bool isnan(bfloat a) { return isnan(float(a)); }
}  // namespace metal
#endif

// What a compiled kernel and the emulator's runtime know of each other.
#pragma once
#include <cstddef>
#include <cstdint>

// What one lane can ask about itself. The entry point beside each kernel reads it; air.py knows the
// byte offsets.
struct Lane {
  uint32_t thread_position_in_grid[4];
  uint32_t thread_position_in_threadgroup[4];
  uint32_t threadgroup_position_in_grid[4];
  uint32_t threads_per_grid[4];
  uint32_t threads_per_threadgroup[4];
  uint32_t threadgroups_per_grid[4];
  uint32_t thread_index_in_simdgroup;
  uint32_t simdgroup_index_in_threadgroup;
  uint32_t thread_index_in_threadgroup;
  uint32_t simdgroups_per_threadgroup;
  uint32_t threads_per_simdgroup;
  uint32_t thread_index_in_quadgroup;
  uint32_t quadgroup_index_in_threadgroup;
};

enum SimdOp {
  SIMD_SUM,
  SIMD_PRODUCT,
  SIMD_MAX,
  SIMD_MIN,
  SIMD_AND,
  SIMD_OR,
  SIMD_XOR,
  SIMD_PREFIX_INCLUSIVE_SUM,
  SIMD_PREFIX_EXCLUSIVE_SUM,
  SIMD_SHUFFLE,
  SIMD_SHUFFLE_XOR,
  SIMD_SHUFFLE_DOWN,
  SIMD_SHUFFLE_UP,
  SIMD_BROADCAST_FIRST,
  QUAD_SUM,
  MATRIX_MULTIPLY,
  SIMDGROUP_BARRIER,
};

enum ElementType { F32, F16, BF16, I32, U32, I64 };

// Bits of Metal's mem_flags.
enum { MEM_DEVICE = 1, MEM_THREADGROUP = 2 };

extern "C" {
// Every lane of a SIMD-group calls it from the same place; `out` may be `in`.
void emulator_simd(int op, int type, const void* in, void* out, int bytes, int param);
// d = a b + c over an 8x8 matrix, of which each argument is this lane's two elements.
void emulator_matrix_multiply(float* d, const float* a, const float* b, const float* c);
void emulator_threadgroup_barrier(int flags);
void emulator_simdgroup_barrier(int flags);
// Names a block of threadgroup memory; called again it does nothing.
void emulator_register_shared(void* block, size_t bytes, const char* name);
// The same for a block that is allocated here, once for each place in the source.
void emulator_shared_block(void** block, size_t bytes, const char* name);
unsigned emulator_lane_index();
}

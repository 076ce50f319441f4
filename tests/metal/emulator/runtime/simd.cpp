// SIMD operations: reductions, prefix sums, shuffles, over the lanes that meet in one of them.
#include <cmath>
#include <cstring>
#include <utility>

#include "state.h"

namespace {
float from_bfloat(uint16_t bits) {
  const uint32_t wide = uint32_t(bits) << 16;
  float value;
  memcpy(&value, &wide, 4);
  return value;
}

uint16_t to_bfloat(float value) {
  uint32_t bits;
  memcpy(&bits, &value, 4);
  if (std::isnan(value)) return (bits >> 16) | 64;
  bits += 0x7fff + ((bits >> 16) & 1);
  return bits >> 16;
}

double load(int type, const void* p) {
  switch (type) {
    case F32: return *(const float*)p;
    case F16: return *(const _Float16*)p;
    case BF16: return from_bfloat(*(const uint16_t*)p);
    case I32: return *(const int32_t*)p;
    case U32: return *(const uint32_t*)p;
    default: return *(const int64_t*)p;
  }
}

void store(int type, void* p, double value) {
  switch (type) {
    case F32: *(float*)p = value; break;
    case F16: *(_Float16*)p = value; break;
    case BF16: *(uint16_t*)p = to_bfloat(value); break;
    case I32: *(int32_t*)p = value; break;
    case U32: *(uint32_t*)p = (uint32_t)(int64_t)value; break;
    default: *(int64_t*)p = value;
  }
}

// The result in the type of the operands. A sum or product of two floats is exact or nearly so in
// double, so that this rounds once.
double combine(int op, int type, double a, double b) {
  double result;
  switch (op) {
    case SIMD_PRODUCT: result = a * b; break;
    case SIMD_MAX: result = a > b || std::isnan(b) ? a : b; break;
    case SIMD_MIN: result = a < b || std::isnan(b) ? a : b; break;
    case SIMD_AND: result = double(int64_t(a) & int64_t(b)); break;
    case SIMD_OR: result = double(int64_t(a) | int64_t(b)); break;
    case SIMD_XOR: result = double(int64_t(a) ^ int64_t(b)); break;
    default: result = a + b;
  }
  char rounded[8];
  store(type, rounded, result);
  return load(type, rounded);
}

// Apple does not publish in which order its hardware adds 32 lanes. The caller chooses one of five:
// 0 lane i with lane i + half, 1 from the first, 2 from the last, 3 a fixed random order, 4 neighbours.
double reduce(int op, int type, std::vector<double> values) {
  if (config.simd_order == 2)
    for (size_t i = 0, j = values.size(); i + 1 < j; i++) std::swap(values[i], values[--j]);
  if (config.simd_order == 3) {
    uint64_t state = 88172645463325252ull;
    for (size_t i = values.size() - 1; i > 0; i--) {
      state = state * 6364136223846793005ull + 1442695040888963407ull;
      std::swap(values[i], values[(state >> 33) % (i + 1)]);
    }
  }
  if (config.simd_order == 1 || config.simd_order == 2) {
    double result = values[0];
    for (size_t i = 1; i < values.size(); i++) result = combine(op, type, result, values[i]);
    return result;
  }
  while (values.size() > 1) {
    const size_t half = (values.size() + 1) / 2;
    std::vector<double> sums(half);
    for (size_t i = 0; i < half; i++) {
      const size_t first = config.simd_order == 4 ? 2 * i : i;
      const size_t second = config.simd_order == 4 ? 2 * i + 1 : i + half;
      const bool alone = second >= values.size();
      sums[i] = alone ? values[first] : combine(op, type, values[first], values[second]);
    }
    values = std::move(sums);
  }
  return values[0];
}

struct Inputs {
  char value[32][16];
  bool active[32] = {};
};

void take(Fiber& fiber, const Inputs& inputs, int source) {
  if (source < 0 || source > 31 || !inputs.active[source])
    return fail(fiber.site, "SIMD shuffle from lane %d, which is not active", source);
  memcpy(fiber.out, inputs.value[source], fiber.bytes);
}

std::vector<double> values_of(const Inputs& inputs, int type, int from, int to) {
  std::vector<double> values;
  for (int i = from; i < to; i++)
    if (inputs.active[i]) values.push_back(load(type, inputs.value[i]));
  return values;
}

double prefix_sum(const Inputs& inputs, int type, int lanes) {
  double sum = 0;
  for (double value : values_of(inputs, type, 0, lanes)) sum = combine(SIMD_SUM, type, sum, value);
  return sum;
}

void perform_for(Fiber& fiber, const Inputs& inputs, double reduced) {
  const int me = fiber.lane.thread_index_in_simdgroup;
  switch (fiber.op) {
    case SIMD_PREFIX_INCLUSIVE_SUM:
      return store(fiber.type, fiber.out, prefix_sum(inputs, fiber.type, me + 1));
    case SIMD_PREFIX_EXCLUSIVE_SUM:
      return store(fiber.type, fiber.out, prefix_sum(inputs, fiber.type, me));
    case SIMD_SHUFFLE: return take(fiber, inputs, fiber.param);
    case SIMD_SHUFFLE_XOR: return take(fiber, inputs, me ^ fiber.param);
    // Past the end a lane keeps its own value.
    case SIMD_SHUFFLE_DOWN: return take(fiber, inputs, me + fiber.param < 32 ? me + fiber.param : me);
    case SIMD_SHUFFLE_UP: return take(fiber, inputs, me >= fiber.param ? me - fiber.param : me);
    case SIMD_BROADCAST_FIRST: {
      int first = 0;
      while (!inputs.active[first]) first++;
      return take(fiber, inputs, first);
    }
    case QUAD_SUM: {
      const int quad = me & ~3;
      const std::vector<double> four = values_of(inputs, fiber.type, quad, quad + 4);
      return store(fiber.type, fiber.out, reduce(SIMD_SUM, fiber.type, four));
    }
    default: store(fiber.type, fiber.out, reduced);
  }
}

void simd_call(int op, int type, const void* in, void* out, int bytes, int param, void* site) {
  Fiber& fiber = fibers[current];
  fiber.in = in;
  fiber.out = out;
  fiber.type = type;
  fiber.bytes = bytes;
  fiber.param = param;
  wait_for_simdgroup(op, site);
}
}  // namespace

void perform_simd(const std::vector<int>& lanes) {
  const Fiber& first = fibers[lanes[0]];
  if (first.op == MATRIX_MULTIPLY) return perform_matrix_multiply(lanes);
  if (first.op == SIMDGROUP_BARRIER) {
    for (int i : lanes) {
      if (first.param & MEM_DEVICE) fibers[i].simd_epoch[DEVICE_MEMORY]++;
      if (first.param & MEM_THREADGROUP) fibers[i].simd_epoch[SHARED_MEMORY]++;
    }
    return;
  }
  Inputs inputs;
  for (int i : lanes) {
    memcpy(inputs.value[i % 32], fibers[i].in, first.bytes);
    inputs.active[i % 32] = true;
  }
  const bool reduces = first.op <= SIMD_XOR;
  const double reduced = reduces ? reduce(first.op, first.type, values_of(inputs, first.type, 0, 32)) : 0;
  for (int i : lanes) perform_for(fibers[i], inputs, reduced);
}

extern "C" {
NOINLINE void emulator_simd(int op, int type, const void* in, void* out, int bytes, int param) {
  simd_call(op, type, in, out, bytes, param, SITE);
}
NOINLINE void emulator_simdgroup_barrier(int flags) {
  fibers[current].param = flags;
  wait_for_simdgroup(SIMDGROUP_BARRIER, SITE);
}
NOINLINE void air_simdgroup_barrier(int flags, int) asm("air.simdgroup.barrier");
NOINLINE void air_simdgroup_barrier(int flags, int) {
  fibers[current].param = flags;
  wait_for_simdgroup(SIMDGROUP_BARRIER, SITE);
}
}

// Apple's intrinsics, by the names that they have in the AIR of a metallib.
#define ONE(NAME, ID, OP, T, TYPE)              \
  NOINLINE T ID(T x) asm(NAME);                 \
  NOINLINE T ID(T x) {                          \
    simd_call(OP, TYPE, &x, &x, sizeof x, 0, SITE); \
    return x;                                   \
  }
#define TWO(NAME, ID, OP, T, TYPE)                  \
  NOINLINE T ID(T x, uint16_t param) asm(NAME);     \
  NOINLINE T ID(T x, uint16_t param) {              \
    simd_call(OP, TYPE, &x, &x, sizeof x, param, SITE); \
    return x;                                       \
  }
extern "C" {
ONE("air.simd_sum.f32", air_simd_sum_f32, SIMD_SUM, float, F32)
ONE("air.simd_max.f32", air_simd_max_f32, SIMD_MAX, float, F32)
ONE("air.simd_min.f32", air_simd_min_f32, SIMD_MIN, float, F32)
ONE("air.simd_sum.s.i32", air_simd_sum_s32, SIMD_SUM, int32_t, I32)
ONE("air.quad_sum.f32", air_quad_sum_f32, QUAD_SUM, float, F32)
ONE("air.simd_prefix_inclusive_sum.s.i32", air_prefix_s32, SIMD_PREFIX_INCLUSIVE_SUM, int32_t, I32)
TWO("air.simd_shuffle_down.f32", air_down_f32, SIMD_SHUFFLE_DOWN, float, F32)
TWO("air.simd_shuffle_down.u.i32", air_down_u32, SIMD_SHUFFLE_DOWN, uint32_t, U32)
TWO("air.simd_shuffle_xor.f32", air_xor_f32, SIMD_SHUFFLE_XOR, float, F32)
TWO("air.simd_shuffle.f32", air_shuffle_f32, SIMD_SHUFFLE, float, F32)
TWO("air.simd_shuffle.s.i32", air_shuffle_s32, SIMD_SHUFFLE, int32_t, I32)
}

// 8x8 simdgroup matrices: which lane holds which elements, and their product.
#include <cmath>

#include "state.h"

namespace {
// A lane's two elements lie side by side. The layout is that of MLX's BaseMMAFrag (steel/gemm/mma.h).
void place(int lane, int& row, int& column) {
  const int quad = lane / 4;
  row = (quad & 4) + (lane / 2) % 4;
  column = (quad & 2) * 2 + (lane % 2) * 2;
}

// The order of the eight additions is not published either. 0 from the first, 1 from the last, both
// fused; 2 by pairs, unfused; 3 in double, rounded once.
float dot(const float* row, const float* column, float c) {
  float product[8];
  switch (config.matrix_order) {
    case 0:
      for (int k = 0; k < 8; k++) c = fmaf(row[k], column[8 * k], c);
      return c;
    case 1:
      for (int k = 7; k >= 0; k--) c = fmaf(row[k], column[8 * k], c);
      return c;
    case 2:
      for (int k = 0; k < 8; k++) product[k] = row[k] * column[8 * k];
      return c + (((product[0] + product[1]) + (product[2] + product[3])) +
                  ((product[4] + product[5]) + (product[6] + product[7])));
    default: {
      double sum = c;
      for (int k = 0; k < 8; k++) sum += double(row[k]) * column[8 * k];
      return float(sum);
    }
  }
}
}  // namespace

void perform_matrix_multiply(const std::vector<int>& lanes) {
  if (lanes.size() != 32)
    return fail(fibers[lanes[0]].site, "a matrix product with %zu lanes", lanes.size());
  float a[64], b[64], c[64];
  for (int i : lanes) {
    int row, column;
    place(i % 32, row, column);
    for (int j = 0; j < 2; j++) {
      const int at = 8 * row + column + j;
      a[at] = fibers[i].a[j];
      b[at] = fibers[i].b[j];
      c[at] = fibers[i].c[j];
    }
  }
  for (int i : lanes) {
    int row, column;
    place(i % 32, row, column);
    for (int j = 0; j < 2; j++) {
      const int at = 8 * row + column + j;
      ((float*)fibers[i].out)[j] = dot(a + 8 * row, b + column + j, c[at]);
    }
  }
}

extern "C" NOINLINE void emulator_matrix_multiply(float* d, const float* a, const float* b, const float* c) {
  Fiber& fiber = fibers[current];
  fiber.a = a;
  fiber.b = b;
  fiber.c = c;
  fiber.out = d;
  wait_for_simdgroup(MATRIX_MULTIPLY, SITE);
}

// Every memory access of a kernel: within its buffer, aligned, ordered after the writes of others.
//
// Kernels are compiled with -fsanitize=thread, which calls these functions before each access. They
// stand in for ThreadSanitizer's own runtime, which knows neither buffers nor threadgroups.
#include <cstdlib>
#include <cstring>

#include "state.h"

namespace {
constexpr size_t NEAR = 1024;

Region* find(const char* p) {
  static size_t last = 0;
  if (last < regions.size() && p >= regions[last].begin && p < regions[last].begin + regions[last].bytes)
    return &regions[last];
  for (size_t i = 0; i < regions.size(); i++)
    if (p >= regions[i].begin && p < regions[i].begin + regions[i].bytes) return &regions[last = i];
  for (Region& r : regions)  // just outside of one: named in the message
    if (p >= r.begin - NEAR && p < r.begin + r.bytes + NEAR) return &r;
  return nullptr;
}

template <typename T>
bool inside(const char* p, const std::vector<T>& v) {
  return p >= (const char*)v.data() && p < (const char*)(v.data() + v.size());
}

// Whether nothing orders what `mark` did before what the current lane does.
bool unordered(const Mark& mark, const Region& region, const Mark& now) {
  if (!mark.threadgroup) return false;
  if (mark.threadgroup != now.threadgroup) return !region.shared;
  if (mark.epoch != now.epoch || mark.lane == now.lane) return false;
  return mark.lane / 32 != now.lane / 32 || mark.simd_epoch == now.simd_epoch;
}

bool same_epoch(const Mark& a, const Mark& b) {
  return a.threadgroup == b.threadgroup && a.epoch == b.epoch;
}

void note_read(Cell& cell, const Mark& now) {
  if (!same_epoch(cell.reader, now)) cell.lanes = cell.simds = false;
  else if (cell.reader.lane / 32 != now.lane / 32) cell.simds = true;
  else if (cell.reader.simd_epoch != now.simd_epoch) cell.lanes = false;
  else if (cell.reader.lane != now.lane) cell.lanes = true;
  cell.reader = now;
}

bool read_since(const Cell& cell, const Region& region, const Mark& now) {
  if (!cell.reader.threadgroup || cell.reader.threadgroup != now.threadgroup)
    return unordered(cell.reader, region, now);
  if (cell.reader.epoch != now.epoch) return false;
  return cell.simds || (cell.lanes && cell.reader.simd_epoch == now.simd_epoch) ||
         unordered(cell.reader, region, now);
}

void check_order(void* site, Region& region, size_t offset, bool write, const Mark& now) {
  Cell& cell = region.cells[offset];
  const char* name = region.name.c_str();
  if (unordered(cell.writer, region, now))
    fail_and_leave(site, "race on %s at offset %zu: lane %u of threadgroup %u wrote it, no barrier since",
                   name, offset, cell.writer.lane, cell.writer.threadgroup);
  if (!write) {
    if (!cell.writer.threadgroup && !region.preset)
      fail_and_leave(site, "read of %s at offset %zu, which nobody has written", name, offset);
    return note_read(cell, now);
  }
  if (read_since(cell, region, now))
    fail_and_leave(site, "race on %s at offset %zu: lane %u read it, no barrier since", name, offset,
                   cell.reader.lane);
  cell.writer = now;
}

void access(void* site, char* p, size_t n, bool write, bool aligned) {
  if (current < 0) return;
  const Fiber& fiber = fibers[current];
  if (p >= fiber.stack && p < fiber.stack + STACK_BYTES) return;
  if (inside(p, fibers) || inside(p, arguments)) return;  // what the entry point hands to the kernel
  const char* what = write ? "write" : "read";
  Region* region = find(p);
  if (!region) {
    if (!write && is_kernel_constant(p)) return;
    fail_and_leave(site, "%s of %zu bytes at %p, which is in no buffer", what, n, (void*)p);
  }
  const long offset = p - region->begin;
  const char* name = region->name.c_str();
  if (offset < 0 || offset + n > region->bytes)
    fail_and_leave(site, "%s of %zu bytes at offset %ld of %s, which has %zu bytes", what, n, offset,
                   name, region->bytes);
  if (aligned && (uintptr_t(p) & (n - 1)))
    fail_and_leave(site, "misaligned %s of %zu bytes at offset %ld of %s", what, n, offset, name);
  if (write && !region->writable) fail_and_leave(site, "write to the input %s", name);
  if (!write) region->read += n;
  if (!region->writable) return;
  const int memory = region->shared ? SHARED_MEMORY : DEVICE_MEMORY;
  const Mark now{threadgroup, epochs[memory], fiber.index(), fiber.simd_epoch[memory]};
  for (size_t i = offset; i < offset + n; i++) check_order(site, *region, i, write, now);
}

constexpr size_t MOST_SHARED_BYTES = 32768;  // of any Apple GPU
}  // namespace

extern "C" {
void emulator_register_shared(void* block, size_t bytes, const char* name) {
  size_t sum = (bytes + 15) / 16 * 16;
  for (const Region& r : regions) {
    if (r.begin == block) return;
    if (r.shared) sum += (r.bytes + 15) / 16 * 16;
  }
  memset(block, 0xff, bytes);
  regions.push_back({(char*)block, bytes, name, true, true, false, std::vector<Cell>(bytes)});
  if (sum <= MOST_SHARED_BYTES) return;
  fail(SITE, "%zu bytes of threadgroup memory, %zu is the most", sum, MOST_SHARED_BYTES);
  if (current >= 0) leave();
}

void emulator_shared_block(void** block, size_t bytes, const char* name) {
  if (!*block) *block = (char*)aligned_alloc(256, (bytes + 767) / 256 * 256) + 256;
  emulator_register_shared(*block, bytes, name);
}

void __tsan_init() {}
void __tsan_func_entry(void*) {}
void __tsan_func_exit() {}
#define ACCESSES(N)                                                                    \
  void __tsan_read##N(void* p) { access(SITE, (char*)p, N, false, true); }             \
  void __tsan_write##N(void* p) { access(SITE, (char*)p, N, true, true); }             \
  void __tsan_unaligned_read##N(void* p) { access(SITE, (char*)p, N, false, false); }  \
  void __tsan_unaligned_write##N(void* p) { access(SITE, (char*)p, N, true, false); }
ACCESSES(1)
ACCESSES(2)
ACCESSES(4)
ACCESSES(8)
ACCESSES(16)
void* __tsan_memcpy(void* to, const void* from, size_t n) {
  access(SITE, (char*)from, n, false, false);
  access(SITE, (char*)to, n, true, false);
  return memcpy(to, from, n);
}
void* __tsan_memset(void* to, int value, size_t n) {
  access(SITE, (char*)to, n, true, false);
  return memset(to, value, n);
}
}

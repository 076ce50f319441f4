// One dispatch: buffers with guards around them, threadgroup after threadgroup, what is left unwritten.
#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>

#include <dlfcn.h>
#include <xmmintrin.h>

#include "state.h"

std::vector<Region> regions;

namespace {
const char* kernel_begin = nullptr;
constexpr size_t PAGE = 4096;
constexpr unsigned FLUSH_DENORMALS = 0x8040;  // as Apple's GPUs do

// Buffers lie in pages of their own, so that what runs past one meets no other.
std::vector<void*> place(const Buffer* buffers, int count) {
  std::vector<void*> pages;
  regions.clear();
  regions.reserve(count + 64);
  arguments.clear();
  for (int i = 0; i < count; i++) {
    const Buffer& b = buffers[i];
    pages.push_back(aligned_alloc(PAGE, (b.bytes + b.offset + 3 * PAGE - 1) / PAGE * PAGE));
    char* begin = (char*)pages.back() + PAGE + b.offset;
    memcpy(begin, b.data, b.bytes);
    arguments.push_back(begin);
    std::vector<Cell> cells(b.writable && config.checked ? b.bytes : 0);
    regions.push_back({begin, b.bytes, b.name, b.writable != 0, false, b.preset != 0, std::move(cells)});
  }
  return pages;
}

void place_lane(int index, const uint32_t* group, const uint32_t* groups, const uint32_t* size) {
  Fiber& fiber = fibers[index];
  fiber.wait = Wait::none;
  fiber.site = nullptr;
  fiber.simd_epoch[0] = fiber.simd_epoch[1] = 0;
  Lane& lane = fiber.lane;
  lane = Lane{};
  const uint32_t at[3] = {index % size[0], index / size[0] % size[1], index / (size[0] * size[1])};
  for (int d = 0; d < 3; d++) {
    lane.thread_position_in_threadgroup[d] = at[d];
    lane.threadgroup_position_in_grid[d] = group[d];
    lane.thread_position_in_grid[d] = group[d] * config.group[d] + at[d];
    lane.threads_per_grid[d] = config.grid[d];
    lane.threads_per_threadgroup[d] = size[d];
    lane.threadgroups_per_grid[d] = groups[d];
  }
  lane.thread_index_in_threadgroup = index;
  lane.thread_index_in_simdgroup = index % 32;
  lane.simdgroup_index_in_threadgroup = index / 32;
  lane.simdgroups_per_threadgroup = (lane_count + 31) / 32;
  lane.threads_per_simdgroup = 32;
  lane.thread_index_in_quadgroup = index % 4;
  lane.quadgroup_index_in_threadgroup = index / 4;
}

void forget_shared_memory() {
  for (Region& r : regions) {
    if (!r.shared) continue;
    memset(r.begin, 0xff, r.bytes);
    std::fill(r.cells.begin(), r.cells.end(), Cell());
  }
}

void run_all(Entry entry) {
  uint32_t groups[3], g[3], size[3];
  for (int d = 0; d < 3; d++) groups[d] = (config.grid[d] + config.group[d] - 1) / config.group[d];
  const size_t most = size_t(config.group[0]) * config.group[1] * config.group[2];
  if (fibers.size() < most) fibers.resize(most);
  threadgroup = 0;
  for (g[2] = 0; g[2] < groups[2]; g[2]++)
    for (g[1] = 0; g[1] < groups[1]; g[1]++)
      for (g[0] = 0; g[0] < groups[0] && !failed; g[0]++) {
        // A grid that threadgroups do not divide ends in smaller ones, as in Metal.
        for (int d = 0; d < 3; d++) size[d] = std::min(config.group[d], config.grid[d] - g[d] * config.group[d]);
        lane_count = size[0] * size[1] * size[2];
        threadgroup++;
        epochs[0]++;
        epochs[1]++;
        forget_shared_memory();
        for (int i = 0; i < lane_count; i++) place_lane(i, g, groups, size);
        run_threadgroup(entry);
      }
}

void check_written(int count, void* site) {
  for (int i = 0; i < count; i++) {
    const Region& r = regions[i];
    for (size_t o = 0; r.writable && !r.preset && !failed && o < r.cells.size(); o++)
      if (!r.cells[o].writer.threadgroup) fail(site, "%s was never written at offset %zu", r.name.c_str(), o);
  }
}
}  // namespace

bool is_kernel_constant(const char* address) {
  Dl_info info{};
  return dladdr(address, &info) && info.dli_fbase == kernel_begin;
}

// Runs a kernel whose entry points are `entry` and `initialise`; returns 1 and a message if it failed.
// `read` receives the bytes that were read of each buffer.
extern "C" int emulator_run(Entry entry, void (*initialise)(), const Config* wanted, Buffer* buffers,
                            int count, uint64_t* read, char* message, size_t message_bytes) {
  config = *wanted;
  clear_failure();
  Dl_info info{};
  dladdr((void*)entry, &info);
  kernel_begin = (const char*)info.dli_fbase;
  const std::vector<void*> pages = place(buffers, count);
  const unsigned control = _mm_getcsr();
  _mm_setcsr(control | FLUSH_DENORMALS);
  initialise();
  if (!failed) run_all(entry);
  _mm_setcsr(control);
  if (!failed && config.checked) check_written(count, (void*)entry);
  for (int i = 0; i < count; i++) {
    if (buffers[i].writable) memcpy(buffers[i].data, arguments[i], buffers[i].bytes);
    read[i] = regions[i].read;
    free(pages[i]);
  }
  snprintf(message, message_bytes, "%s", failure());
  return failed;
}

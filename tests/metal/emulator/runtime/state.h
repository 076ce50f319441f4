// The state of one dispatch: its lanes, its memory, what was asked for. One dispatch runs at a time.
#pragma once
#include <cstdint>
#include <string>
#include <vector>

#include "abi.h"

#define SITE __builtin_return_address(0)
#define NOINLINE __attribute__((noinline))

enum class Wait { none, simd, threadgroup_barrier, returned };

// A lane. It runs on a stack of its own until it has to wait for others.
struct Fiber {
  void* stack_pointer = nullptr;
  char* stack = nullptr;
  Wait wait = Wait::none;
  void* site = nullptr;  // where it waits, or waited last
  Lane lane;
  int op = 0, type = 0, bytes = 0, param = 0;  // of the SIMD operation in which it waits
  const void* in = nullptr;
  void* out = nullptr;
  const float *a = nullptr, *b = nullptr, *c = nullptr;
  uint32_t simd_epoch[2] = {0, 0};  // simdgroup_barriers passed: for device, for shared memory
  uint32_t simdgroup() const { return lane.simdgroup_index_in_threadgroup; }
  uint32_t index() const { return lane.thread_index_in_threadgroup; }
};

// Who touched a byte last, and between which barriers. Threadgroups count from 1.
struct Mark {
  uint32_t threadgroup = 0, epoch = 0, lane = 0, simd_epoch = 0;
};
struct Cell {
  Mark writer, reader;
  bool lanes = false;  // other lanes of the reader's SIMD-group read it too, since the same barrier
  bool simds = false;  // so did another SIMD-group
};

struct Region {
  char* begin;
  size_t bytes;
  std::string name;
  bool writable;
  bool shared;  // threadgroup memory
  bool preset;  // has a value before the kernel writes one
  std::vector<Cell> cells;  // of writable memory, one a byte
  uint64_t read = 0;        // bytes read in all
};

struct Config {
  uint32_t grid[3];   // threads
  uint32_t group[3];  // threads in a threadgroup
  int simd_order;     // of the additions of a SIMD reduction, see reduce() in simd.cpp
  int matrix_order;   // of the additions inside a matrix product, see dot() in matrix.cpp
  int checked;        // compiled with the callbacks of memory.cpp
  uint64_t seed;      // of the order in which lanes run; 0 is by index
};

struct Buffer {
  void* data;
  size_t bytes;
  int writable;
  int preset;
  const char* name;
  size_t offset;  // from an address that is a multiple of 4096
};

extern Config config;
extern std::vector<Fiber> fibers;
extern std::vector<Region> regions;  // device buffers first, then threadgroup memory
extern std::vector<void*> arguments;
extern int current;     // fiber that runs; -1 outside of the kernel
extern int lane_count;  // of this threadgroup
extern uint32_t threadgroup;
extern uint32_t epochs[2];  // threadgroup_barriers passed: for device, for shared memory
extern bool failed;

enum { DEVICE_MEMORY = 0, SHARED_MEMORY = 1 };
constexpr size_t STACK_BYTES = 256 << 10;

void fail(void* site, const char* format, ...) __attribute__((format(printf, 2, 3)));
[[noreturn]] void leave();  // gives up the kernel; the dispatcher reports the failure
[[noreturn]] void fail_and_leave(void* site, const char* format, ...)
    __attribute__((format(printf, 2, 3)));

void next_fiber();  // lets others run; comes back when this lane may go on
void wait_for_simdgroup(int op, void* site);
void perform_simd(const std::vector<int>& lanes);
void perform_matrix_multiply(const std::vector<int>& lanes);
uint64_t random_number();
bool is_kernel_constant(const char* address);
const char* failure();
void clear_failure();
// fibers.cpp: how a threadgroup is run
using Entry = void (*)(void** buffers, const Lane* lane);
void run_threadgroup(Entry entry);

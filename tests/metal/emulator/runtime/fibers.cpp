// Lanes as fibers: each runs until it must wait for its SIMD-group or its threadgroup.
#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <utility>

#include <dlfcn.h>
#include <sys/mman.h>

#include "state.h"

extern "C" void emulator_switch(void** save, void* to);
asm(R"(
.text
.globl emulator_switch
.hidden emulator_switch
emulator_switch:
  pushq %rbp; pushq %rbx; pushq %r12; pushq %r13; pushq %r14; pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15; popq %r14; popq %r13; popq %r12; popq %rbx; popq %rbp
  ret
)");

Config config;
std::vector<Fiber> fibers;
std::vector<void*> arguments;
int current = -1;
int lane_count = 0;
uint32_t threadgroup = 0;
uint32_t epochs[2] = {1, 1};
bool failed = false;

namespace {
char message[1024];
void* dispatcher_stack;
Entry kernel;
std::vector<int> order;  // in which lanes get their turn
size_t turn = 0;
std::vector<int> simd_live, simd_waiting;
int live = 0, threadgroup_waiting = 0;
uint64_t random_state = 0;

void shuffle() {
  if (!config.seed) return;
  for (size_t i = order.size() - 1; i > 0; i--) std::swap(order[i], order[random_number() % (i + 1)]);
}

void describe(void* site, const char* format, va_list arguments_) {
  if (failed) return;
  failed = true;
  char text[700];
  vsnprintf(text, sizeof text, format, arguments_);
  static const Lane nobody{};
  const Lane& lane = current >= 0 ? fibers[current].lane : nobody;
  const uint32_t* g = lane.threadgroup_position_in_grid;
  const int n = snprintf(message, sizeof message, "%s (threadgroup %u,%u,%u lane %u", text, g[0], g[1],
                         g[2], lane.thread_index_in_threadgroup);
  Dl_info info{};
  const bool known = site && dladdr(site, &info);
  if (known) snprintf(message + n, sizeof message - n, " at +0x%lx)", (char*)site - (char*)info.dli_fbase);
  else snprintf(message + n, sizeof message - n, ")");
}

void lane_main() {
  const int me = current;
  kernel(arguments.data(), &fibers[me].lane);
  Fiber& fiber = fibers[me];
  fiber.wait = Wait::returned;
  const int simd = fiber.simdgroup();
  live--;
  simd_live[simd]--;
  if (simd_waiting[simd] && simd_waiting[simd] == simd_live[simd])
    fail_and_leave(fiber.site, "a lane returned while its SIMD-group waits in a SIMD operation");
  if (threadgroup_waiting)
    fail_and_leave(fiber.site, "a lane returned while others wait at threadgroup_barrier");
  next_fiber();
  leave();
}

void start_fiber(Fiber& fiber) {
  if (!fiber.stack) {
    const int flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE;
    fiber.stack = (char*)mmap(nullptr, STACK_BYTES, PROT_READ | PROT_WRITE, flags, -1, 0);
  }
  void** top = (void**)(fiber.stack + STACK_BYTES - 64);
  *--top = nullptr;
  *--top = (void*)lane_main;
  for (int saved = 0; saved < 6; saved++) *--top = nullptr;
  fiber.stack_pointer = top;
}

void report_deadlock() {
  int simd = 0, barrier = 0;
  void* site = nullptr;
  for (int i = 0; i < lane_count; i++) {
    if (fibers[i].wait == Wait::simd) simd++, site = fibers[i].site;
    if (fibers[i].wait == Wait::threadgroup_barrier) barrier++;
  }
  fail(site, "deadlock: %d lanes wait in a SIMD operation, %d at threadgroup_barrier", simd, barrier);
}
}  // namespace

uint64_t random_number() {
  random_state ^= random_state << 13;
  random_state ^= random_state >> 7;
  random_state ^= random_state << 17;
  return random_state;
}

const char* failure() { return message; }
void clear_failure() {
  failed = false;
  message[0] = 0;
  random_state = config.seed;
}

void fail(void* site, const char* format, ...) {
  va_list list;
  va_start(list, format);
  describe(site, format, list);
  va_end(list);
}

void leave() {
  void* never_used;
  emulator_switch(&never_used, dispatcher_stack);
  abort();
}

void fail_and_leave(void* site, const char* format, ...) {
  va_list list;
  va_start(list, format);
  describe(site, format, list);
  va_end(list);
  leave();
}

void next_fiber() {
  const int me = current;
  for (size_t tries = order.size(); tries; tries--) {
    const int other = order[turn];
    turn = (turn + 1) % order.size();
    if (fibers[other].wait != Wait::none) continue;
    if (other == me) return;
    current = other;
    emulator_switch(&fibers[me].stack_pointer, fibers[other].stack_pointer);
    return;
  }
  emulator_switch(&fibers[me].stack_pointer, dispatcher_stack);
}

void wait_for_simdgroup(int op, void* site) {
  Fiber& fiber = fibers[current];
  const int simd = fiber.simdgroup();
  fiber.wait = Wait::simd;
  fiber.site = site;
  fiber.op = op;
  if (++simd_waiting[simd] == simd_live[simd]) {
    std::vector<int> lanes;
    for (int i = simd * 32; i < lane_count && i < simd * 32 + 32; i++)
      if (fibers[i].wait == Wait::simd) lanes.push_back(i);
    for (int i : lanes)
      if (fibers[i].site != site || fibers[i].op != op)
        fail_and_leave(site, "lanes of one SIMD-group are in different SIMD operations");
    perform_simd(lanes);
    if (failed) leave();
    for (int i : lanes) fibers[i].wait = Wait::none;
    simd_waiting[simd] = 0;
  }
  if (fibers[current].wait != Wait::none || config.seed) next_fiber();
}

static void threadgroup_barrier(int flags, void* site) {
  Fiber& fiber = fibers[current];
  fiber.wait = Wait::threadgroup_barrier;
  fiber.site = site;
  threadgroup_waiting++;
  if (live != lane_count)
    fail_and_leave(site, "threadgroup_barrier after %d lanes returned", lane_count - live);
  if (threadgroup_waiting == live) {
    for (int i = 0; i < lane_count; i++)
      if (fibers[i].site != site)
        fail_and_leave(site, "lanes of one threadgroup are at different barriers");
    if (flags & MEM_DEVICE) epochs[DEVICE_MEMORY]++;
    if (flags & MEM_THREADGROUP) epochs[SHARED_MEMORY]++;
    for (int i = 0; i < lane_count; i++) fibers[i].wait = Wait::none;
    threadgroup_waiting = 0;
    shuffle();
  }
  if (fibers[current].wait != Wait::none || config.seed) next_fiber();
}

void run_threadgroup(Entry entry) {
  kernel = entry;
  live = lane_count;
  threadgroup_waiting = 0;
  simd_live.assign((lane_count + 31) / 32, 0);
  simd_waiting.assign(simd_live.size(), 0);
  order.resize(lane_count);
  for (int i = 0; i < lane_count; i++) {
    simd_live[i / 32]++;
    order[i] = i;
    start_fiber(fibers[i]);
  }
  shuffle();
  turn = 0;
  bool runnable = true;
  while (!failed && runnable) {
    runnable = false;
    for (int i : order) {
      if (fibers[i].wait != Wait::none) continue;
      runnable = true;
      current = i;
      emulator_switch(&dispatcher_stack, fibers[i].stack_pointer);
      current = -1;
      break;
    }
  }
  if (!failed && live) report_deadlock();
}

extern "C" {
NOINLINE void emulator_threadgroup_barrier(int flags) { threadgroup_barrier(flags, SITE); }
NOINLINE void air_threadgroup_barrier(int flags, int) asm("air.wg.barrier");
NOINLINE void air_threadgroup_barrier(int flags, int) { threadgroup_barrier(flags, SITE); }
unsigned emulator_lane_index() { return fibers[current].lane.thread_index_in_simdgroup; }
}

// A machine that runs one block after the other, each thread on a stack of its own: it runs until it meets others, at a
// shuffle or a barrier, and goes on when they all have come.
//
// Kernels are compiled with -fsanitize=thread, without its library: so every access to memory calls a function of this file
// first. What lies outside the tensors of a call is refused, and so is what two threads access, one of them writing, with
// no barrier in between; the launch ends there, with a text. This file itself is compiled without.
#include <setjmp.h>
#include <ucontext.h>

#include <cstdio>
#include <memory>
#include <mutex>
#include <string>
#include <unordered_map>
#include <vector>

#include "cuda_runtime.h"

extern "C" __attribute__((weak)) char __start_shared[], __stop_shared[];  // where shared variables lie

dim3 threadIdx, blockIdx, blockDim, gridDim;

namespace machine {
namespace {

constexpr int WARP = 32, MOST = 1024;  // threads in a warp, and in a block
constexpr size_t STACK = 1 << 17;
constexpr cudaError_t FAULT = 719;

struct Thread {  // born once, it waits for the next block when it is done with one
  std::unique_ptr<char[]> stack;
  ucontext_t context;
  jmp_buf at;
  bool born = false, done;
  Meeting waits;
  unsigned mask;
  uint64_t mine, found;
  int from;
  int64_t warps, blocks;  // barriers that it has passed
};

struct Range {  // of a tensor
  const char *first, *last;
  bool writes;
};

struct Stamp {  // of an access
  int64_t block = -1;
  int thread = 0;
  int64_t warps = 0, blocks = 0;
};
struct Touched {
  Stamp read, other, write;  // the last reader, the last one before that was another thread, the last writer
};

std::mutex turn;
std::vector<Range> ranges;
std::vector<Thread> all(MOST);
int threads = 0;
std::unordered_map<uintptr_t, Touched> touched;  // by two bytes, as far as something may be written there
std::string fault;
bool running = false;
int now = 0;  // thread
int64_t place = 0;
jmp_buf home;
void (*entry)(const void*);
Range argument;

[[noreturn]] void fail(const std::string& why) {
  fault = why + " by thread " + std::to_string(now) + " of block " + std::to_string(place);
  _longjmp(home, 2);
}

bool ordered(const Stamp& before) {
  const Thread& t = all[now];
  if (before.block < 0) return true;
  if (before.block != place) return false;
  if (before.thread == now || before.blocks < t.blocks) return true;
  return before.thread / WARP == now / WARP && before.warps < t.warps;
}

void touch(const void* address, size_t bytes, bool writes) {
  if (!running) return;
  const char* first = static_cast<const char*>(address);
  const char* last = first + bytes;
  const char* stack = all[now].stack.get();
  if (first >= stack && last <= stack + STACK) return;
  if (!writes && first >= argument.first && last <= argument.last) return;
  for (const dim3* r : {&threadIdx, &blockIdx, &blockDim, &gridDim})
    if (!writes && first >= (const char*)r && last <= (const char*)(r + 1)) return;
  bool inside = first >= __start_shared && last <= __stop_shared, tracked = inside;
  for (const Range& r : ranges)
    if (first >= r.first && last <= r.last) { inside |= !writes || r.writes, tracked |= r.writes; }
  if (!inside) fail(std::to_string(bytes) + (writes ? " bytes written" : " bytes read") + " outside of the tensors");
  if (!tracked) return;
  const Stamp stamp{place, now, all[now].warps, all[now].blocks};
  for (uintptr_t unit = (uintptr_t)first / 2; unit <= ((uintptr_t)last - 1) / 2; unit++) {
    Touched& t = touched[unit];
    const bool good = ordered(t.write) && (!writes || (ordered(t.read) && ordered(t.other)));
    if (!good) fail("a race: the same bytes are accessed by two threads");
    if (writes) {
      t.write = stamp;
    } else {
      if (t.read.block != stamp.block || t.read.thread != stamp.thread) t.other = t.read;
      t.read = stamp;
    }
  }
}

void live() {
  while (true) {
    entry(argument.first);
    all[now].done = true;
    if (!_setjmp(all[now].at)) _longjmp(home, 1);
  }
}

void go(int thread) {
  now = thread;
  threadIdx = dim3(now % blockDim.x, now / blockDim.x % blockDim.y, now / blockDim.x / blockDim.y);
  Thread& t = all[thread];
  t.waits = Meeting::none;
  switch (_setjmp(home)) {
    case 0:
      if (t.born) _longjmp(t.at, 1);
      t.born = true, t.stack.reset(new char[STACK]);
      getcontext(&t.context);
      t.context.uc_stack.ss_sp = t.stack.get(), t.context.uc_stack.ss_size = STACK, t.context.uc_link = nullptr;
      makecontext(&t.context, live, 0);
      setcontext(&t.context);
      break;
    case 2:
      throw fault;
  }
}

// Until all of its lanes are at the block's barrier, or done.
void go_warp(int first, int last) {
  while (true) {
    for (int i = first; i < last; i++)
      if (!all[i].done && all[i].waits == Meeting::none) go(i);
    const Thread* some = nullptr;
    for (int i = first; i < last; i++)
      if (!all[i].done && all[i].waits != Meeting::block) some = &all[i];
    if (!some) return;
    unsigned votes = 0;
    for (int i = first; i < last; i++) {
      const Thread& t = all[i];
      now = i;
      if (t.done || t.waits != some->waits || t.mask != ~0u) throw std::string("lanes of a warp part at a meeting");
      votes |= (unsigned)(t.mine & 1) << (i - first);
    }
    for (int i = first; i < last; i++) {
      Thread& t = all[i];
      if (t.waits == Meeting::shuffle) t.found = all[first + t.from % WARP].mine;
      if (t.waits == Meeting::ballot) t.found = votes;
      if (t.waits == Meeting::warp) t.warps++;
    }
    for (int i = first; i < last; i++) all[i].waits = Meeting::none;
  }
}

void go_block() {
  for (int i = 0; i < threads; i++) {
    Thread& t = all[i];
    t.done = false, t.waits = Meeting::none, t.warps = t.blocks = 0;
  }
  for (bool left = true; left;) {
    for (int first = 0; first < threads; first += WARP) go_warp(first, min(first + WARP, threads));
    left = false;
    for (int i = 0; i < threads; i++)
      if (!all[i].done) left = true, all[i].blocks++, all[i].waits = Meeting::none;
  }
}

}  // namespace

int lane() { return now % WARP; }

uint64_t meet(Meeting what, unsigned mask, uint64_t mine, int from) {
  Thread& t = all[now];
  t.waits = what, t.mask = mask, t.mine = mine, t.from = from;
  if (!_setjmp(t.at)) _longjmp(home, 1);
  return t.found;
}

cudaError_t run(const cudaLaunchConfig_t& config, void (*enter)(const void*), const void* launch, size_t bytes) {
  const std::lock_guard<std::mutex> lock(turn);
  gridDim = config.gridDim, blockDim = config.blockDim;
  threads = (int)(blockDim.x * blockDim.y * blockDim.z);
  if (threads > MOST) return cudaErrorInvalidValue;
  touched.clear();
  entry = enter, argument = {static_cast<const char*>(launch), static_cast<const char*>(launch) + bytes, false};
  cudaError_t error = 0;
  running = true;
  try {
    for (place = 0; place < (int64_t)gridDim.x * gridDim.y * gridDim.z; place++) {
      const int64_t x = gridDim.x, y = gridDim.y;
      blockIdx = dim3((unsigned)(place % x), (unsigned)(place / x % y), (unsigned)(place / x / y));
      for (const char* p = __start_shared; p < __stop_shared; p += 2) touched.erase((uintptr_t)p / 2);
      go_block();
    }
  } catch (const std::string& why) {
    fault = why, error = FAULT;
    for (Thread& t : all) t.born = false;  // whatever they were at
  }
  running = false;
  return error;
}

const char* text(cudaError_t error) { return error == FAULT ? fault.c_str() : "a launch of wrong sizes"; }

}  // namespace machine

// What a test may say: these bytes are a tensor, from now on; and forget them all.
#define TOLD extern "C" __attribute__((visibility("default"))) void
TOLD machine_allow(const void* first, size_t bytes, int writes) {
  machine::ranges.push_back({static_cast<const char*>(first), static_cast<const char*>(first) + bytes, writes != 0});
}
TOLD machine_forget() { machine::ranges.clear(); }

// What the compiler calls.
#define HOOK(bytes)                                                               \
  void __tsan_read##bytes(void* p) { machine::touch(p, bytes, false); }           \
  void __tsan_write##bytes(void* p) { machine::touch(p, bytes, true); }           \
  void __tsan_unaligned_read##bytes(void* p) { machine::touch(p, bytes, false); } \
  void __tsan_unaligned_write##bytes(void* p) { machine::touch(p, bytes, true); } \
  void __tsan_volatile_read##bytes(void* p) { machine::touch(p, bytes, false); }  \
  void __tsan_volatile_write##bytes(void* p) { machine::touch(p, bytes, true); }
extern "C" {
HOOK(1) HOOK(2) HOOK(4) HOOK(8) HOOK(16) void __tsan_read_range(void* p, size_t bytes) {
  machine::touch(p, bytes, false);
}
void __tsan_write_range(void* p, size_t bytes) { machine::touch(p, bytes, true); }
void __tsan_init() {}
void __tsan_func_entry(void*) {}
void __tsan_func_exit() {}
}

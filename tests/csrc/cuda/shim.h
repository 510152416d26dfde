// Runs the bodies of csrc/cuda on the processor, program by program: a thread of a program is a
// fiber, which runs until it comes to a barrier or tells its warp something. Fibers take turns in a
// shuffled order, or warps run as far ahead as they can, so that what a barrier is missing for goes
// wrong; memory is watched by AddressSanitizer.
#pragma once

#include <ucontext.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <exception>
#include <functional>
#include <memory>
#include <new>
#include <random>
#include <set>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#ifdef __SANITIZE_ADDRESS__
#include <sanitizer/common_interface_defs.h>
#endif

#include "cpu/isa.h"
#include "global_memory.h"

#define __device__
#define __forceinline__ inline

struct alignas(8) float2 {
  float x, y;
};
struct alignas(16) float4 {
  float x, y, z, w;
};
inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }
inline void __stwb(float4* to, float4 value) { *to = value; }

namespace da2s_fast::shim {

struct Index {
  unsigned x = 0, y = 0, z = 0;
};

enum class State { ready, barrier, warp, done };

struct Fiber {
  ucontext_t context;
  std::unique_ptr<char[]> stack;
  State state;
  uint32_t told;
};

// Let AddressSanitizer follow from stack to stack.
inline void leave(void** fake, const void* to, size_t size) {
#ifdef __SANITIZE_ADDRESS__
  __sanitizer_start_switch_fiber(fake, to, size);
#endif
}
inline void arrive(void* fake, const void** from = nullptr, size_t* size = nullptr) {
#ifdef __SANITIZE_ADDRESS__
  __sanitizer_finish_switch_fiber(fake, from, size);
#endif
}

class Program {
 public:
  static constexpr size_t kStack = 128 * 1024;

  Program(unsigned threads, const std::function<void()>& body, unsigned seed)
      : fibers_(threads), body_(body), order_(seed) {}

  // Throws what a thread throws, and if threads do not all come to a barrier.
  void run();
  // A fiber waits there for the others.
  void wait(State state);
  Fiber& current() { return fibers_[now_]; }
  uint32_t told_by(unsigned lane) const { return fibers_[now_ / 32 * 32 + lane].told; }

 private:
  static void enter();
  void resume(unsigned thread);
  void run_ahead(unsigned warp);
  bool release(unsigned first, unsigned last, State state);
  bool release();

  std::vector<Fiber> fibers_;
  const std::function<void()>& body_;
  std::mt19937 order_;
  ucontext_t scheduler_;
  const void* scheduler_stack_ = nullptr;
  size_t scheduler_size_ = 0;
  std::exception_ptr failure_;
  unsigned now_ = 0;
};

inline Program* program = nullptr;
// File and line of a barrier.
using Place = std::pair<std::string, int>;
// One that is left out, to see that it is missed.
inline Place missing_barrier;

inline Index thread_index, block_index, grid_size;

// All that were come to.
inline std::set<Place>& barriers() {
  static std::set<Place> places;
  return places;
}

inline void barrier(const char* file, int line) {
  const auto is_missing = [&] {
    const Place place{file, line};
    barriers().insert(place);
    return place == missing_barrier;
  };
  if (!is_missing()) program->wait(State::barrier);
}

inline float from_lane(float value, unsigned lane) {
  std::memcpy(&program->current().told, &value, sizeof value);
  program->wait(State::warp);
  const uint32_t bits = program->told_by(lane);
  std::memcpy(&value, &bits, sizeof value);
  program->wait(State::warp);
  return value;
}

inline void Program::enter() {
  arrive(nullptr, &program->scheduler_stack_, &program->scheduler_size_);
  try {
    program->body_();
  } catch (...) {  // there is nobody on this stack who could
    program->failure_ = std::current_exception();
  }
  program->current().state = State::done;
  leave(nullptr, program->scheduler_stack_, program->scheduler_size_);
  setcontext(&program->scheduler_);
}

inline void Program::wait(State state) {
  Fiber& fiber = current();
  fiber.state = state;
  void* fake = nullptr;
  leave(&fake, scheduler_stack_, scheduler_size_);
  swapcontext(&fiber.context, &scheduler_);
  arrive(fake);
}

inline void Program::resume(unsigned thread) {
  now_ = thread;
  thread_index = {thread, 0, 0};
  void* fake = nullptr;
  leave(&fake, fibers_[thread].stack.get(), kStack);
  swapcontext(&scheduler_, &fibers_[thread].context);
  arrive(fake);
}

// Let these go on if all of them wait for that; returns whether they do.
inline bool Program::release(unsigned first, unsigned last, State state) {
  for (unsigned thread = first; thread < last; ++thread)
    if (fibers_[thread].state != state) return false;
  for (unsigned thread = first; thread < last; ++thread) fibers_[thread].state = State::ready;
  return true;
}

// Let those go on whose warp, or program, has come; returns whether anybody may.
inline bool Program::release() {
  const unsigned threads = static_cast<unsigned>(fibers_.size());
  bool any = release(0, threads, State::barrier);
  for (unsigned first = 0; first < threads; first += 32)
    any |= release(first, first + 32, State::warp);
  return any;
}

// Until it comes to a barrier.
inline void Program::run_ahead(unsigned warp) {
  do {
    const unsigned order = order_() % 32;
    for (unsigned lane = 0; lane < 32; ++lane) {
      const unsigned thread = warp * 32 + (lane ^ order);
      if (fibers_[thread].state == State::ready) resume(thread);
    }
  } while (release(warp * 32, warp * 32 + 32, State::warp));
}

inline void Program::run() {
  std::vector<unsigned> turns(fibers_.size());
  for (unsigned thread = 0; thread < turns.size(); ++thread) {
    turns[thread] = thread;
    Fiber& fiber = fibers_[thread];
    fiber.state = State::ready;
    fiber.stack = std::make_unique_for_overwrite<char[]>(kStack);
    getcontext(&fiber.context);
    fiber.context.uc_stack.ss_sp = fiber.stack.get();
    fiber.context.uc_stack.ss_size = kStack;
    fiber.context.uc_link = nullptr;
    makecontext(&fiber.context, &Program::enter, 0);
  }
  program = this;
  do {
    std::shuffle(turns.begin(), turns.end(), order_);
    const bool ahead = order_() % 2 == 0;
    for (const unsigned thread : turns) {
      if (ahead) run_ahead(thread / 32);
      if (fibers_[thread].state == State::ready) resume(thread);
    }
  } while (release());
  if (failure_) std::rethrow_exception(failure_);
  for (const Fiber& fiber : fibers_)
    if (fiber.state != State::done) throw std::runtime_error("a barrier that not all come to");
}

// These sources know no instruction sets: once is enough.
inline bool wanted() { return chosen_isa() == Isa::portable; }

// Start `body(shared)` for every program of a grid, each with `bytes` of shared memory, all NaN.
template <class Body>
void launch(Index grid, unsigned threads, size_t bytes, unsigned seed, Body body) {
  grid_size = grid;
  for (unsigned y = 0; y < grid.y; ++y)
    for (unsigned x = 0; x < grid.x; ++x) {
      block_index = {x, y, 0};
      const std::unique_ptr<char, void (*)(char*)> shared(static_cast<char*>(::operator new(bytes)),
                                                          [](char* p) { ::operator delete(p); });
      std::memset(shared.get(), 0xff, bytes);
      if (memory != nullptr) memory->begin();
      const std::function<void()> run = [&] { body(shared.get()); };
      Program(threads, run, seed + x + grid.x * y).run();
    }
}

}  // namespace da2s_fast::shim

#define threadIdx (::da2s_fast::shim::thread_index)
#define blockIdx (::da2s_fast::shim::block_index)
#define gridDim (::da2s_fast::shim::grid_size)
#define __syncthreads() ::da2s_fast::shim::barrier(__FILE__, __LINE__)
#define __shfl_xor_sync(mask, value, lanes) \
  ::da2s_fast::shim::from_lane(value, (threadIdx.x % 32) ^ unsigned(lanes))

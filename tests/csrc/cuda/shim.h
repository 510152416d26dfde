// Runs the bodies of csrc/cuda on the processor, program by program: a thread of a program is a
// fiber, which runs until it comes to a barrier or tells its warp something. Fibers take turns in a
// shuffled order, so that what a barrier is missing for goes wrong; memory is watched by
// AddressSanitizer.
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
  const Place place{file, line};
  barriers().insert(place);
  if (place != missing_barrier) program->wait(State::barrier);
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

// Let those go on whose warp, or program, has come; returns whether anybody may.
inline bool Program::release() {
  bool any = false;
  const auto count = [](auto first, auto last, State state) {
    return std::count_if(first, last, [=](const Fiber& f) { return f.state == state; });
  };
  const auto free = [&](auto first, auto last, State state) {
    if (count(first, last, state) != last - first) return;
    for (; first != last; ++first) first->state = State::ready;
    any = true;
  };
  for (size_t warp = 0; warp < fibers_.size(); warp += 32)
    free(fibers_.begin() + warp, fibers_.begin() + warp + 32, State::warp);
  free(fibers_.begin(), fibers_.end(), State::barrier);
  return any;
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
    for (const unsigned thread : turns)
      if (fibers_[thread].state == State::ready) resume(thread);
  } while (release());
  if (failure_) std::rethrow_exception(failure_);
  for (const Fiber& fiber : fibers_)
    if (fiber.state != State::done) throw std::runtime_error("a barrier that not all come to");
}

// These sources know no instruction sets: once is enough. ThreadSanitizer knows no fibers.
inline bool wanted() {
#ifdef __SANITIZE_THREAD__
  return false;
#else
  return chosen_isa() == Isa::portable;
#endif
}

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

// Programs of one launch that wait for one another: who does what, and when.
//
// A task is done by as many programs as there are chunks. They take tickets as they begin, and the
// table of tasks has an order in which nobody waits for a later ticket: whatever is waited for has
// begun and will end, however few programs a GPU runs at a time. A program whose work is done
// counts up its task's counter, releasing what it wrote; one that has seen a counter high enough
// acquires it. Between launches somebody else sets the counters to 0.
#pragma once

#include "table.cuh"
#include "tile.cuh"

namespace da2s_fast::cell {

#ifdef __CUDACC__
__device__ __forceinline__ int next_ticket(int* counter) {
  int ticket;
  asm volatile("atom.relaxed.gpu.global.add.s32 %0, [%1], 1;"
               : "=r"(ticket)
               : "l"(__cvta_generic_to_global(counter))
               : "memory");
  return ticket;
}

__device__ __forceinline__ int acquired(const int* counter) {
  int value;
  asm volatile("ld.acquire.gpu.global.s32 %0, [%1];"
               : "=r"(value)
               : "l"(__cvta_generic_to_global(counter))
               : "memory");
  return value;
}

__device__ __forceinline__ void released(int* counter) {
  asm volatile("red.release.gpu.global.add.s32 [%0], 1;" ::"l"(__cvta_generic_to_global(counter))
               : "memory");
}

// What was there; all that was released there before is acquired.
__device__ __forceinline__ int arrived(int* counter) {
  int before;
  asm volatile("atom.acq_rel.gpu.global.add.s32 %0, [%1], 1;"
               : "=r"(before)
               : "l"(__cvta_generic_to_global(counter))
               : "memory");
  return before;
}

// Nobody waits as long as this takes, unless what is waited for has failed: better an error than a
// GPU that hangs.
__device__ __forceinline__ void wait_until(const int* counter, int count) {
  for (int tries = 0; acquired(counter) < count; ++tries) {
    if (tries == 1 << 26) __trap();
    __nanosleep(200);
  }
}
#else
// Tests have programs run one after the other: nothing is left to wait for.
using shim::arrived;
using shim::next_ticket;
using shim::released;
using shim::wait_until;
#endif

// Behind the next barrier what is waited for is there, for all threads. Tasks have one before they
// read what others wrote, most of them as they read their rows.
__device__ __forceinline__ void wait_for(const int64_t* task, const int64_t* waits,
                                         const int* counters) {
  if (threadIdx.x < task[kTaskLength]) {
    const int64_t* wait = waits + (task[kTaskFirst] + threadIdx.x) * kWait;
    wait_until(counters + wait[kWaitCounter], static_cast<int>(wait[kWaitCount]));
  }
}

// The task of a program that has one; `own` is what it knows of itself, in shared memory. It is
// asked for anew: kept, it would take registers meanwhile.
template <class Call, class Own>
__device__ __forceinline__ const int64_t* task_of(const Call& call, const Own* own) {
  return call.tasks + int64_t(own->task) * kTask;
}

// Take a ticket, and wait for what its task needs. `begin` notes task and chunk.
template <class Call, class Own>
__device__ __forceinline__ void take_task(const Call& call, Own* own) {
  if (threadIdx.x == 0) {
    const int ticket = next_ticket(call.counters);
    begin(call, ticket / call.chunks, ticket % call.chunks, own);
  }
  __syncthreads();
  wait_for(task_of(call, own), call.waits, call.counters);
}

// Whether a program is the last of its task to come here. It has what all of them wrote before.
__device__ __forceinline__ bool is_last(const int64_t* task, int* counters, int programs,
                                        int* told) {
  __syncthreads();
  if (threadIdx.x == 0) *told = arrived(counters + task[kTaskArrivals]) == programs - 1;
  __syncthreads();
  return *told != 0;
}

// All threads are done.
__device__ __forceinline__ void done(const int64_t* task, int* counters) {
  __syncthreads();
  if (threadIdx.x == 0) released(counters + task[kTaskCounter]);
}

}  // namespace da2s_fast::cell

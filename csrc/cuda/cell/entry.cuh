// A kernel that can be launched: what makes one of a function of a program.
#pragma once

#include "tile.cuh"

// `resident`: programs that a multiprocessor has shared memory for, and registers must suffice for.
// From launch bounds alone nvcc does not conclude how many rounds loops over threads take: it would
// keep addresses in registers for rounds that there are not.
#define DA2S_ENTRY(name, Call, resident, ...)                                       \
  extern "C" __global__ void __launch_bounds__(da2s_fast::cell::kThreads, resident) \
      name(const __grid_constant__ da2s_fast::cell::Call call) {                    \
    __builtin_assume(threadIdx.x < da2s_fast::cell::kThreads);                      \
    extern __shared__ __align__(16) char shared[];                                  \
    da2s_fast::cell::__VA_ARGS__(call, shared);                                     \
  }

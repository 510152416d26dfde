// Asking for memory ahead of its use. Only for *.simd.cpp.
#pragma once

#include "../vector.h"
#include "kernels.h"

namespace da2s_fast::DA2S_ISA {
namespace {

// Asks for the next bytes, into the second cache.
DA2S_INLINE void ask(Ahead* ahead) {
  if (ahead == nullptr) return;
  for (int i = 0; i < 2; ++i) {
    const char* at = ahead->at[i];
    const int64_t left = ahead->end[i] - at;
    const char* stop = at + (left < ahead->step ? left : ahead->step);
    for (; at < stop; at += 64) __builtin_prefetch(at, 0, 2);
    ahead->at[i] = at;
  }
}

}  // namespace
}  // namespace da2s_fast::DA2S_ISA

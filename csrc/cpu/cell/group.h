// The number of images in a group as a constant of inner loops. Only for *.simd.cpp.
#pragma once

#include "lanes.h"

namespace da2s_fast::DA2S_ISA {
namespace {

// Calls run with a Constant; a group never has more images than a vector has numbers.
template <class T, class Run>
DA2S_INLINE void with_images(int64_t images, Run run) {
  switch (images) {
    case 1:
      return run(Constant<1>{});
    case 2:
      return run(Constant<kLanes<T> >= 2 ? 2 : 1>{});
    case 4:
      return run(Constant<kLanes<T> >= 4 ? 4 : 1>{});
    case 8:
      return run(Constant<kLanes<T> >= 8 ? 8 : 1>{});
    default:
      return run(Constant<kLanes<T> >= 16 ? 16 : 1>{});
  }
}

}  // namespace
}  // namespace da2s_fast::DA2S_ISA

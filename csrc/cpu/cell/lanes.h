// What the kernels of a cell have in common. Only for *.simd.cpp.
#pragma once

#include "../vector.h"
#include "kernels.h"

namespace da2s_fast::DA2S_ISA {
namespace {

// Norms' sums are taken over so many pixels in single precision, then added in double.
constexpr int64_t kRun = 32;

// A number that inner loops know when they are compiled.
template <int N>
struct Constant {
  static constexpr int value = N;
  constexpr operator int() const { return N; }
};

// The same pixels from a lane on.
template <class T>
DA2S_INLINE Grid<T> lanes_from(Grid<T> grid, int64_t lane) {
  return {grid.data + lane, grid.row, grid.pixel};
}

// Calls run(lane, how many) for all vectors of lanes, two at a time.
template <class T, class Run>
DA2S_INLINE void for_two_vectors(int64_t lanes, Run run) {
  int64_t lane = 0;
  for (; lane + 2 * kLanes<T> <= lanes; lane += 2 * kLanes<T>) run(lane, Constant<2>{});
  if (lane < lanes) run(lane, Constant<1>{});
}

}  // namespace
}  // namespace da2s_fast::DA2S_ISA

// The element types of the CPU kernels and the precision they compute in.
#pragma once

#include <cstdint>

namespace da2s_fast {

struct BFloat16 {
  uint16_t bits;
};

struct Float16 {
  uint16_t bits;
};

// float64 computes in float64, everything else in float32; sums over a tensor are double for all.
template <class T>
struct Compute {
  using type = float;
};
template <>
struct Compute<double> {
  using type = double;
};
template <class T>
using compute_t = typename Compute<T>::type;

}  // namespace da2s_fast

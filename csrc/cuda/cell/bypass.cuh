// With partial channels, what goes past the candidates of an edge.
#pragma once

#include "tile.cuh"

namespace da2s_fast::cell {

// What goes past the candidates to an output pixel: 4 channels of the state's pixel, or at stride 2
// the maximum of 2x2, the last NaN among them, as in PyTorch.
__device__ __forceinline__ float4 bypassed(const float* state, const Input& input, int pitch,
                                           int64_t image, int y, int x) {
  const auto at = [&](int row, int column) {
    const int64_t pixel = (image * input.height + row) * input.width + column;
    return *reinterpret_cast<const float4*>(state + pixel * pitch);
  };
  float4 best = at(y * input.stride, x * input.stride);
  if (input.stride == 1) return best;
  const auto beats = [](float v, float best) { return v > best || v != v ? v : best; };
  for (int tap = 1; tap < 4; ++tap) {
    const int row = 2 * y + tap / 2, column = 2 * x + tap % 2;
    if (row >= input.height || column >= input.width) continue;
    const float4 v = at(row, column);
    best =
        make_float4(beats(v.x, best.x), beats(v.y, best.y), beats(v.z, best.z), beats(v.w, best.w));
  }
  return best;
}

}  // namespace da2s_fast::cell

// 3x3 pools out of a tile in shared memory.
#pragma once

#include <cmath>

#include "tile.cuh"

namespace da2s_fast::cell {

// As in PyTorch: the first of equal maxima, the last NaN.
__device__ inline void compete(float v, float tap, float& best, float& winner) {
  if (v > best || v != v) {
    best = v;
    winner = tap;
  }
}
__device__ inline void compete(float4 v, float tap, float4& best, float4& winner) {
  compete(v.x, tap, best.x, winner.x);
  compete(v.y, tap, best.y, winner.y);
  compete(v.z, tap, best.z, winner.z);
  compete(v.w, tap, best.w, winner.w);
}

// The taps of a pixel's window that are inside of the image, and where it begins in the tile, at
// the thread's 4 channels. Rows in the middle, and columns, always are.
template <int C>
struct Window {
  const float4* from;
  int first;  // row
  int end;    // of the rows
  bool left;  // column
  bool right;

  __device__ Window(const float* shared, const Tile& tile, const Input& input, const Pixel& pixel) {
    const int y = (tile.top + pixel.y) * input.stride, x = pixel.x * input.stride;
    first = y > 0 ? 0 : 1;
    end = y + 1 < input.height ? 3 : 2;
    left = x > 0;
    right = x + 1 < input.width;
    const int row = pixel.image * tile.rows + pixel.y * input.stride + tile.halo - 1 + first;
    from = reinterpret_cast<const float4*>(shared) +
           (row * tile.columns + x + tile.halo - 1) * kQuads<C> + threadIdx.x % kQuads<C>;
  }
};

// The average over what is inside of the image; outside the tile has zeros.
template <int C>
__device__ __forceinline__ float4 average_of(const Window<C>& window, int columns) {
  float4 sum = make_float4(0, 0, 0, 0);
  const float4* from = window.from;
#pragma unroll 1
  for (int row = window.first; row < window.end; ++row) {
#pragma unroll
    for (int column = 0; column < 3; ++column) {
      const float4 v = from[column * kQuads<C>];
      sum = make_float4(sum.x + v.x, sum.y + v.y, sum.z + v.z, sum.w + v.w);
    }
    from += columns * kQuads<C>;
  }
  const int count = (window.end - window.first) * (1 + window.left + window.right);
  const float cells = static_cast<float>(count);
  return make_float4(sum.x / cells, sum.y / cells, sum.z / cells, sum.w / cells);
}

// The maximum, and which tap it was.
template <int C>
__device__ __forceinline__ float4 maximum_of(const Window<C>& window, int columns, float4& winner) {
  float tap = static_cast<float>(3 * window.first), start = window.left ? tap : tap + 1;
  float4 best = make_float4(-INFINITY, -INFINITY, -INFINITY, -INFINITY);
  winner = make_float4(start, start, start, start);
  const float4* from = window.from;
#pragma unroll 1
  for (int row = window.first; row < window.end; ++row) {
    if (window.left) compete(from[0], tap, best, winner);
    compete(from[kQuads<C>], tap + 1, best, winner);
    if (window.right) compete(from[2 * kQuads<C>], tap + 2, best, winner);
    from += columns * kQuads<C>;
    tap += 3;
  }
  return best;
}

}  // namespace da2s_fast::cell

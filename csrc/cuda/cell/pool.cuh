// 3x3 pools out of a tile in shared memory.
#pragma once

#include "tile.cuh"

namespace da2s_fast::cell {

// As in PyTorch: the first of equal maxima, the last NaN.
__device__ inline void compete(float v, float tap, float& best, float& winner) {
  if (v > best || v != v || winner < 0) {
    best = v;
    winner = tap;
  }
}

// A pixel's 4 channels: average over what is inside of the image, or maximum and which tap it was.
template <int C>
__device__ float4 pooled(const float* shared, const Tile& tile, const Input& input,
                         const Pixel& pixel, bool averages, float4& winner) {
  const float start = 0;
  float4 best = make_float4(start, start, start, start);
  winner = make_float4(-1, -1, -1, -1);
  int count = 0;
  for (int tap = 0; tap < 9; ++tap) {
    const int dy = tap / 3 - 1, dx = tap % 3 - 1;
    const int y = (tile.top + pixel.y) * input.stride + dy, x = pixel.x * input.stride + dx;
    if (y < 0 || y >= input.height || x < 0 || x >= input.width) continue;
    const int row = pixel.image * tile.rows + pixel.y * input.stride + tile.halo + dy;
    const float4 v = reinterpret_cast<const float4*>(
        shared)[(row * tile.columns + x + tile.halo) * kQuads<C> + threadIdx.x % kQuads<C>];
    ++count;
    if (averages) {
      best = make_float4(best.x + v.x, best.y + v.y, best.z + v.z, best.w + v.w);
    } else {
      const float place = static_cast<float>(tap);
      compete(v.x, place, best.x, winner.x);
      compete(v.y, place, best.y, winner.y);
      compete(v.z, place, best.z, winner.z);
      compete(v.w, place, best.w, winner.w);
    }
  }
  if (!averages) return best;
  const float cells = static_cast<float>(count > 0 ? count : 1);
  return make_float4(best.x / cells, best.y / cells, best.z / cells, best.w / cells);
}

}  // namespace da2s_fast::cell

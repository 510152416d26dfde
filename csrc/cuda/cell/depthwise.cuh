// Depthwise convolutions out of a tile in shared memory.
#pragma once

#include "tile.cuh"

namespace da2s_fast::cell {

// A thread sums kRun neighbouring outputs of one channel in registers, row by row of the kernel: an
// input is read once per row and used for every output whose window holds it. `weights` are (taps,
// C), kTurned: turned around, and only of the tile's lines from `first` to before `end`; `between`
// (pixels of the tile, C). The lanes of a warp take channels, then rows.
template <int C, int kKernel, int kDilation, int kStride, bool kTurned = false>
__device__ __forceinline__ void depthwise(const float* shared, const Tile& tile, int padding,
                                          const float* weights, float* between, int first = 0,
                                          int end = 0) {
  constexpr int kReach = (kRun - 1) * kStride + (kKernel - 1) * kDilation + 1;
  const int c = threadIdx.x % C;
  const int log_lines = tile.log_height + tile.log_images;
  for (int unit = threadIdx.x / C; unit < pixels_of(tile) / kRun; unit += kThreads / C) {
    const int line = unit & ((1 << log_lines) - 1);
    if (kTurned && (line < first || line >= end)) continue;
    const int x = (unit >> log_lines) * kRun;
    const int image = line >> tile.log_height, y = line & ((1 << tile.log_height) - 1);
    const int row = image * tile.rows + y * kStride + tile.halo - padding;
    const float* from = shared + (row * tile.columns + x * kStride + tile.halo - padding) * C + c;
    float sums[kRun] = {};
#pragma unroll 1
    for (int tap = 0; tap < kKernel * kKernel; tap += kKernel) {
      float w[kKernel];
#pragma unroll
      for (int k = 0; k < kKernel; ++k)
        w[k] = weights[(kTurned ? kKernel * kKernel - 1 - tap - k : tap + k) * C + c];
#pragma unroll
      for (int i = 0; i < kReach; ++i) {
        const float v = from[i * C];
#pragma unroll
        for (int k = 0; k < kKernel; ++k) {
          const int steps = i - k * kDilation;
          if (steps >= 0 && steps % kStride == 0 && steps / kStride < kRun)
            sums[steps / kStride] += v * w[k];
        }
      }
      from += kDilation * tile.columns * C;
    }
    float* to = between + ((line << tile.log_width) + x) * C + c;
#pragma unroll
    for (int i = 0; i < kRun; ++i) to[i * C] = sums[i];
  }
}

// A 1x1 convolution has no sums: its input is moved to where depthwise results lie.
template <int C>
__device__ void gather(const float* shared, const Tile& tile, int stride, int padding,
                       float* between) {
  const int c = threadIdx.x % C;
  for (int i = threadIdx.x / C; i < pixels_of(tile); i += kThreads / C) {
    const int x = i & ((1 << tile.log_width) - 1), line = i >> tile.log_width;
    const int image = line >> tile.log_height, y = line & ((1 << tile.log_height) - 1);
    const int row = image * tile.rows + y * stride + tile.halo - padding;
    between[i * C + c] = shared[(row * tile.columns + x * stride + tile.halo - padding) * C + c];
  }
}

// The convolution by what its row says.
template <int C, int kStride>
__device__ void depthwise_of(int kernel, int dilation, const float* shared, const Tile& tile,
                             int padding, const float* weights, float* between) {
  if (dilation == 1) {
    if (kernel == 3) depthwise<C, 3, 1, kStride>(shared, tile, padding, weights, between);
    if (kernel == 5) depthwise<C, 5, 1, kStride>(shared, tile, padding, weights, between);
    if (kernel == 7) depthwise<C, 7, 1, kStride>(shared, tile, padding, weights, between);
  } else {
    if (kernel == 3) depthwise<C, 3, 2, kStride>(shared, tile, padding, weights, between);
    if (kernel == 5) depthwise<C, 5, 2, kStride>(shared, tile, padding, weights, between);
  }
}

}  // namespace da2s_fast::cell

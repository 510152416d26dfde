// Depthwise convolutions out of a tile in shared memory.
#pragma once

#include "tile.cuh"

namespace da2s_fast::cell {

// Of each image of a tile.
struct Rows {
  int first;
  int end;
};

// A thread sums kRun neighbouring outputs of two channels in registers, row by row of the kernel:
// an input is read once per row, both channels at once, and used for every output whose window
// holds it. `weights` are (taps, C), `between` (pixels of the tile, C). kTurned: with the kernel
// turned around, and of the rows only those that are wanted. The lanes of a warp take channels,
// then rows.
template <int C, int kKernel, int kDilation, int kStride, bool kTurned = false>
__device__ __forceinline__ void depthwise(const float* shared, const Tile& tile, int padding,
                                          const float* weights, float* between, Rows wanted = {}) {
  const int thread = this_thread();
  constexpr int kReach = (kRun - 1) * kStride + (kKernel - 1) * kDilation + 1;
  constexpr int kPairs = C / 2;
  const int pair = thread % kPairs;
  const int log_lines = tile.log_height + tile.log_images;
  for (int unit = thread / kPairs; unit < pixels_of(tile) / kRun; unit += kThreads / kPairs) {
    const int line = unit & ((1 << log_lines) - 1);
    const int x = (unit >> log_lines) * kRun;
    const int image = line >> tile.log_height, y = line & ((1 << tile.log_height) - 1);
    if (kTurned && (y < wanted.first || y >= wanted.end)) continue;
    const int row = image * tile.rows + y * kStride + tile.halo - padding;
    const int column = x * kStride + tile.halo - padding;
    const float2* from =
        reinterpret_cast<const float2*>(shared) + (row * tile.columns + column) * kPairs + pair;
    const float2* taps = reinterpret_cast<const float2*>(weights) + pair;
    if (kTurned) taps += (kKernel * kKernel - 1) * kPairs;
    float2 sums[kRun] = {};
#pragma unroll 1
    for (int ky = 0; ky < kKernel; ++ky) {
      float2 w[kKernel];
#pragma unroll
      for (int k = 0; k < kKernel; ++k) w[k] = taps[(kTurned ? -k : k) * kPairs];
#pragma unroll
      for (int i = 0; i < kReach; ++i) {
        const float2 v = from[i * kPairs];
#pragma unroll
        for (int k = 0; k < kKernel; ++k) {
          const int steps = i - k * kDilation;
          if (steps < 0 || steps % kStride != 0 || steps / kStride >= kRun) continue;
          sums[steps / kStride].x += v.x * w[k].x;
          sums[steps / kStride].y += v.y * w[k].y;
        }
      }
      from += kDilation * tile.columns * kPairs;
      taps += (kTurned ? -kKernel : kKernel) * kPairs;
    }
    float2* to =
        reinterpret_cast<float2*>(between) + ((line << tile.log_width) + x) * kPairs + pair;
#pragma unroll
    for (int i = 0; i < kRun; ++i) to[i * kPairs] = sums[i];
  }
}

// A 1x1 convolution has no sums: its input is moved to where depthwise results lie.
template <int C>
__device__ void gather(const float* shared, const Tile& tile, int stride, int padding,
                       float* between) {
  const float4* from = reinterpret_cast<const float4*>(shared) + threadIdx.x % kQuads<C>;
  for (int i = index_of<C>(0); i < pixels_of(tile); i += kThreads / kQuads<C>) {
    const int x = i & ((1 << tile.log_width) - 1), line = i >> tile.log_width;
    const int image = line >> tile.log_height, y = line & ((1 << tile.log_height) - 1);
    const int row = image * tile.rows + y * stride + tile.halo - padding;
    const int column = x * stride + tile.halo - padding;
    reinterpret_cast<float4*>(between)[i * kQuads<C> + threadIdx.x % kQuads<C>] =
        from[(row * tile.columns + column) * kQuads<C>];
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

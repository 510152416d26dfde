// Moments of z: of a chunk where they are made, of the batch where they are needed.
//
// A chunk sums differences from a pivot, the mean of its own first tile, so that no digits cancel:
// single precision over a tile, double precision over tiles.
#pragma once

#include "tile.cuh"

namespace da2s_fast::cell {

// Add up lanes of a warp that have the same channels; all get the sum.
template <int C>
__device__ float across_lanes(float v) {
#pragma unroll
  for (int step = kQuads<C>; step < 32; step *= 2) v += __shfl_xor_sync(0xffffffffu, v, step);
  return v;
}

// Write a warp's sums of two numbers of every channel: (warps, C, 2).
template <int C>
__device__ void add_lanes(const float (&first)[4], const float (&second)[4], float* partial) {
  const int lane = threadIdx.x % 32, c = threadIdx.x % kQuads<C> * 4;
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const float one = across_lanes<C>(first[i]), other = across_lanes<C>(second[i]);
    if (lane < kQuads<C>) {
      float* to = partial + (threadIdx.x / 32 * C + c + i) * 2;
      to[0] = one;
      to[1] = other;
    }
  }
}

// Likewise of values and of their products with others.
template <int C>
__device__ void add_pairs(const float (&values)[kPixels][4], const float (&others)[kPixels][4],
                          float* partial) {
  float sums[4] = {}, products[4] = {};
#pragma unroll
  for (int i = 0; i < 4; ++i)
#pragma unroll
    for (int j = 0; j < kPixels; ++j) {
      sums[i] += values[j][i];
      products[i] += values[j][i] * others[j][i];
    }
  add_lanes<C>(sums, products, partial);
}

// Likewise of differences from the pivots and of their squares.
template <int C>
__device__ void add_up(const float (&values)[kPixels][4], const bool (&live)[kPixels],
                       const float* pivots, float* partial) {
  const int c = threadIdx.x % kQuads<C> * 4;
  float off[kPixels][4];
#pragma unroll
  for (int j = 0; j < kPixels; ++j)
#pragma unroll
    for (int i = 0; i < 4; ++i)
      off[j][i] = live[j] ? values[j][i] - (pivots == nullptr ? 0 : pivots[c + i]) : 0;
  add_pairs<C>(off, off, partial);
}

// The sum over warps of one number of a channel.
template <int C>
__device__ double across_warps(const float* partial, int c, int which) {
  double sum = 0;
  for (int warp = 0; warp < kWarps; ++warp) sum += partial[(warp * C + c) * 2 + which];
  return sum;
}

// The sum over all threads of a channel, which threads c, c + C, ... have; all get it.
template <int C>
__device__ double across_threads(double own, double* scratch) {
  scratch[threadIdx.x] = own;
  __syncthreads();
  double sum = 0;
  for (int part = threadIdx.x % C; part < kThreads; part += C) sum += scratch[part];
  return sum;
}

// Merge the partial moments (chunks, 2, C) of all chunks; the threads of a channel get the same. Of
// channels that are not a thread's `own`, nothing is read.
template <int C>
__device__ void merge(const double* moments, bool own_channel, int chunks, int64_t chunk_pixels,
                      int64_t pixels, double* scratch, double& mean, double& variance) {
  constexpr int kParts = kThreads / C;
  const int c = threadIdx.x % C, start = threadIdx.x / C;
  const auto size_of = [&](int chunk) {
    const int left = pixels - chunk * chunk_pixels;
    return static_cast<double>(left < chunk_pixels ? left : chunk_pixels);
  };
  // Around the first chunk's mean, so that the sum over chunks is one of small numbers.
  const double first = own_channel ? moments[c] : 0;
  if (!own_channel) chunks = 0;
  double own = 0;
#pragma unroll 4
  for (int chunk = start; chunk < chunks && chunk * chunk_pixels < pixels; chunk += kParts)
    own += size_of(chunk) * (moments[chunk * 2 * C + c] - first);
  const double shift = across_threads<C>(own, scratch) / static_cast<double>(pixels);
  __syncthreads();
  own = 0;
#pragma unroll 4
  for (int chunk = start; chunk < chunks && chunk * chunk_pixels < pixels; chunk += kParts) {
    const double off = moments[chunk * 2 * C + c] - first - shift;
    own += moments[(chunk * 2 + 1) * C + c] + size_of(chunk) * off * off;
  }
  mean = first + shift;
  variance = across_threads<C>(own, scratch) / static_cast<double>(pixels);
}

}  // namespace da2s_fast::cell

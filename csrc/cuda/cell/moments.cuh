// Moments of z: of a chunk where they are made, of the batch where they are needed.
//
// A chunk sums differences from a pivot, the mean of its own first tile, so that no digits cancel:
// single precision over a tile, double precision over tiles.
#pragma once

#include "tile.cuh"

namespace da2s_fast::cell {

// Write a warp's sums of a thread's numbers, as many of each channel: (warps, C, kNumbers / 4). Of
// two lanes with the same channels, each hands over half of its numbers and adds up the other half;
// where a single one is left, both add it up.
template <int C, int kNumbers>
__device__ __forceinline__ void add_numbers(float (&v)[kNumbers], float* partial) {
  const int lane = threadIdx.x % 32;
  int left = kNumbers, first = lane % kQuads<C> * kNumbers;
#pragma unroll
  for (int step = kQuads<C>; step < 32; step *= 2) {
    if (left == 1) {
      v[0] += __shfl_xor_sync(0xffffffffu, v[0], step);
      continue;
    }
    const bool upper = (lane & step) != 0;
    left /= 2;
    first += upper ? left : 0;
#pragma unroll
    for (int i = 0; i < left; ++i) {
      const float other = upper ? v[i] : v[left + i];
      v[i] = (upper ? v[left + i] : v[i]) + __shfl_xor_sync(0xffffffffu, other, step);
    }
  }
  if (lane >= kNumbers * kQuads<C>) return;  // a lane before has the same
  float* to = partial + threadIdx.x / 32 * (kNumbers * kQuads<C>)+first;
#pragma unroll
  for (int i = 0; i < left; ++i) to[i] = v[i];
}

// Likewise of two numbers of every channel: (warps, C, 2).
template <int C>
__device__ void add_lanes(const float (&first)[4], const float (&second)[4], float* partial) {
  float both[8];
#pragma unroll
  for (int i = 0; i < 4; ++i) both[2 * i] = first[i], both[2 * i + 1] = second[i];
  add_numbers<C>(both, partial);
}

// Sums of a tile's values: (warps, C). Pixels of which `at` is negative have none.
template <int C>
__device__ __forceinline__ void add_values(const float (&values)[kPixels][4],
                                           const int (&at)[kPixels], float* partial) {
  float sums[4] = {};
#pragma unroll
  for (int j = 0; j < kPixels; ++j) {
    if (at[j] < 0) continue;
#pragma unroll
    for (int i = 0; i < 4; ++i) sums[i] += values[j][i];
  }
  add_numbers<C>(sums, partial);
}

// Likewise of differences from the pivots and of their squares: (warps, C, 2).
template <int C>
__device__ __forceinline__ void add_up(const float (&values)[kPixels][4], const int (&at)[kPixels],
                                       const float* pivots, float* partial) {
  const float4 four = reinterpret_cast<const float4*>(pivots)[threadIdx.x % kQuads<C>];
  const float pivot[4] = {four.x, four.y, four.z, four.w};
  float sums[4] = {}, squares[4] = {};
#pragma unroll
  for (int j = 0; j < kPixels; ++j) {
    if (at[j] < 0) continue;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const float off = values[j][i] - pivot[i];
      sums[i] += off;
      squares[i] += off * off;
    }
  }
  add_lanes<C>(sums, squares, partial);
}

// The sum over warps of one of kNumbers that each has.
template <int kNumbers>
__device__ double over_warps(const float* partial, int number) {
  double sum = 0;
  for (int warp = 0; warp < kWarps; ++warp) sum += partial[warp * kNumbers + number];
  return sum;
}

// Likewise of one of two numbers of a channel.
template <int C>
__device__ double across_warps(const float* partial, int c, int which) {
  return over_warps<2 * C>(partial, 2 * c + which);
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

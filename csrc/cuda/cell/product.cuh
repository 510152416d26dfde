// Products over channels: of depthwise results forward, of a gradient on the way back.
//
// A thread has 4 outputs of up to kPixels pixels, and takes 4 inputs of each at a time: 8 reads of
// 16 bytes for 64 multiply-adds.
#pragma once

#include "tile.cuh"

namespace da2s_fast::cell {

// 4 outputs of a thread's first pixels; kAll: the tile has all of them. Of their C inputs it takes
// the first kBlocks times 4.
template <int C, int kFirst, bool kAll, int kBlocks = kQuads<C>>
__device__ __forceinline__ void product_of(int pixels, const float* between, const float* weights,
                                           float (&values)[kPixels][4]) {
  const int quad = threadIdx.x % kQuads<C>;
  const float4* rows = reinterpret_cast<const float4*>(between);
  const float4* shares = reinterpret_cast<const float4*>(weights);
#pragma unroll 4
  for (int block = 0; block < kBlocks; ++block) {
    float4 in[kFirst];
#pragma unroll
    for (int j = 0; j < kFirst; ++j)
      in[j] = kAll || index_of<C>(j) < pixels ? rows[index_of<C>(j) * kQuads<C> + block]
                                              : make_float4(0, 0, 0, 0);
#pragma unroll
    for (int k = 0; k < 4; ++k) {
      const float4 w = shares[(4 * block + k) * kQuads<C> + quad];
#pragma unroll
      for (int j = 0; j < kFirst; ++j) {
        const float v = k == 0 ? in[j].x : k == 1 ? in[j].y : k == 2 ? in[j].z : in[j].w;
        values[j][0] += v * w.x;
        values[j][1] += v * w.y;
        values[j][2] += v * w.z;
        values[j][3] += v * w.w;
      }
    }
  }
}

// Likewise of those that the tile has. kFewer: without work for those that smaller tiles lack.
template <int C, bool kFewer>
__device__ __forceinline__ void product(const Tile& tile, const float* between,
                                        const float* weights, float (&values)[kPixels][4]) {
  const int pixels = pixels_of(tile);
  if (!kFewer)
    product_of<C, kPixels, false>(pixels, between, weights, values);
  else if (pixels == kTilePixels<C>)
    product_of<C, kPixels, true>(pixels, between, weights, values);
  else if (2 * pixels == kTilePixels<C>)
    product_of<C, kPixels / 2, true>(pixels, between, weights, values);
  else if (index_of<C>(0) < pixels)
    product_of<C, 1, true>(pixels, between, weights, values);
}

}  // namespace da2s_fast::cell

// The sums that a candidate's norm needs for its backward pass, and with them the gradients of p
// and g, as `candidate_sums` of kernels/cell/sums.py has them.
//
// A program has a candidate, or what goes past the candidates of an edge, and a chunk of whole
// images, and reads its values and its node's gradient once, 4 channels of a pixel in a thread. Of
// a tile it sums in single precision, over tiles in double.
#pragma once

#include "bypass.cuh"
#include "reach.cuh"

namespace da2s_fast::cell {

// Add a pixel's 4 channels to a thread's sums.
__device__ __forceinline__ void add_products(float4 g, float4 v, float (&totals)[4],
                                             float (&products)[4]) {
  totals[0] += g.x, totals[1] += g.y, totals[2] += g.z, totals[3] += g.w;
  products[0] += g.x * v.x, products[1] += g.y * v.y;
  products[2] += g.z * v.z, products[3] += g.w * v.w;
}

template <int C>
__device__ __forceinline__ void candidate_sums(const Reach& call, const ReachRoom<C>& room,
                                               const int64_t* from) {
  load_row<C>(room, from);
  const int64_t *row = room.row, kind = row[kKind], place = row[kStatistics];
  const int c = threadIdx.x % kQuads<C> * 4, pitch = call.pitch;
  for (int i = threadIdx.x; i < C; i += kThreads) {
    room.sums[i] = room.sums[C + i] = 0;
    room.norm[i] = place >= 0 ? call.statistics[place + i] : 0;
  }
  __syncthreads();
  const float4 mean = *reinterpret_cast<const float4*>(room.norm + c);
  const Input input = input_of(row);
  const bool past = kind == kBypass, alike = kind == kSkip || kind == kNothing;
  const float factor = kind == kNothing ? 0.f : 1.f;
  const float* gradient = call.gradients + row[kGradient] + c;
  const float* state = call.states + row[kSource] + c;
  const Tile start = tile_of(call.log_width, call.log_height, call.log_images, 0, 1);
  for_tiles(start, call.height, *room.program, [&](const Tile& tile) {
    float totals[4] = {}, products[4] = {};
    const auto add = [&](const Pixel& pixel) {
      const int64_t image = tile.image + pixel.image;
      const int y = tile.top + pixel.y, x = pixel.x;
      const float* g = gradient + pixel.at * row[kGradientPitch];
      if (past) {
        float none[4] = {};
#pragma unroll 1
        for (int other = C; other < pitch; other += C)
          add_products(*reinterpret_cast<const float4*>(g + other),
                       bypassed(state + other, input, pitch, image, y, x), none, products);
        return;
      }
      float4 v;
      if (alike) {
        const int64_t at =
            (image * input.height + y * input.stride) * input.width + x * input.stride;
        v = *reinterpret_cast<const float4*>(state + at * pitch);
        v = make_float4(v.x * factor, v.y * factor, v.z * factor, v.w * factor);
      } else {
        v = *reinterpret_cast<const float4*>(call.z + row[kZ] + pixel.at * C + c);
      }
      v = make_float4(v.x - mean.x, v.y - mean.y, v.z - mean.z, v.w - mean.w);
      add_products(*reinterpret_cast<const float4*>(g), v, totals, products);
    };
#pragma unroll 1
    for (int j = 0; j < kPixels; ++j) {
      const Pixel pixel = pixel_before<C>(room.program->end, j, tile, call);
      if (pixel.live) add(pixel);
    }
    add_lanes<C>(totals, products, room.partial);
    __syncthreads();
    if (threadIdx.x < C)
      for (int which = 0; which < 2; ++which)
        room.sums[which * C + threadIdx.x] += across_warps<C>(room.partial, threadIdx.x, which);
    // The next tile comes.
    __syncthreads();
  });
  // FactorizedReduce has a row for each half of the channels.
  const int channel = threadIdx.x, column = static_cast<int>(row[kColumn]);
  if (channel < column || channel >= column + row[kCout]) return;
  double* to = call.sums + row[kSums] + int64_t(room.program->chunk) * 2 * C + channel;
  to[0] = room.sums[channel];
  to[C] = room.sums[C + channel];
}

}  // namespace da2s_fast::cell

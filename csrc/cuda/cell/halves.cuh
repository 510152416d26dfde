// Through FactorizedReduce and ReLU to a state, as kernels/cell/pull.py and gather.py have it: two
// 1x1 convolutions at stride 2, one from pixel (0, 0) of an image on, one from (1, 1), of which
// each gives half of the outputs.
//
// So an output has one pixel of the state for each half, and no other output has these: nothing is
// gathered, and one pass over the chunk is enough. Both halves are taken together, because one norm
// is behind them. Of a tile of outputs there come into shared memory dz of all channels, and behind
// ReLU what the first half has read (`between`), and the second (`tile`). Then, half by half,
//
//     product over channels   from the half's columns of dz, 4 pixels x 4 channels per thread, is
//                             added to the state's gradient at the half's pixels
//     gradient of weights     dz by inputs in registers, where threads with outputs of the second
//                             half read its inputs
//
// Where an odd height or width ends before a pixel of the second half, its input is 0.
#pragma once

#include "reach.cuh"

namespace da2s_fast::cell {

// Numbers from the first of the state's pixels that a half has read of a tile to that of a thread's
// output j.
template <int C>
__device__ __forceinline__ int offset_of(int j, const Tile& tile, const int64_t* row, int pitch) {
  const int height = static_cast<int>(row[kHeight]), width = static_cast<int>(row[kWidth]);
  const int index = index_of<C>(j), x = index & ((1 << tile.log_width) - 1);
  const int y = (index >> tile.log_width) & ((1 << tile.log_height) - 1);
  const int image = index >> (tile.log_width + tile.log_height);
  return ((image * height + 2 * y) * width + 2 * x) * pitch;
}

// That first one's number.
__device__ __forceinline__ int64_t first_read(const Tile& tile, int half, const int64_t* row) {
  return (tile.image * row[kHeight] + 2 * tile.top + half) * row[kWidth] + half;
}

// Of which of its outputs a thread finds what a half reads: a bit for each, those of the second
// half behind the first one's. One after the other, because nothing of them is to be kept in
// registers from tile to tile.
template <int C>
__device__ __forceinline__ unsigned found_by(const Reach& call, int end, const Tile& tile,
                                             const int64_t* row) {
  unsigned found = 0;
#pragma unroll 1
  for (int j = 0; j < kPixels; ++j) {
    const Pixel pixel = pixel_before<C>(end, j, tile, call);
    const int y = 2 * (tile.top + pixel.y), x = 2 * pixel.x;
    found |= unsigned(pixel.live) << j;
    const bool second = pixel.live && y + 1 < row[kHeight] && x + 1 < row[kWidth];
    found |= unsigned(second) << (kPixels + j);
  }
  return found;
}

// What a half has read of a tile, (pixels, C), behind ReLU; 0 where there is no pixel.
template <int C>
__device__ __forceinline__ void load_half(const Reach& call, const ReachRoom<C>& room,
                                          const Tile& tile, int half, unsigned found, float* to) {
  const int64_t* row = room.row;
  const int thread = this_thread();
  const float* state = call.states + row[kSource] + first_read(tile, half, row) * call.pitch +
                       thread % kQuads<C> * 4;
  float4 x[kPixels];
#pragma unroll
  for (int j = 0; j < kPixels; ++j) {
    x[j] = make_float4(0, 0, 0, 0);
    if (found >> j & 1)
      x[j] = *reinterpret_cast<const float4*>(state + offset_of<C>(j, tile, row, call.pitch));
  }
#pragma unroll
  for (int j = 0; j < kPixels; ++j)
    if (index_of<C>(j) < pixels_of(tile)) quad_of(to, thread, j) = rectified(x[j]);
}

// Add what a half hands the state. `inputs` are what it has read. A thread takes as many pixels at
// a time as it has registers for, next to those of the weights' gradients. States that are read
// with a stride are inputs, whose gradients have no other order of channels.
template <int C>
__device__ __forceinline__ void add_half(const Reach& call, const ReachRoom<C>& room,
                                         const int64_t* group, const Tile& tile, int half,
                                         unsigned found, float* inputs) {
  constexpr int kAtOnce = C > 16 ? kPixels / 2 : kPixels;
  const int64_t* row = room.row;
  const int thread = this_thread();
  float* gradient = call.gradients + group[kGroupGradient] +
                    first_read(tile, half, row) * call.pitch + thread % kQuads<C> * 4;
#pragma unroll 1
  for (int first = 0; first < kPixels; first += kAtOnce) {
    float4 before[kAtOnce];
    // On their way during the product.
#pragma unroll
    for (int j = 0; j < kAtOnce; ++j)
      if (found >> (first + j) & 1)
        before[j] = *reinterpret_cast<const float4*>(
            gradient + offset_of<C>(first + j, tile, row, call.pitch));
    float values[kPixels][4] = {};
    product_of<C, kAtOnce, false, kQuads<C> / 2>(pixels_of(tile) - first * (kThreads / kQuads<C>),
                                                 room.dz + first * 4 * kThreads + half * (C / 2),
                                                 room.product + half * (C / 2) * C, values);
#pragma unroll
    for (int j = 0; j < kAtOnce; ++j) {
      if ((found >> (first + j) & 1) == 0) continue;
      // ReLU has returned x: where that is not 0 it hands on, also where it is NaN.
      const float4 x = quad_of(inputs, thread, first + j);
      const auto& v = values[j];
      store(gradient + offset_of<C>(first + j, tile, row, call.pitch),
            make_float4(before[j].x + (x.x == 0 ? 0 : v[0]), before[j].y + (x.y == 0 ? 0 : v[1]),
                        before[j].z + (x.z == 0 ? 0 : v[2]), before[j].w + (x.w == 0 ? 0 : v[3])));
    }
  }
}

// The row is the first half's. The second half has the same gradient, z and norm, and its weights
// and their gradients lie behind the first one's.
template <int C>
__device__ __forceinline__ void reach_halves(const Reach& call, const ReachRoom<C>& room,
                                             const int64_t* group) {
  const int64_t* row = room.row;
  coefficients<C>(call, row, room.coefficients, reinterpret_cast<double*>(room.dz));
  load_weights<C>(call, room);
  __syncthreads();
  const bool wanted = call.weight_gradients != nullptr;
  float products[4][4] = {};
  const Tile start = tile_of(C, call.log_width, call.log_height, call.log_images, 0, 1);
  for_tiles(start, call.height, *room.program, [&](const Tile& tile) {
    load_dz<C>(call, row, room.coefficients, tile, room.program->end, room.dz);
    const unsigned found = found_by<C>(call, room.program->end, tile, row);
#pragma unroll 1
    for (int half = 0; half < 2; ++half)
      load_half<C>(call, room, tile, half, found >> half * kPixels,
                   half == 0 ? room.between : room.tile);
    __syncthreads();
    if (wanted) {
      // Where a thread's outputs of the weights are, see `add_products`.
      const int out = this_thread() % (kQuads<C> * kQuads<C>) / kQuads<C>;
      const float* read = out < kQuads<C> / 2 ? room.between : room.tile;
      add_products<C>(room.dz, read, pixels_of(tile), products);
    }
#pragma unroll 1
    for (int half = 0; half < 2; ++half)
      add_half<C>(call, room, group, tile, half, found >> half * kPixels,
                  half == 0 ? room.between : room.tile);
    // The next tile comes.
    __syncthreads();
  });
  if (!wanted) return;
  float* to = call.weight_gradients + room.program->chunk * call.weight_count;
  write_products<C>(products, room.dz, to + row[kProduct]);
}

}  // namespace da2s_fast::cell

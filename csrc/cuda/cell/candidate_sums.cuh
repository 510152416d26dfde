// The sums that a candidate's norm needs for its backward pass, and with them the gradients of p
// and g; those of a preprocessed input. As `candidate_sums` of kernels/cell/sums.py has them.
//
// A program has a candidate, what goes past the candidates of an edge, or an input, and a chunk of
// whole images, and reads its values and its gradient once, 4 channels of a pixel in a thread.
#pragma once

#include "bypass.cuh"
#include "reach.cuh"

namespace da2s_fast::cell {

// Add a pixel's 4 channels to a thread's sums.
template <bool kTotals>
__device__ __forceinline__ void add_products(float4 g, float4 v, float (&totals)[4],
                                             float (&products)[4]) {
  if (kTotals) totals[0] += g.x, totals[1] += g.y, totals[2] += g.z, totals[3] += g.w;
  products[0] += g.x * v.x, products[1] += g.y * v.y;
  products[2] += g.z * v.z, products[3] += g.w * v.w;
}

// Sum over pixels, from `begin` to before `end`, 4 channels of a gradient and their products with
// values, of `parts` such pairs for each pixel; kTotals: both are wanted. A thread sums some of
// them in single precision, so few that no digits get lost; all else is in double. `load(pixel,
// part, gradient, value)` is asked for all pixels of a thread before the first is waited for.
template <int C, int kAtOnce, bool kTotals, class Load>
__device__ __forceinline__ void sum_pixels(const ReachRoom<C>& room, int64_t begin, int64_t end,
                                           int parts, Load load) {
  constexpr int kSome = 4 * kTilePixels<C>;
  if (threadIdx.x < C) room.sums[threadIdx.x] = room.sums[C + threadIdx.x] = 0;
  for (int64_t some = begin; some < end; some += kSome) {
    const int64_t behind = end - some < kSome ? end : some + kSome;
    float totals[4] = {}, products[4] = {};
    for (int64_t first = some; first < behind; first += kAtOnce * kThreads / kQuads<C>)
#pragma unroll 1
      for (int part = 0; part < parts; ++part) {
        float4 gradients[kAtOnce], values[kAtOnce];
#pragma unroll
        for (int j = 0; j < kAtOnce; ++j) {
          const int64_t pixel = first + index_of<C>(j);
          // Any pixel that there is takes the place of one behind the last.
          load(pixel < behind ? pixel : first, part, gradients[j], values[j]);
        }
#pragma unroll
        for (int j = 0; j < kAtOnce; ++j)
          if (first + index_of<C>(j) < behind)
            add_products<kTotals>(gradients[j], values[j], totals, products);
      }
    add_lanes<C>(totals, products, room.partial);
    __syncthreads();
    add_warps<C>(room);
    __syncthreads();
  }
}

template <int C>
__device__ __forceinline__ void candidate_sums(const Reach& call, const ReachRoom<C>& room,
                                               const int64_t* from) {
  load_row<C>(room, from);
  const int64_t *row = room.row, kind = row[kKind], place = row[kStatistics];
  const int c = threadIdx.x % kQuads<C> * 4, pitch = call.pitch;
  const int size = call.height * call.width;
  const int64_t begin = int64_t(room.program->first) * size;
  const int64_t end = int64_t(room.program->end) * size;
  const Input input = input_of(row);
  const bool alike = kind == kSkip || kind == kNothing;
  const int gradient_pitch = static_cast<int>(row[kGradientPitch]);
  const float* gradient = call.gradients + row[kGradient] + c;
  // Quotients of 64 bits take many instructions; a chunk's pixels need 32.
  const int64_t in_begin = int64_t(room.program->first) * input.height * input.width;
  const float* state = call.states + row[kSource] + in_begin * pitch + c;
  if (kind == kBypass) {
    const int parts = pitch / C - 1;
    sum_pixels<C, 1, false>(
        room, begin, end, parts, [&](int64_t pixel, int part, float4& g, float4& v) {
          const int at = static_cast<int>(pixel - begin), line = at / call.width;
          const int image = line / call.height, y = line - image * call.height;
          const int x = at - line * call.width, other = (part + 1) * C;
          g = *reinterpret_cast<const float4*>(gradient + pixel * gradient_pitch + other);
          v = bypassed(state + other, input, pitch, image, y, x);
        });
  } else {
    float mean[4] = {};
#pragma unroll
    for (int i = 0; i < 4; ++i)
      if (place >= 0) mean[i] = call.statistics[place + c + i];
    // Pixels of a strided state are found from the chunk's first, all others have the node's
    // places.
    const bool strided = alike && input.stride > 1;
    const float* values =
        strided ? state : (alike ? call.states + row[kSource] : call.z + row[kZ]) + c;
    const int values_pitch = alike ? pitch : C;
    const float factor = kind == kNothing ? 0.f : 1.f;
    sum_pixels<C, kPixels, true>(
        room, begin, end, 1, [&](int64_t pixel, int, float4& g, float4& v) {
          const int64_t at = strided ? strided_pixel(static_cast<int>(pixel - begin), call.height,
                                                     call.width, input)
                                     : pixel;
          v = *reinterpret_cast<const float4*>(values + at * values_pitch);
          v = make_float4(v.x * factor - mean[0], v.y * factor - mean[1], v.z * factor - mean[2],
                          v.w * factor - mean[3]);
          g = *reinterpret_cast<const float4*>(gradient + pixel * gradient_pitch);
        });
  }
  // FactorizedReduce has a row for each half of the channels.
  const int channel = threadIdx.x, column = static_cast<int>(row[kColumn]);
  if (channel >= column && channel < column + row[kCout])
    write_sums<C>(call, room, row[kSums], channel, C);
}

// Add what was collected beside an input's gradient to it, in the chunk's images.
template <int C>
__device__ __forceinline__ void add_beside(const Reach& call, const ReachRoom<C>& room) {
  const int64_t *row = room.row, numbers = row[kHeight] * row[kWidth] * call.pitch;
  auto* to = reinterpret_cast<float4*>(call.gradients + row[kGradient]);
  const auto* beside = reinterpret_cast<const float4*>(call.gradients + row[kInnerGradient]);
  const int64_t end = room.program->end * numbers / 4;
#pragma unroll 4
  for (int64_t i = room.program->first * numbers / 4 + threadIdx.x; i < end; i += kThreads) {
    const float4 v = beside[i], before = to[i];
    to[i] = make_float4(before.x + v.x, before.y + v.y, before.z + v.z, before.w + v.w);
  }
  __syncthreads();
}

// What a norm returned is the state itself. Of partial channels, which are all an input's, as many
// at a time as candidates see.
template <int C>
__device__ __forceinline__ void input_sums(const Reach& call, const ReachRoom<C>& room,
                                           const int64_t* from) {
  load_row<C>(room, from);
  const int64_t *row = room.row, size = row[kHeight] * row[kWidth];
  const int pitch = call.pitch, c = threadIdx.x % kQuads<C> * 4;
  if (row[kInnerGradient] > 0) add_beside<C>(call, room);
  for (int column = 0; column < pitch; column += C) {
    const float* gradient = call.gradients + row[kGradient] + column + c;
    const float* state = call.states + row[kSource] + column + c;
    sum_pixels<C, kPixels, true>(room, room.program->first * size, room.program->end * size, 1,
                                 [&](int64_t pixel, int, float4& g, float4& v) {
                                   g = *reinterpret_cast<const float4*>(gradient + pixel * pitch);
                                   v = *reinterpret_cast<const float4*>(state + pixel * pitch);
                                 });
    if (threadIdx.x < C) write_sums<C>(call, room, row[kSums] + column, threadIdx.x, pitch);
  }
}

}  // namespace da2s_fast::cell

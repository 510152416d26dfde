// A node: the sum of its candidates, normalized and weighed, as kernels/cell/mix.py has it.
//
// A program has a part of a chunk of the node's pixels, and takes these some at a time: as many as
// a whole tile's numbers with all their channels. A thread sums 4 channels of a few
// pixels over all candidates, whose z it reads by 16 bytes; with partial channels it sums what goes
// past them too. The sums go through shared memory, where channels get the order after the shuffle:
// from there the state leaves in one piece, the output in whatever order it has.
#pragma once

#ifdef __CUDACC__
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#endif

#include "bypass.cuh"
#include "convolve.cuh"

namespace da2s_fast::cell {

// Types of the output.
enum : int { kFloat, kHalf, kBfloat16 };

__device__ __forceinline__ void store_as(int type, void* to, int64_t at, float value) {
#ifdef __CUDACC__
  if (type == kHalf) {
    static_cast<__half*>(to)[at] = __float2half_rn(value);
    return;
  }
  if (type == kBfloat16) {
    static_cast<__nv_bfloat16*>(to)[at] = __float2bfloat16_rn(value);
    return;
  }
#endif
  static_cast<float*>(to)[at] = value;
}

// What candidates are multiplied with, and their means: (rows, 2, C).
template <int C>
__device__ void load_scales(const Nodes& call, const int64_t* rows, int candidates, float* to) {
  for (int i = threadIdx.x; i < candidates * C; i += kThreads) {
    const int64_t* row = rows + i / C * kLayer;
    const int c = i % C;
    const int64_t edge = row[kEdge], place = row[kStatistics];
    float scale = call.p_weights[edge * call.operations + row[kOperation]], mean = 0;
    if (call.g_weights != nullptr) scale *= call.g_weights[edge];
    if (place >= 0) {
      const double variance = call.statistics[place + C + c];
      mean = call.statistics[place + c];
      scale *= static_cast<float>(1 / sqrt(variance + call.eps));
    }
    to[i / C * 2 * C + c] = scale;
    to[(i / C * 2 + 1) * C + c] = mean;
  }
}

// Add 4 channels of a candidate, those from c on, to those of a thread's pixels, the first of which
// is pixel `first` of the node.
template <int C>
__device__ __forceinline__ void add_candidate(const Nodes& call, const int64_t* row,
                                              const float* scales, int c, int first, int count,
                                              float (&sums)[kPixels][4]) {
  const int64_t kind = row[kKind];
  if (c < row[kColumn] || c >= row[kColumn] + row[kCout]) return;  // FactorizedReduce's halves
  const bool alike = kind == kSkip || kind == kNothing;
  const float* from = (alike ? call.states + row[kSource] : call.z + row[kZ]) + c;
  const int pitch = alike ? call.pitch : C;
  const float4 scale = *reinterpret_cast<const float4*>(scales + c);
  const float4 mean = *reinterpret_cast<const float4*>(scales + C + c);
  const auto add = [&](int j, float4 v) {
    if (kind == kNothing) v = make_float4(v.x * 0, v.y * 0, v.z * 0, v.w * 0);
    sums[j][0] += scale.x * (v.x - mean.x);
    sums[j][1] += scale.y * (v.y - mean.y);
    sums[j][2] += scale.z * (v.z - mean.z);
    sums[j][3] += scale.w * (v.w - mean.w);
  };
  if (alike && row[kStride] > 1) {
#pragma unroll
    for (int j = 0; j < kPixels; ++j) {
      if (index_of<C>(j) >= count) continue;
      const int pixel = first + index_of<C>(j);
      const int64_t at = strided_pixel(pixel, call.height, call.width, input_of(row));
      add(j, *reinterpret_cast<const float4*>(from + at * pitch));
    }
    return;
  }
  // Two pixels are on their way before the first is waited for.
#pragma unroll
  for (int j = 0; j < kPixels; j += 2) {
    const float* own = from + int64_t(first + index_of<C>(j)) * pitch;
    float4 one, other;
    if (index_of<C>(j) < count) one = *reinterpret_cast<const float4*>(own);
    if (index_of<C>(j + 1) < count)
      other = *reinterpret_cast<const float4*>(own + kThreads / kQuads<C> * pitch);
    if (index_of<C>(j) < count) add(j, one);
    if (index_of<C>(j + 1) < count) add(j + 1, other);
  }
}

// Sum over edges what goes past the candidates, 4 channels from `channel` on of a pixel.
__device__ __forceinline__ float4 add_bypasses(const Nodes& call, const int64_t* rows, int count,
                                               int channel, int at) {
  const int size = call.height * call.width, image = at / size;
  const int left = at - image * size, y = left / call.width;
  float4 sum = make_float4(0, 0, 0, 0);
#pragma unroll 1
  for (int r = 0; r < count; ++r) {
    const int64_t* row = rows + r * kLayer;
    const float g = call.g_weights != nullptr ? call.g_weights[row[kEdge]] : 1.f;
    const float4 v = bypassed(call.states + row[kSource] + channel, input_of(row), call.pitch,
                              image, y, left - y * call.width);
    sum = make_float4(sum.x + g * v.x, sum.y + g * v.y, sum.z + g * v.z, sum.w + g * v.w);
  }
  return sum;
}

// Where pixel `at` of the node has its first channel in the output.
__device__ inline int64_t place_of(const Nodes& call, const int64_t* mix, int at) {
  const int size = call.height * call.width, image = at / size;
  const int left = at - image * size, y = left / call.width;
  return image * call.output_image + mix[kMixColumn] * call.output_channel + y * call.output_row +
         (left - y * call.width) * call.output_column;
}

// Channels of some pixels go out, in shared memory (count, pitch).
__device__ __forceinline__ void write_node(const Nodes& call, const int64_t* mix, const float* sums,
                                           int first, int count) {
  const int numbers = count * call.pitch;
  const bool by_channel = call.output_channel == 1;  // and then by 16 bytes, like a state
  float* state = call.states + mix[kMixState] + int64_t(first) * call.pitch;
  for (int i = threadIdx.x; i < numbers / 4; i += kThreads) {
    const float4 v = reinterpret_cast<const float4*>(sums)[i];
    store(state + 4 * i, v);
    if (mix[kMixColumn] < 0 || !by_channel || call.type != kFloat) continue;
    const int pixel = 4 * i / call.pitch;
    float* output = static_cast<float*>(call.output) + place_of(call, mix, first + pixel);
    store(output + 4 * i - pixel * call.pitch, v);
  }
  if (mix[kMixColumn] < 0 || (by_channel && call.type == kFloat)) return;
  for (int i = threadIdx.x; i < numbers; i += kThreads) {
    const int pixel = by_channel ? i / call.pitch : i % count;
    const int channel = by_channel ? i - pixel * call.pitch : i / count;
    store_as(call.type, call.output,
             place_of(call, mix, first + pixel) + channel * call.output_channel,
             sums[pixel * call.pitch + channel]);
  }
}

template <int C>
__device__ __forceinline__ void mix(const Nodes& call, const Room<C>& room, const int64_t* mix) {
  const int64_t* rows = call.mixed + mix[kMixFirst] * kLayer;
  const int candidates = static_cast<int>(mix[kMixCandidates]);
  const int edges = static_cast<int>(mix[kMixRows]) - candidates;
  const int parts = call.pitch / C, c = threadIdx.x % kQuads<C> * 4;
  float* scales = room.product;
  float* node = scales + candidates * 2 * C;  // (pixels, pitch)
  __syncthreads();                            // what is read is there for all threads
  load_scales<C>(call, rows, candidates, scales);
  const auto smaller = [](int a, int b) { return a < b ? a : b; };
  const int sharers = static_cast<int>(mix[kMixParts]);
  const int own = (call.chunk_pixels + sharers - 1) / sharers;
  const int begin = room.turn->first + static_cast<int>(mix[kMixPart]) * own;
  const int end = smaller(begin + own, room.turn->end);
  const int most = kTilePixels<C> / parts;
  for (int first = begin; first < end; first += most) {
    const int count = smaller(end - first, most);
    __syncthreads();  // the scales are there; what was summed before has gone out
    float sums[kPixels][4] = {};
#pragma unroll 1
    for (int r = 0; r < candidates; ++r)
      add_candidate<C>(call, rows + r * kLayer, scales + r * 2 * C, c, first, count, sums);
#pragma unroll
    for (int j = 0; j < kPixels; ++j)
      for (int i = 0; i < 4; ++i)
        if (index_of<C>(j) < count)
          node[index_of<C>(j) * call.pitch + (c + i) * parts] = sums[j][i];
    for (int i = threadIdx.x; i < count * (parts - 1) * kQuads<C>; i += kThreads) {
      const int pixel = i / kQuads<C> / (parts - 1), part = i / kQuads<C> % (parts - 1) + 1;
      const float4 v =
          add_bypasses(call, rows + candidates * kLayer, edges, part * C + c, first + pixel);
      float* to = node + pixel * call.pitch + c * parts + part;
      to[0] = v.x, to[parts] = v.y, to[2 * parts] = v.z, to[3 * parts] = v.w;
    }
    __syncthreads();
    write_node(call, mix, node, first, count);
  }
}

}  // namespace da2s_fast::cell

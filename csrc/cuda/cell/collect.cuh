// What reaches a state without layers: through pools, skips, `none` and, with partial channels,
// past the candidates, as kernels/cell/gather.py has it.
//
// The gradient behind a pool's norm comes into shared memory tile by tile, with a pixel around, and
// so does which tap won. From there a thread collects 4 channels of a pixel of the state: of every
// output whose window holds the pixel, the average's share, or what the maximum had if it was this
// pixel. All else is added straight from global memory.
#pragma once

#include "reach.cuh"

namespace da2s_fast::cell {

// 4 channels of a state's gradient, from c on. Where it has the order of channels before the
// shuffle of K parts, channel c is the (c / K)th of part c % K.
struct StateChannels {
  int places[4];  // numbers from a pixel's first channel on
  bool together;

  __device__ StateChannels(int c, int pitch, int shuffled) : together(shuffled == 1) {
    const int length = pitch / shuffled;
    int part = c % shuffled, place = c / shuffled;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      places[i] = part * length + place;
      if (++part == shuffled) part = 0, ++place;
    }
  }

  __device__ float4 of(const float* pixel) const {
    if (together) return *reinterpret_cast<const float4*>(pixel + places[0]);
    return make_float4(pixel[places[0]], pixel[places[1]], pixel[places[2]], pixel[places[3]]);
  }

  // Write what was there before and what was found since.
  __device__ void put(float* pixel, float4 before, float4 found) const {
    const float4 sum =
        make_float4(before.x + found.x, before.y + found.y, before.z + found.z, before.w + found.w);
    if (together) {
      *reinterpret_cast<float4*>(pixel + places[0]) = sum;
    } else {
      pixel[places[0]] = sum.x, pixel[places[1]] = sum.y;
      pixel[places[2]] = sum.z, pixel[places[3]] = sum.w;
    }
  }
};

// Call `work(image, y, x)` for a thread's pixels of the input that lies before a tile of outputs;
// the image is the tile's.
template <int C, class Work>
__device__ __forceinline__ void for_input_pixels(const Tile& tile, int stride, int height,
                                                 int width, int end, Work work) {
  const int log_columns = tile.log_width + stride - 1, log_rows = tile.log_height + stride - 1;
  const int pixels = 1 << (log_columns + log_rows + tile.log_images);
  for (int i = threadIdx.x / kQuads<C>; i < pixels; i += kThreads / kQuads<C>) {
    const int x = i & ((1 << log_columns) - 1), line = i >> log_columns;
    const int y = stride * tile.top + (line & ((1 << log_rows) - 1)), image = line >> log_rows;
    if (x < width && y < height && tile.image + image < end) work(image, y, x);
  }
}

// How many pixels of a 3x3 pool's window are inside of the image, of its rows or its columns.
__device__ inline int inside(int output, int stride, int size) {
  const int start = output * stride - 1, end = start + 3;
  return (end < size ? end : size) - (start > 0 ? start : 0);
}

// dz of a pool's outputs, of averages each pixel's share of it, and which taps won.
template <int C>
__device__ __forceinline__ void load_pool(const Reach& call, const ReachRoom<C>& room,
                                          const Tile& tile, const Input& input, int end,
                                          float* shares, float* winners) {
  const int64_t* row = room.row;
  const float* gradient = call.gradients + row[kGradient];
  const float* outputs = call.z + row[kZ];
  const float* positions = call.z + row[kPosition];
  const int pitch = static_cast<int>(row[kGradientPitch]);
  const bool given = is_given(row), averages = row[kKind] == kAverage;
  fill_tile<C>(shares, tile, call.height, call.width, 1, end, [&](const Line& line) {
    const float* g = gradient + line.first * pitch;
    const float* z = outputs + line.first * C;
    const int rows = inside(line.y, input.stride, input.height);
    return [=, &room](int x, int c) {
      const float4 dz = before_norm<C>(room.coefficients + c, given,
                                       *reinterpret_cast<const float4*>(g + (x * pitch + c)),
                                       *reinterpret_cast<const float4*>(z + (x * C + c)));
      if (!averages) return dz;
      const float count = static_cast<float>(rows * inside(x, input.stride, input.width));
      return make_float4(dz.x / count, dz.y / count, dz.z / count, dz.w / count);
    };
  });
  if (averages) return;
  fill_tile<C>(winners, tile, call.height, call.width, 1, end, [&](const Line& line) {
    const float* row = positions + line.first * C;
    return [=](int x, int c) { return *reinterpret_cast<const float4*>(row + (x * C + c)); };
  });
}

// Through a 3x3 pool and the norm behind it.
template <int C, int kStride>
__device__ __forceinline__ void collect_pool(const Reach& call, const ReachRoom<C>& room,
                                             const int64_t* group) {
  const int64_t* row = room.row;
  const Input input{static_cast<int>(row[kHeight]), static_cast<int>(row[kWidth]), kStride};
  const Tile start = tile_of(C, call.log_width, call.log_height, call.log_images, 1, 1);
  float* shares = room.dz;
  float* winners = room.dz + input_pixels(start) * C;
  const bool averages = row[kKind] == kAverage;
  const int quad = threadIdx.x % kQuads<C>;
  const StateChannels own(4 * quad, call.pitch, static_cast<int>(group[kGroupShuffled]));
  float* to = call.gradients + group[kGroupGradient];
  for_tiles(start, call.height, *room.program, [&](const Tile& tile) {
    load_pool<C>(call, room, tile, input, room.program->end, shares, winners);
    __syncthreads();
    const auto add_windows = [&](int image, int y, int x) {
      const int64_t pixel = (int64_t(tile.image + image) * input.height + y) * input.width + x;
      float* place = to + pixel * call.pitch;
      const float4 before = own.of(place);  // on its way meanwhile
      float4 sum = make_float4(0, 0, 0, 0);
#pragma unroll 1
      for (int ky = 0; ky < 3; ++ky) {
        const int up = y + 1 - ky;
        if (kStride == 2 && (up & 1)) continue;  // no window has this row here
        const int line = image * tile.rows + (up >> (kStride - 1)) - tile.top + 1;
#pragma unroll
        for (int kx = 0; kx < 3; ++kx) {
          const int left = x + 1 - kx;
          if (kStride == 2 && (left & 1)) continue;
          const int at = (line * tile.columns + (left >> (kStride - 1)) + 1) * kQuads<C> + quad;
          const float4 v = reinterpret_cast<const float4*>(shares)[at];
          if (averages) {
            sum = make_float4(sum.x + v.x, sum.y + v.y, sum.z + v.z, sum.w + v.w);
            continue;
          }
          const float4 won = reinterpret_cast<const float4*>(winners)[at];
          const float tap = static_cast<float>(3 * ky + kx);
          sum.x += won.x == tap ? v.x : 0, sum.y += won.y == tap ? v.y : 0;
          sum.z += won.z == tap ? v.z : 0, sum.w += won.w == tap ? v.w : 0;
        }
      }
      own.put(place, before, sum);
    };
    for_input_pixels<C>(tile, kStride, input.height, input.width, room.program->end, add_windows);
    // The next tile comes.
    __syncthreads();
  });
}

// Through a skip or `none`, which hands on nothing but NaN and infinities; with partial channels
// (`past`) what goes past the candidates, the other parts of the channels.
template <int C>
__device__ __forceinline__ void collect_alike(const Reach& call, const ReachRoom<C>& room,
                                              const int64_t* group) {
  const int64_t* row = room.row;
  const int height = static_cast<int>(row[kHeight]), width = static_cast<int>(row[kWidth]);
  const int stride = static_cast<int>(row[kStride]), c = threadIdx.x % kQuads<C> * 4;
  const int shuffled = static_cast<int>(group[kGroupShuffled]);
  const bool past = row[kKind] == kBypass;
  const float factor = row[kKind] == kNothing ? 0.f : 1.f;
  const float* scale = room.coefficients + c;
  const float* from = call.gradients + row[kGradient];
  float* to = call.gradients + group[kGroupGradient];
  const Tile start = tile_of(C, call.log_width, call.log_height, call.log_images, 0, 1);
  for_tiles(start, call.height, *room.program, [&](const Tile& tile) {
    for_input_pixels<C>(
        tile, stride, height, width, room.program->end, [&](int image, int y, int x) {
          if ((y | x) & (stride - 1)) return;  // no output reads it
          const int64_t n = tile.image + image, pixel = (n * height + y) * width + x;
          const int64_t at =
              (n * call.height + (y >> (stride - 1))) * call.width + (x >> (stride - 1));
          const int end = past ? call.pitch : C;
          for (int channel = past ? C + c : c; channel < end; channel += C) {
            const StateChannels own(channel, call.pitch, shuffled);
            float* place = to + pixel * call.pitch;
            float4 v = *reinterpret_cast<const float4*>(from + at * row[kGradientPitch] + channel);
            const float4 before = own.of(place);
            v = make_float4(scale[0] * v.x, scale[1] * v.y, scale[2] * v.z, scale[3] * v.w);
            own.put(place, before,
                    make_float4(v.x * factor, v.y * factor, v.z * factor, v.w * factor));
          }
        });
  });
  // The next row comes.
  __syncthreads();
}

// What a row without layers hands the state.
template <int C>
__device__ __forceinline__ void collect(const Reach& call, const ReachRoom<C>& room,
                                        const int64_t* group) {
  const int64_t kind = room.row[kKind];
  if (kind != kBypass) {
    coefficients<C>(call, room.row, room.coefficients, reinterpret_cast<double*>(room.dz));
  } else if (threadIdx.x < C) {
    const float* g = call.g_weights;
    room.coefficients[threadIdx.x] = g != nullptr ? g[room.row[kEdge]] : 1.f;
  }
  __syncthreads();
  if (kind != kMaximum && kind != kAverage)
    collect_alike<C>(call, room, group);
  else if (room.row[kStride] == 1)
    collect_pool<C, 1>(call, room, group);
  else
    collect_pool<C, 2>(call, room, group);
}

}  // namespace da2s_fast::cell

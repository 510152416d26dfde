// Layers and pools of the forward pass: z and its moments, as kernels/cell/convolve.py has them.
//
// A program has a pack and a chunk of the output's pixels, and takes these tile by tile. The input
// of a tile, with as many pixels around as the widest window needs, comes into shared memory once;
// from there all layers and pools of a pack, that is all that read this state with this stride, are
// computed one after the other:
//
//     depthwise convolution   8 neighbouring outputs of 2 channels per thread, in registers; the
//                             results (pixels, C) go to shared memory
//     product over channels   4 pixels x 4 channels per thread: 8 reads of 16 bytes for 64
//                             multiply-adds; z leaves by 16 bytes
//     moments                 lanes of a warp by shuffles, warps and tiles in order
//
// Each half of a layer reads weights of its own, which come while the other half runs: two barriers
// per layer and tile. Pools read the input before ReLU, so they come first.
// The last program of a pack completes the statistics of its norms from the moments of all chunks.
#pragma once

#include "depthwise.cuh"
#include "moments.cuh"
#include "nodes_room.cuh"
#include "pool.cuh"
#include "product.cuh"

namespace da2s_fast::cell {

// Bring weights of a layer's product as (C, cout), so that a thread's 4 outputs lie side by side: 4
// inputs of an output per thread, lanes have different outputs.
template <int C>
__device__ __forceinline__ void load_product(const Nodes& call, const int64_t* row, float* to) {
  if (row[kKind] != kSeparable && row[kKind] != kDense) return;
  const float* product = call.weights + row[kProduct];
  const int cout = static_cast<int>(row[kCout]);
  const int out = threadIdx.x % C;
  if (out >= cout) return;
#pragma unroll 4
  for (int in = threadIdx.x / C * 4; in < C; in += kThreads / C * 4) {
    const float4 w = *reinterpret_cast<const float4*>(product + out * C + in);
    to[in * C + out] = w.x, to[(in + 1) * C + out] = w.y;
    to[(in + 2) * C + out] = w.z, to[(in + 3) * C + out] = w.w;
  }
}

// Depthwise weights, as (taps, C).
template <int C>
__device__ __forceinline__ void load_taps(const Nodes& call, const int64_t* row, float* to) {
  if (row[kKind] != kSeparable) return;
  const float* spatial = call.weights + row[kSpatial];
  const int taps = static_cast<int>(row[kKernel] * row[kKernel]);
  const int c = threadIdx.x % C;
#pragma unroll(C > 16 ? 4 : 1)
  for (int tap = threadIdx.x / C; tap < taps; tap += kThreads / C)
    to[tap * C + c] = spatial[c * taps + tap];
}

// What a row has before its product.
template <int C, bool kSecond>
__device__ __forceinline__ void spread(const Room<C>& room, const Tile& tile, const int64_t* row) {
  const int stride = static_cast<int>(row[kStride]);
  const int padding = static_cast<int>(row[kPadding]);
  const int kernel = static_cast<int>(row[kKernel]), dilation = static_cast<int>(row[kDilation]);
  if (kSecond || (row[kKind] == kSeparable && stride == 1))
    depthwise_of<C, 1>(kernel, dilation, room.tile, tile, padding, room.spatial, room.between);
  else if (row[kKind] == kDense)
    gather<C>(room.tile, tile, stride, padding, room.between);
  else if (row[kKind] == kSeparable)
    depthwise_of<C, 2>(kernel, dilation, room.tile, tile, padding, room.spatial, room.between);
}

// Where a thread's pixels are in the output; -1 those that are outside of images or of the chunk.
template <int C>
__device__ __forceinline__ void locate(const Nodes& call, const Turn& turn, const Tile& tile,
                                       int (&at)[kPixels]) {
#pragma unroll
  for (int j = 0; j < kPixels; ++j) {
    const Pixel pixel = pixel_of<C>(j, tile, call.height, call.width);
    const bool live = pixel.live && pixel.at >= turn.first && pixel.at < turn.end;
    at[j] = live ? static_cast<int>(pixel.at) : -1;
  }
}

// A layer's z of one tile: from what its product reads in shared memory.
template <int C>
__device__ __forceinline__ void finish_layer(const Nodes& call, const Room<C>& room,
                                             const Tile& tile, const int64_t* row,
                                             const int (&at)[kPixels],
                                             float (&values)[kPixels][4]) {
  const int c = threadIdx.x % kQuads<C> * 4;
  if (c >= row[kCout]) return;
  product<C, true>(tile, room.between, room.product, values);
  float* to = call.z + row[kZ] + row[kColumn] + c;
#pragma unroll
  for (int j = 0; j < kPixels; ++j)
    if (at[j] >= 0)
      store(to + int64_t(at[j]) * C,
            make_float4(values[j][0], values[j][1], values[j][2], values[j][3]));
}

// A pool's, from the tile itself.
template <int C>
__device__ __forceinline__ void finish_pool(const Nodes& call, const Room<C>& room,
                                            const Tile& tile, const int64_t* row,
                                            const int (&at)[kPixels], float (&values)[kPixels][4]) {
  const Input input = input_of(row);
  const bool averages = row[kKind] == kAverage;
  const int c = threadIdx.x % kQuads<C> * 4;
  float *to = call.z + row[kZ] + c, *position = call.z + row[kPosition] + c;
#pragma unroll
  for (int j = 0; j < kPixels; ++j) {
    if (at[j] < 0) continue;
    const Window<C> window(room.tile, tile, input, pixel_of<C>(j, tile, call.height, call.width));
    float4 v, winner;
    if (averages) {
      v = average_of(window, tile.columns);
    } else {
      v = maximum_of(window, tile.columns, winner);
      store(position + int64_t(at[j]) * C, winner);
    }
    store(to + int64_t(at[j]) * C, v);
    values[j][0] = v.x, values[j][1] = v.y, values[j][2] = v.z, values[j][3] = v.w;
  }
}

// Mean and 1 / deviation of the norm in front of a second layer.
template <int C>
__device__ void inner_norm(const Nodes& call, const int64_t* row, float* norm) {
  const int c = threadIdx.x;
  if (c >= C) return;
  const float* statistics = call.statistics + row[kInner] + c;
  norm[c] = statistics[0];
  norm[C + c] = static_cast<float>(1 / sqrt(static_cast<double>(statistics[C]) + call.eps));
}

// The statistics of the norms behind a pack's rows, where the moments of all chunks are there. They
// are rounded before use: backward and a second forward read what is written here. FactorizedReduce
// has a row for each half of the channels; behind a pool there is a norm for each edge of its
// state.
template <int C>
__device__ void complete(const Nodes& call, const Room<C>& room, int rows) {
  const int c = threadIdx.x % C;
  for (int r = 0; r < rows; ++r) {
    if (r > 0) __syncthreads();  // the row before has read what was added up for it
    const int64_t* row = room.rows + r * kLayer;
    const bool half = row[kKind] == kDense, own = !half || c < row[kCout];
    const bool pools = row[kKind] == kMaximum || row[kKind] == kAverage;
    const int64_t column = half ? row[kColumn] : 0;
    double mean = 0, variance = 0;
    merge<C>(call.moments + row[kMoments] + column, own, call.chunks, call.chunk_pixels,
             call.pixels, reinterpret_cast<double*>(room.between), mean, variance);
    while (threadIdx.x < C && own) {
      if (row[kStatistics] >= 0 && row[kFrozen] == 0) {
        float* to = call.statistics + row[kStatistics] + column + c;
        to[0] = static_cast<float>(mean);
        to[C] = static_cast<float>(variance);
      }
      if (!pools || row[kInner] < 0) break;
      row = call.layers + row[kInner] * kLayer;
    }
  }
}

// The chunk's moments of all rows.
template <int C>
__device__ void write_moments(const Nodes& call, const Room<C>& room, int rows, int count) {
  for (int i = threadIdx.x; i < rows * C; i += kThreads) {
    const int64_t* row = room.rows + i / C * kLayer;
    const int c = i % C;
    const bool half = row[kKind] == kDense;
    if (half && c >= row[kCout]) continue;
    double mean = 0, squares = 0;
    if (count > 0) {
      const double sum = room.sums[2 * i], pixels = static_cast<double>(count);
      mean = room.pivots[i] + sum / pixels;
      squares = room.sums[2 * i + 1] - sum * (sum / pixels);
      if (squares < 0) squares = 0;  // a sum of rounded squares may be a bit too small
    }
    double* to = call.moments + row[kMoments] + int64_t(room.turn->chunk) * 2 * C +
                 (half ? row[kColumn] : 0) + c;
    to[0] = mean;
    to[C] = squares;
  }
}

// All rows of a pack on one tile.
template <int C, bool kSecond>
__device__ __forceinline__ void convolve_tile(const Nodes& call, const Room<C>& room,
                                              const Tile& tile) {
  load_taps<C>(call, room.rows, room.spatial);
  int at[kPixels];
  locate<C>(call, *room.turn, tile, at);
  __syncthreads();
  for (int r = 0; r < room.turn->length; ++r) {
    const int64_t* row = room.rows + r * kLayer;
    if (!kSecond && r > 0 && r == room.turn->pools) {
      rectify_tile<C>(room.tile, tile);
      __syncthreads();
    }
    load_product<C>(call, row, room.product);
    spread<C, kSecond>(room, tile, row);
    __syncthreads();
    if (r + 1 < room.turn->length) load_taps<C>(call, row + kLayer, room.spatial);
    float values[kPixels][4] = {};
    if (kSecond || r >= room.turn->pools)
      finish_layer(call, room, tile, row, at, values);
    else
      finish_pool(call, room, tile, row, at, values);
    float* pivots = room.pivots + r * C;
    if (!call.known) {
      if (room.turn->fresh > 0) {
        add_values<C>(values, at, room.partial);
        __syncthreads();
        if (threadIdx.x < C)
          pivots[threadIdx.x] =
              static_cast<float>(over_warps<C>(room.partial, threadIdx.x) / room.turn->fresh);
        __syncthreads();
      }
      add_up<C>(values, at, pivots, room.partial);
    }
    __syncthreads();
    if (!call.known && threadIdx.x < 2 * C)
      room.sums[r * 2 * C + threadIdx.x] += over_warps<2 * C>(room.partial, threadIdx.x);
  }
}

template <int C, bool kSecond>
__device__ __forceinline__ void convolve(const Nodes& call, const Room<C>& room) {
  const int64_t* pack = call.packs + task_of(call, room.turn)[kTaskRow] * kPack;
  const int length = static_cast<int>(pack[kPackLength]);
  if (threadIdx.x == 0) {
    room.turn->length = length;
    room.turn->pools = static_cast<int>(pack[kPackPools]);
  }
  for (int i = threadIdx.x; i < length * kLayer; i += kThreads)
    room.rows[i] = call.layers[pack[kPackFirst] * kLayer + i];
  for (int i = threadIdx.x; i < length * C * 2; i += kThreads) room.sums[i] = 0;
  __syncthreads();
  if (kSecond) {
    inner_norm<C>(call, room.rows, room.norm);
    __syncthreads();
  }
  Tile tile = tile_of(C, call.log_width, call.log_height, call.log_images,
                      kSecond ? call.second_halo : call.halo, static_cast<int>(room.rows[kStride]));
  const int size = call.height * call.width, first = room.turn->first, end = room.turn->end;
  for (int from = first, to; from < end; from = to) {
    tile.image = from / size;
    const int image = tile.image * size, y = (from - image) / call.width;
    tile.top = y >> tile.log_height << tile.log_height;
    const int bottom = tile.top + (1 << tile.log_height);
    const int behind = tile.log_images > 0
                           ? image + (size << tile.log_images)
                           : image + (bottom < call.height ? bottom : call.height) * call.width;
    to = behind < end ? behind : end;
    const float* source = (kSecond ? call.z : call.states) + room.rows[kSource];
    const int pitch = kSecond ? C : call.pitch;
    if (kSecond)
      load_tile<C, 4>(room.tile, tile, input_of(room.rows), source, pitch, call.images,
                      Normalized{room.norm, room.norm + C});
    else if (room.turn->pools > 0)
      load_tile<C, 4>(room.tile, tile, input_of(room.rows), source, pitch, call.images, Plain{});
    else
      load_tile<C, 4>(room.tile, tile, input_of(room.rows), source, pitch, call.images,
                      Rectified{});
    if (threadIdx.x == 0) room.turn->fresh = from == first ? to - from : 0;
    convolve_tile<C, kSecond>(call, room, tile);
  }
  __syncthreads();
  if (!call.known)
    write_moments<C>(call, room, room.turn->length, room.turn->end - room.turn->first);
  if (!is_last(task_of(call, room.turn), call.counters, call.chunks, &room.turn->last)) return;
  if (!call.known) complete<C>(call, room, room.turn->length);
  done(task_of(call, room.turn), call.counters);
}

}  // namespace da2s_fast::cell

// Layers and pools of the forward pass: z and its moments, as kernels/cell/convolve.py has them.
//
// Grid (chunks, packs). A program takes a chunk of the output's pixels tile by tile. The input of a
// tile, with as many pixels around as the widest window needs, comes into shared memory once; from
// there all layers and pools of a pack, that is all that read this state with this stride, are
// computed one after the other:
//
//     depthwise convolution   8 neighbouring outputs of a channel per thread, in registers; the
//                             results (pixels, C) go to shared memory
//     product over channels   4 pixels x 4 channels per thread: 8 reads of 16 bytes for 64
//                             multiply-adds; z leaves by 16 bytes
//     moments                 lanes of a warp by shuffles, warps and tiles in order
//
// Each half of a layer reads weights of its own, which come while the other half runs: two barriers
// per layer and tile. Pools read the input before ReLU, so they come first.
#pragma once

#include "depthwise.cuh"
#include "moments.cuh"
#include "pool.cuh"
#include "table.cuh"

namespace da2s_fast::cell {

// What a launch is given; tests/gpu/ptx/cuda.py packs the same fields.
struct Convolve {
  const int64_t* table;  // of `Layer`
  const int64_t* packs;  // of `Pack`
  const float* source;   // the states, or the z for second layers
  float* z;
  const float* weights;
  double* moments;
  float* statistics;     // of all norms; those in front of second layers are completed
  int64_t pixels;        // of the output
  int64_t chunk_pixels;  // of a chunk
  double eps;
  int height;  // of the output
  int width;
  int pitch;      // channels of the input, all of them
  int known;      // all statistics are known, nobody needs the moments
  int halo;       // pixels around a tile
  int taps;       // most of a depthwise convolution
  int log_width;  // extents of a tile
  int log_height;
  int log_images;
};

// Shared memory of a program. What the tile takes is behind everything else.
template <int C>
struct Room {
  double* sums;    // (rows, C, 2) of the chunk
  int64_t* rows;   // of the table
  float* norm;     // (2, C)
  float* pivots;   // (rows, C)
  float* partial;  // (warps, C, 2)
  float* product;  // (C, C)
  float* spatial;  // (taps, C)
  float* between;  // (pixels of the tile, C), or two numbers per thread
  float* tile;

  __device__ Room(char* start, const Convolve& call) {
    const int numbers = C << (call.log_width + call.log_height + call.log_images);
    Shared shared{start};
    sums = shared.take<double>(kMostRows<C> * C * 2);
    rows = shared.take<int64_t>(kMostRows<C> * kLayer);
    norm = shared.take<float>(2 * C);
    pivots = shared.take<float>(kMostRows<C> * C);
    partial = shared.take<float>(kWarps * C * 2);
    product = shared.take<float>(C * C);
    spatial = shared.take<float>(call.taps * C);
    between = shared.take<float>(numbers > 2 * kThreads ? numbers : 2 * kThreads);
    tile = shared.take<float>(0);
  }
};

// Bring weights of a layer's product as (C, cout), so that a thread's 4 outputs lie side by side.
template <int C>
__device__ __forceinline__ void load_product(const Convolve& call, const int64_t* row, float* to) {
  if (row[kKind] != kSeparable && row[kKind] != kDense) return;
  const float* product = call.weights + row[kProduct];
  const int cout = static_cast<int>(row[kCout]);
#pragma unroll 4
  for (int i = threadIdx.x; i < cout * C; i += kThreads) to[i % C * C + i / C] = product[i];
}

// Depthwise weights, as (taps, C).
template <int C>
__device__ __forceinline__ void load_taps(const Convolve& call, const int64_t* row, float* to) {
  if (row[kKind] != kSeparable) return;
  const float* spatial = call.weights + row[kSpatial];
  const int taps = static_cast<int>(row[kKernel] * row[kKernel]);
  for (int i = threadIdx.x; i < taps * C; i += kThreads) to[i % taps * C + i / taps] = spatial[i];
}

// What a row has before its product.
template <int C, bool kSecond>
__device__ __forceinline__ void spread(const Room<C>& room, const Tile& tile, int stride,
                                       const int64_t* row) {
  const int padding = static_cast<int>(row[kPadding]);
  const int kernel = static_cast<int>(row[kKernel]), dilation = static_cast<int>(row[kDilation]);
  if (kSecond || (row[kKind] == kSeparable && stride == 1))
    depthwise_of<C, 1>(kernel, dilation, room.tile, tile, padding, room.spatial, room.between);
  else if (row[kKind] == kDense)
    gather<C>(room.tile, tile, stride, padding, room.between);
  else if (row[kKind] == kSeparable)
    depthwise_of<C, 2>(kernel, dilation, room.tile, tile, padding, room.spatial, room.between);
}

// 4 outputs of a thread's first pixels; kAll: the tile has all of them.
template <int C, int kFirst, bool kAll>
__device__ __forceinline__ void product_of(int pixels, const float* between, const float* weights,
                                           float (&values)[kPixels][4]) {
  const int quad = threadIdx.x % kQuads<C>;
  const float4* rows = reinterpret_cast<const float4*>(between);
  const float4* shares = reinterpret_cast<const float4*>(weights);
#pragma unroll 4
  for (int block = 0; block < kQuads<C>; ++block) {
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

// By 16 bytes; compilers take plain assignments apart.
__device__ inline void store(float* to, float4 v) { __stwb(reinterpret_cast<float4*>(to), v); }

// A row's z of one tile: from what its product or pool reads in shared memory.
template <int C, bool kSecond>
__device__ __forceinline__ void finish_row(const Convolve& call, const Room<C>& room,
                                           const Tile& tile, const Input& input, const int64_t* row,
                                           int64_t first, int64_t last, float (&values)[kPixels][4],
                                           bool (&live)[kPixels]) {
  const int c = threadIdx.x % kQuads<C> * 4;
  const bool pools = !kSecond && (row[kKind] == kMaximum || row[kKind] == kAverage);
  const bool own = pools || c < row[kCout];
#pragma unroll
  for (int j = 0; j < kPixels; ++j)
    for (int i = 0; i < 4; ++i) values[j][i] = 0;
  if (!pools && own) product<C, true>(tile, room.between, room.product, values);
#pragma unroll
  for (int j = 0; j < kPixels; ++j) {
    const Pixel pixel = pixel_of<C>(j, tile, call.height, call.width);
    live[j] = pixel.live && pixel.at >= first && pixel.at < last && own;
    if (!live[j]) continue;
    if (pools) {
      float4 winner;
      const float4 v = pooled<C>(room.tile, tile, input, pixel, row[kKind] == kAverage, winner);
      values[j][0] = v.x, values[j][1] = v.y, values[j][2] = v.z, values[j][3] = v.w;
      if (row[kKind] == kMaximum) store(call.z + row[kPosition] + pixel.at * C + c, winner);
    }
    store(call.z + row[kZ] + pixel.at * C + (pools ? 0 : row[kColumn]) + c,
          make_float4(values[j][0], values[j][1], values[j][2], values[j][3]));
  }
}

// Mean and 1 / deviation of the norm in front of a second layer; the first chunk's program writes
// them down.
template <int C>
__device__ void inner_norm(const Convolve& call, const int64_t* row, float* norm, double* scratch) {
  const int c = threadIdx.x % C;
  float* statistics = call.statistics + row[kInner] + c;
  const bool given = call.known || row[kInnerFrozen] != 0;
  double exact_mean = 0, exact_variance = 0;
  if (!given)
    merge<C>(call.moments + row[kInnerMoments], gridDim.x, call.chunk_pixels, call.pixels, scratch,
             exact_mean, exact_variance);
  if (threadIdx.x >= C) return;
  float mean, variance;
  if (given) {
    mean = statistics[0];
    variance = statistics[C];
  } else {
    // Rounded before use: backward and a second forward read what is written here.
    mean = static_cast<float>(exact_mean);
    variance = static_cast<float>(exact_variance);
    if (blockIdx.x == 0) {
      statistics[0] = mean;
      statistics[C] = variance;
    }
  }
  norm[c] = mean;
  norm[C + c] = static_cast<float>(1 / sqrt(static_cast<double>(variance) + call.eps));
}

// The chunk's moments of all rows.
template <int C>
__device__ void write_moments(const Convolve& call, const Room<C>& room, int rows, int64_t count) {
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
    double* to = call.moments + row[kMoments] + blockIdx.x * 2 * C + (half ? row[kColumn] : 0) + c;
    to[0] = mean;
    to[C] = squares;
  }
}

// All rows of a pack on one tile. `count` is its number of live pixels, `fresh` whether it is the
// chunk's first.
template <int C, bool kSecond>
__device__ __forceinline__ void convolve_tile(const Convolve& call, const Room<C>& room,
                                              const Tile& tile, const Input& input, int length,
                                              int pools, int64_t first, int64_t last, int count,
                                              bool fresh) {
  load_taps<C>(call, room.rows, room.spatial);
  __syncthreads();
  for (int r = 0; r < length; ++r) {
    const int64_t* row = room.rows + r * kLayer;
    if (!kSecond && pools > 0 && r == pools) {
      rectify_tile<C>(room.tile, tile);
      __syncthreads();
    }
    load_product<C>(call, row, room.product);
    spread<C, kSecond>(room, tile, input.stride, row);
    __syncthreads();
    if (r + 1 < length) load_taps<C>(call, row + kLayer, room.spatial);
    float values[kPixels][4];
    bool live[kPixels];
    finish_row<C, kSecond>(call, room, tile, input, row, first, last, values, live);
    float* pivots = room.pivots + r * C;
    if (!call.known) {
      if (fresh) {
        add_up<C>(values, live, nullptr, room.partial);
        __syncthreads();
        if (threadIdx.x < C)
          pivots[threadIdx.x] =
              static_cast<float>(across_warps<C>(room.partial, threadIdx.x, 0) / count);
        __syncthreads();
      }
      add_up<C>(values, live, pivots, room.partial);
    }
    __syncthreads();
    if (!call.known && threadIdx.x < C)
      for (int which = 0; which < 2; ++which)
        room.sums[(r * C + threadIdx.x) * 2 + which] +=
            across_warps<C>(room.partial, threadIdx.x, which);
  }
}

template <int C, bool kSecond>
__device__ __forceinline__ void convolve(const Convolve& call, char* shared) {
  const Room<C> room(shared, call);
  const int64_t* pack = call.packs + blockIdx.y * kPack;
  const int length = static_cast<int>(pack[kPackLength]);
  const int pools = static_cast<int>(pack[kPackPools]);
  for (int i = threadIdx.x; i < length * kLayer; i += kThreads)
    room.rows[i] = call.table[pack[kPackFirst] * kLayer + i];
  for (int i = threadIdx.x; i < length * C * 2; i += kThreads) room.sums[i] = 0;
  __syncthreads();
  if (kSecond) {
    inner_norm<C>(call, room.rows, room.norm, reinterpret_cast<double*>(room.between));
    __syncthreads();
  }
  const Input input{static_cast<int>(room.rows[kHeight]), static_cast<int>(room.rows[kWidth]),
                    static_cast<int>(room.rows[kStride])};
  Tile tile = tile_of(call.log_width, call.log_height, call.log_images, call.halo, input.stride);
  const int64_t size = int64_t(call.height) * call.width;
  const int images = static_cast<int>(call.pixels / size);
  const int64_t first = blockIdx.x * call.chunk_pixels;
  const int64_t end = first + call.chunk_pixels;
  const int64_t last = end < call.pixels ? end : call.pixels;
  const float* source = call.source + room.rows[kSource];
  bool fresh = true;
  for (tile.image = static_cast<int>(first / size); tile.image * size < last;
       tile.image += 1 << tile.log_images)
    for (tile.top = 0; tile.top < call.height; tile.top += 1 << tile.log_height) {
      const int64_t begin = tile.image * size + int64_t(tile.top) * call.width;
      const bool several = tile.log_images > 0;
      const int bottom = tile.top + (1 << tile.log_height);
      const int64_t behind =
          several ? (tile.image + (int64_t(1) << tile.log_images)) * size
                  : tile.image * size +
                        int64_t(bottom < call.height ? bottom : call.height) * call.width;
      const int64_t from = begin > first ? begin : first, to = behind < last ? behind : last;
      if (from >= to) continue;
      if (kSecond)
        load_tile<C>(room.tile, tile, input, source, call.pitch, images,
                     Normalized{room.norm, room.norm + C});
      else if (pools > 0)
        load_tile<C>(room.tile, tile, input, source, call.pitch, images, Plain{});
      else
        load_tile<C>(room.tile, tile, input, source, call.pitch, images, Rectified{});
      convolve_tile<C, kSecond>(call, room, tile, input, length, pools, first, last,
                                static_cast<int>(to - from), fresh);
      fresh = false;
    }
  __syncthreads();
  if (!call.known) write_moments<C>(call, room, length, last - first);
}

}  // namespace da2s_fast::cell

// From the gradient behind a norm to the one before the layer's product, and the layer's weights.
#pragma once

#include "depthwise.cuh"
#include "moments.cuh"
#include "table.cuh"

namespace da2s_fast::cell {

// What a launch is given; tests/gpu/ptx/cuda.py packs the same fields.
struct Reach {
  const int64_t* tasks;       // of `Task`
  const int64_t* waits;       // of `Wait`, the tasks'
  int* counters;              // of tickets, then the tasks'
  const int64_t* candidates;  // of `Layer`, rows of the tasks
  const int64_t* seconds;     // likewise
  const int64_t* groups;      // of `Group`, likewise
  const int64_t* layers;      // of `Layer`, the groups' rows
  const float* states;
  const float* z;
  float* gradients;  // all of them
  const float* weights;
  float* weight_gradients;  // (chunks, weight_count), or none
  const float* p_weights;   // (edges, operations)
  const float* g_weights;   // (edges,), or none
  const float* statistics;
  double* sums;  // of gradients, partial
  int64_t pixels;
  int64_t weight_count;
  double eps;
  int height;
  int width;
  int chunks;      // of whole images
  int images;      // of a chunk
  int operations;  // columns of p
  int pitch;       // channels of a state
  int halo;        // pixels around a tile of first layers
  int inner_halo;  // likewise of second layers
  int taps;        // most of a depthwise convolution
  int log_width;   // extents of a tile
  int log_height;
  int log_images;
  int kept;  // shared memory has room for the rows that a tile hands to the next
};

// Scale, mean, shift and slope of dz = scale (G - shift - (z - mean) slope), (4, C). Where
// statistics are given or there is no norm, z has no part in it: shift and slope are 0. All threads
// add up chunks, through `scratch` of two doubles per thread.
template <int C>
__device__ __forceinline__ void coefficients(const Reach& call, const int64_t* row, float* to,
                                             double* scratch) {
  const int thread = this_thread();
  constexpr int kParts = kThreads / C;
  const int c = thread % C;
  if (row[kStatistics] >= 0 && row[kFrozen] == 0) {
    double gradients = 0, products = 0;
    const double* sums = call.sums + row[kSums] + c;
#pragma unroll 4
    for (int chunk = thread / C; chunk < call.chunks; chunk += kParts) {
      gradients += sums[chunk * 2 * C];
      products += sums[(chunk * 2 + 1) * C];
    }
    scratch[thread] = gradients;
    scratch[kThreads + thread] = products;
  }
  __syncthreads();
  if (thread >= C) return;
  float scale = 1, mean = 0, shift = 0, slope = 0;
  const int64_t edge = row[kEdge], place = row[kStatistics];
  if (edge >= 0) {
    scale = call.p_weights[edge * call.operations + row[kOperation]];
    if (call.g_weights != nullptr) scale *= call.g_weights[edge];
  }
  if (place >= 0) {
    mean = call.statistics[place + c];
    const double variance = call.statistics[place + C + c];
    const float rstd = static_cast<float>(1 / sqrt(variance + call.eps));
    scale *= rstd;
    if (row[kFrozen] == 0) {
      double gradients = 0, products = 0;
      for (int part = c; part < kThreads; part += C) {
        gradients += scratch[part];
        products += scratch[kThreads + part];
      }
      const double pixels = static_cast<double>(call.pixels), exact = rstd;
      shift = static_cast<float>(gradients / pixels);
      slope = static_cast<float>(products * exact * exact / pixels);
    }
  }
  to[c] = scale, to[C + c] = mean, to[2 * C + c] = shift, to[3 * C + c] = slope;
}

// Whether z has no part in the gradient: statistics are given, or there is no norm.
__device__ inline bool is_given(const int64_t* row) {
  return row[kFrozen] != 0 || row[kStatistics] < 0;
}

// dz of 4 channels, whose `coefficients` begin where theirs do.
template <int C>
__device__ __forceinline__ float4 before_norm(const float* coefficients, bool given, float4 g,
                                              float4 z) {
  const auto back = [&](float g, float z, int i) {
    const float mean = coefficients[C + i];
    const float through = coefficients[2 * C + i] + (z - mean) * coefficients[3 * C + i];
    return coefficients[i] * (g - (given ? 0 : through));
  };
  return make_float4(back(g.x, z.x, 0), back(g.y, z.y, 1), back(g.z, z.z, 2), back(g.w, z.w, 3));
}

// As `pixel_of` of a chunk of whole images, of which there are none from `end` on.
template <int C>
__device__ Pixel pixel_before(int end, int j, const Tile& tile, const Reach& call) {
  Pixel pixel = pixel_of<C>(j, tile, call.height, call.width);
  pixel.live = pixel.live && tile.image + pixel.image < end;
  return pixel;
}

// Where a pixel is; where there is none, one of the tile that there is, to be read in its place.
__device__ __forceinline__ int64_t place_of(const Pixel& pixel, const Tile& tile,
                                            const Reach& call) {
  const int top = tile.top > 0 ? tile.top : 0;
  return pixel.live ? pixel.at : (int64_t(tile.image) * call.height + top) * call.width;
}

// dz of a tile, (pixels, C), 0 where there is no pixel. Some of what a thread needs is on its way
// before the first is waited for, as much as it has registers for.
template <int C>
__device__ __forceinline__ void load_dz(const Reach& call, const int64_t* row,
                                        const float* coefficients, const Tile& tile, int end,
                                        float* to) {
  const int thread = this_thread(), c = thread % kQuads<C> * 4;
  const bool given = is_given(row);
  const float *gradient = call.gradients + row[kGradient] + c, *outputs = call.z + row[kZ] + c;
  const int pitch = static_cast<int>(row[kGradientPitch]);
  constexpr int kAtOnce = C > 16 ? kPixels / 2 : kPixels;
#pragma unroll
  for (int first = 0; first < kPixels; first += kAtOnce) {
    float4 g[kAtOnce], z[kAtOnce];
    unsigned live = 0;
#pragma unroll
    for (int j = 0; j < kAtOnce; ++j) {
      const Pixel pixel = pixel_before<C>(end, first + j, tile, call);
      const int64_t at = place_of(pixel, tile, call);
      live |= unsigned(pixel.live) << j;
      g[j] = *reinterpret_cast<const float4*>(gradient + at * pitch);
      z[j] = *reinterpret_cast<const float4*>(outputs + at * C);
    }

#pragma unroll
    for (int j = 0; j < kAtOnce; ++j)
      if (index_of<C>(first + j) < pixels_of(tile))
        quad_of(to, thread, first + j) = live >> j & 1
                                             ? before_norm<C>(coefficients + c, given, g[j], z[j])
                                             : make_float4(0, 0, 0, 0);
  }
}

// Add a tile's part to the gradient of the product's weights: a thread has 4 outputs x 4 inputs of
// some of the pixels.
template <int C>
__device__ __forceinline__ void add_products(const float* dz, const float* between, int pixels,
                                             float (&sums)[4][4]) {
  const int thread = this_thread();
  constexpr int kParts = kQuads<C> * kQuads<C>;
  const int out = thread % kParts / kQuads<C>, in = thread % kQuads<C>;
#pragma unroll(C > 16 ? 1 : 2)
  for (int p = thread / kParts; p < pixels; p += kThreads / kParts) {
    const float4 g = reinterpret_cast<const float4*>(dz)[p * kQuads<C> + out];
    const float4 v = reinterpret_cast<const float4*>(between)[p * kQuads<C> + in];
    const float gs[4] = {g.x, g.y, g.z, g.w}, vs[4] = {v.x, v.y, v.z, v.w};
#pragma unroll
    for (int o = 0; o < 4; ++o)
#pragma unroll
      for (int i = 0; i < 4; ++i) sums[o][i] += gs[o] * vs[i];
  }
}

// Write (C, C): the threads' parts in order, through shared memory of 16 numbers per thread.
template <int C>
__device__ __forceinline__ void write_products(const float (&sums)[4][4], float* shared,
                                               float* to) {
  const int thread = this_thread();
  constexpr int kParts = kQuads<C> * kQuads<C>;
#pragma unroll
  for (int i = 0; i < 16; ++i) shared[i * kThreads + thread] = sums[i / 4][i % 4];
  __syncthreads();
  for (int i = thread; i < C * C; i += kThreads) {
    const int out = i / C, in = i % C;
    const float* from = shared + (out % 4 * 4 + in % 4) * kThreads + out / 4 * kQuads<C> + in / 4;
    float sum = 0;
    for (int part = 0; part < kThreads; part += kParts) sum += from[part];
    to[i] = sum;
  }
  __syncthreads();
}

// Add a tile's part to the gradient of the depthwise weights: a thread has a channel of some runs.
template <int C, int kKernelSize, int kDilation, int kStride>
__device__ __forceinline__ void add_taps(const float* shared, const Tile& tile, int padding,
                                         const float* total,
                                         float (&sums)[kKernelSize * kKernelSize]) {
  const int thread = this_thread();
  constexpr int kReach = (kRun - 1) * kStride + (kKernelSize - 1) * kDilation + 1;
  const int c = thread % C;
  const int log_lines = tile.log_height + tile.log_images;
#pragma unroll 1
  for (int unit = thread / C; unit < pixels_of(tile) / kRun; unit += kThreads / C) {
    const int line = unit & ((1 << log_lines) - 1);
    const int x = (unit >> log_lines) * kRun;
    const int image = line >> tile.log_height, y = line & ((1 << tile.log_height) - 1);
    const int row = image * tile.rows + y * kStride + tile.halo - padding;
    const int column = x * kStride + tile.halo - padding;
    const float* from = shared + (row * tile.columns + column) * C + c;
    const float* behind = total + ((line << tile.log_width) + x) * C + c;
    float g[kRun];
#pragma unroll
    for (int i = 0; i < kRun; ++i) g[i] = behind[i * C];
#pragma unroll
    for (int ky = 0; ky < kKernelSize; ++ky) {
#pragma unroll
      for (int i = 0; i < kReach; ++i) {
        const float v = from[(ky * kDilation * tile.columns + i) * C];
#pragma unroll
        for (int k = 0; k < kKernelSize; ++k) {
          const int steps = i - k * kDilation;
          if (steps >= 0 && steps % kStride == 0 && steps / kStride < kRun)
            sums[ky * kKernelSize + k] += g[steps / kStride] * v;
        }
      }
    }
  }
}

// Write (C, taps): the threads' parts in order, through shared memory of as many numbers as taps
// per thread.
template <int C, int kTaps>
__device__ __forceinline__ void write_taps(const float (&sums)[kTaps], float* shared, float* to) {
  const int thread = this_thread();
#pragma unroll
  for (int tap = 0; tap < kTaps; ++tap) shared[tap * kThreads + thread] = sums[tap];
  __syncthreads();
  for (int i = thread; i < kTaps * C; i += kThreads) {
    const int tap = i / C, c = i % C;
    float sum = 0;
    for (int part = 0; part < kThreads; part += C) sum += shared[tap * kThreads + part + c];
    to[c * kTaps + tap] = sum;
  }
}

}  // namespace da2s_fast::cell

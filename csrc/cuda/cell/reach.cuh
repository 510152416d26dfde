// Through second layers of separable convolutions and ReLU to their inner norm, as `reach_inner` of
// kernels/cell/reach.py has it.
//
// A program has a row and a chunk of whole images, and goes over these twice, tile by tile. First
// from the gradient behind the norm through the product: the result is what the convolution hands
// back, and goes to a room in global memory; next to it the layer's input, in shared memory with
// its halo, gives the depthwise output again, and with them the gradients of all weights, which
// stay in registers from tile to tile. Then, behind a barrier, that room comes back into shared
// memory with a halo: the gradient of the input is a depthwise convolution with the kernel turned
// around.
#pragma once

#include "product.cuh"
#include "pull.cuh"
#include "task.cuh"

namespace da2s_fast::cell {

// What a program works on, once it knows; in registers, threads would miss the room meanwhile.
struct Program {
  int task;
  int chunk;
  int first;  // image of the chunk
  int end;    // of its images
};

__device__ inline void begin(const Reach& call, int task, int chunk, Program* program) {
  const int images = static_cast<int>(call.pixels / (int64_t(call.height) * call.width));
  const int first = chunk * call.images, end = first + call.images;
  *program = {task, chunk, first < images ? first : images, end < images ? end : images};
}

// Shared memory of a program. What is behind `dz` also holds the tiles of a pool's gradients, and
// the threads' parts of gradients of weights while they are added up: 16 numbers of a thread, or as
// many as taps. The rooms of a small tile may be less than that; what a program is given is not.
template <int C>
struct ReachRoom {
  double* sums;    // (2, C) of the chunk
  int64_t* row;    // of the table
  int64_t* group;  // likewise
  Program* program;
  float* coefficients;  // (4, C)
  float* norm;          // (2, C)
  float* partial;       // (warps, C, 2)
  float* product;       // (outputs, C)
  float* spatial;       // (taps, C)
  float* dz;            // (pixels of the tile, C)
  float* between;       // likewise, of depthwise results, then of what the product has reached
  float* tile;

  __device__ ReachRoom(char* start, const Reach& call) {
    // Where two programs shall fit, registers do not suffice for addresses that are no constants.
    const int numbers =
        C > 16 ? C << (call.log_width + call.log_height + call.log_images) : kTilePixels<C> * C;
    Shared shared{start};
    sums = shared.take<double>(2 * C);
    row = shared.take<int64_t>(kLayer);
    program = shared.take<Program>(1);
    group = shared.take<int64_t>(kGroup + 1);  // what follows is read by 16 bytes
    coefficients = shared.take<float>(4 * C);
    norm = shared.take<float>(2 * C);
    partial = shared.take<float>(kWarps * C * 2);
    product = shared.take<float>(C * C);
    spatial = shared.take<float>(call.taps * C);
    dz = shared.take<float>(numbers);
    between = shared.take<float>(numbers);
    tile = shared.take<float>(0);
  }
};

// Add up what the warps have of a tile, behind a barrier; each channel's sums are one thread's.
template <int C>
__device__ __forceinline__ void add_warps(const ReachRoom<C>& room) {
  if (threadIdx.x < C)
    for (int which = 0; which < 2; ++which)
      room.sums[which * C + threadIdx.x] += across_warps<C>(room.partial, threadIdx.x, which);
}

// Write the chunk's of a thread's own channel to `place`, where a chunk has those of `pitch`.
template <int C>
__device__ __forceinline__ void write_sums(const Reach& call, const ReachRoom<C>& room,
                                           int64_t place, int channel, int pitch) {
  double* to = call.sums + place + int64_t(room.program->chunk) * 2 * pitch;
  to[channel] = room.sums[channel];
  to[pitch + channel] = room.sums[C + channel];
}

// What the layer before needed may go; the row is there behind a barrier.
template <int C>
__device__ void load_row(const ReachRoom<C>& room, const int64_t* row) {
  for (int i = threadIdx.x; i < kLayer; i += kThreads) room.row[i] = row[i];
  __syncthreads();
}

// Call `work(tile)` for every tile of a chunk of whole images.
template <class Work>
__device__ void for_tiles(Tile tile, int height, const Program& program, Work work) {
  for (tile.image = program.first; tile.image < program.end; tile.image += 1 << tile.log_images)
    for (tile.top = 0; tile.top < height; tile.top += 1 << tile.log_height) work(tile);
}

// Depthwise weights, (taps, C), or turned around. The number of taps is no constant of a kernel
// size: quotients by it would be kept in registers, for all sizes, from layer to layer.
template <int C>
__device__ void load_spatial(const Reach& call, const ReachRoom<C>& room, bool turned) {
  const int kernel = static_cast<int>(room.row[kKernel]), taps = kernel * kernel;
  const float* from = call.weights + room.row[kSpatial];
#pragma unroll 1
  for (int i = threadIdx.x; i < taps * C; i += kThreads) {
    const int tap = i / C, c = i % C;
    room.spatial[(turned ? taps - 1 - tap : tap) * C + c] = from[c * taps + tap];
  }
}

// What the first pass needs to know of a layer, behind the barrier that its row is there; another
// barrier comes after it.
template <int C>
__device__ void load_layer(const Reach& call, const ReachRoom<C>& room) {
  coefficients<C>(call, room.row, room.coefficients, reinterpret_cast<double*>(room.dz));
  load_spatial<C>(call, room, false);
  for (int i = threadIdx.x; i < C * C; i += kThreads)
    room.product[i] = call.weights[room.row[kProduct] + i];
}

// The chunk's first pass. `load_input(tile)` fills the room's tile with the layer's input.
template <int C, int kKernelSize, int kDilation, int kStride, class LoadInput>
__device__ __forceinline__ void pull(const Reach& call, const ReachRoom<C>& room, const Tile& start,
                                     LoadInput load_input) {
  const int64_t* row = room.row;
  const int padding = static_cast<int>(row[kPadding]), c = threadIdx.x % kQuads<C> * 4;
  const bool wanted = call.weight_gradients != nullptr;
  float products[4][4] = {}, taps[kKernelSize * kKernelSize] = {};
  for_tiles(start, call.height, *room.program, [&](const Tile& tile) {
    if (wanted) load_input(tile);
    load_dz<C>(call, row, room.coefficients, tile, room.program->end, room.dz);
    __syncthreads();
    if (wanted)
      depthwise<C, kKernelSize, kDilation, kStride>(room.tile, tile, padding, room.spatial,
                                                    room.between);
    __syncthreads();
    if (wanted) add_products<C>(room.dz, room.between, pixels_of(tile), products);
    float values[kPixels][4] = {};
    // Where two programs shall fit, registers do not suffice for more than one case.
    product<C, false>(tile, room.dz, room.product, values);
    __syncthreads();
    float4* own = reinterpret_cast<float4*>(room.between);
#pragma unroll
    for (int j = 0; j < kPixels; ++j)
      if (index_of<C>(j) < pixels_of(tile))
        own[quad_of(j)] = make_float4(values[j][0], values[j][1], values[j][2], values[j][3]);
    // Positions are worked out anew: kept since `load_dz`, they would take the product's registers.
#pragma unroll 1
    for (int j = 0; j < kPixels; ++j) {
      const Pixel pixel = pixel_before<C>(room.program->end, j, tile, call);
      if (pixel.live) store(call.gradients + row[kReached] + pixel.at * C + c, own[quad_of(j)]);
    }
    if (wanted) {
      __syncthreads();
      add_taps<C, kKernelSize, kDilation, kStride>(room.tile, tile, padding, room.between, taps);
    }
    // The next tile comes; what was reached is read by other threads.
    __syncthreads();
  });
  if (!wanted) return;
  float* to = call.weight_gradients + room.program->chunk * call.weight_count;
  write_products<C>(products, room.dz, to + row[kProduct]);
  write_taps<C, kKernelSize * kKernelSize>(taps, room.dz, to + row[kSpatial]);
}

// One pixel's 4 channels through ReLU behind a norm; centred values of z come along.
template <int C>
__device__ void through_relu(const float* norm, int c, float4 z, float4 found, float (&gradient)[4],
                             float (&centred)[4]) {
  const float zs[4] = {z.x, z.y, z.z, z.w}, gs[4] = {found.x, found.y, found.z, found.w};
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    centred[i] = zs[i] - norm[c + i];
    gradient[i] = centred[i] * norm[C + c + i] <= 0 ? 0 : gs[i];
  }
}

// The chunk's second pass.
template <int C, int kKernelSize>
__device__ __forceinline__ void gather_inner(const Reach& call, const ReachRoom<C>& room,
                                             const Tile& start) {
  const int64_t* row = room.row;
  const Input input{call.height, call.width, 1};
  const int padding = static_cast<int>(row[kPadding]), c = threadIdx.x % kQuads<C> * 4;
  load_spatial<C>(call, room, true);
  for_tiles(start, call.height, *room.program, [&](const Tile& tile) {
    load_tile<C, 4>(room.tile, tile, input, call.gradients + row[kReached], C, room.program->end,
                    Plain{});
    __syncthreads();
    depthwise<C, kKernelSize, 1, 1>(room.tile, tile, padding, room.spatial, room.between);
    float4 z[kPixels];
#pragma unroll
    for (int j = 0; j < kPixels; ++j) {
      const Pixel pixel = pixel_before<C>(room.program->end, j, tile, call);
      const int64_t at = pixel.live ? pixel.at : first_of(tile, call);
      z[j] = *reinterpret_cast<const float4*>(call.z + row[kSource] + at * C + c);
    }
    __syncthreads();
    float found[kPixels][4] = {}, centred[kPixels][4] = {};
#pragma unroll
    for (int j = 0; j < kPixels; ++j) {
      const Pixel pixel = pixel_before<C>(room.program->end, j, tile, call);
      if (!pixel.live) continue;
      const float4 v = reinterpret_cast<const float4*>(room.between)[quad_of(j)];
      through_relu<C>(room.norm, c, z[j], v, found[j], centred[j]);
      store(call.gradients + row[kInnerGradient] + pixel.at * C + c,
            make_float4(found[j][0], found[j][1], found[j][2], found[j][3]));
    }
    add_pairs<C>(found, centred, room.partial);
    __syncthreads();
    add_warps<C>(room);
  });
  if (threadIdx.x < C) write_sums<C>(call, room, row[kInnerSums], threadIdx.x, C);
}

template <int C, int kKernelSize>
__device__ __forceinline__ void reach_as(const Reach& call, const ReachRoom<C>& room) {
  const Tile tile =
      tile_of(C, call.log_width, call.log_height, call.log_images, call.inner_halo, 1);
  const Input input{call.height, call.width, 1};
  pull<C, kKernelSize, 1, 1>(call, room, tile, [&](const Tile& at) {
    load_tile<C>(room.tile, at, input, call.z + room.row[kSource], C, room.program->end,
                 Normalized{room.norm, room.norm + C});
  });
  gather_inner<C, kKernelSize>(call, room, tile);
}

// kMost: the largest kernel among the rows; those of 7x7 take the registers of two programs.
template <int C, int kMost>
__device__ __forceinline__ void reach_inner(const Reach& call, const ReachRoom<C>& room,
                                            const int64_t* row) {
  for (int i = threadIdx.x; i < 2 * C; i += kThreads) room.sums[i] = 0;
  load_row<C>(room, row);
  load_layer<C>(call, room);
  if (threadIdx.x < C) {
    const float* inner = call.statistics + room.row[kInner] + threadIdx.x;
    room.norm[threadIdx.x] = inner[0];
    room.norm[C + threadIdx.x] =
        static_cast<float>(1 / sqrt(static_cast<double>(inner[C]) + call.eps));
  }
  __syncthreads();
  if (room.row[kKernel] == 3) reach_as<C, 3>(call, room);
  if (room.row[kKernel] == 5) reach_as<C, 5>(call, room);
  if (kMost == 7 && room.row[kKernel] == 7) reach_as<C, kMost>(call, room);
}

}  // namespace da2s_fast::cell

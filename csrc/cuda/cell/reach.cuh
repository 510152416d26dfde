// What the cell's backward kernel keeps in shared memory, and what its tasks share.
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
  // Where a layer's tiles lie; what follows from it for a thread is worked out behind every
  // barrier.
  Tile input;
  Tile reached;  // of what its depthwise results were reached by
};

__device__ inline void begin(const Reach& call, int task, int chunk, Program* program) {
  const int images = static_cast<int>(call.pixels / (int64_t(call.height) * call.width));
  const int first = chunk * call.images, end = first + call.images;
  program->task = task;
  program->chunk = chunk;
  program->first = first < images ? first : images;
  program->end = end < images ? end : images;
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
  float* dz;            // (pixels of the tile, C), then what comes back to the input
  float* between;       // likewise, of depthwise results, then of what the product has reached
  float* spatial;       // (taps, C)
  float* tile;          // and behind it what the next tile needs of this one

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
    dz = shared.take<float>(numbers);
    between = shared.take<float>(numbers);
    spatial = shared.take<float>(call.taps * C);
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
  const int thread = this_thread();
  for (int i = thread; i < kLayer; i += kThreads) room.row[i] = row[i];
  __syncthreads();
}

// Call `work(tile)` for every tile of a chunk of whole images.
template <class Work>
__device__ void for_tiles(Tile tile, int height, const Program& program, Work work) {
  for (tile.image = program.first; tile.image < program.end; tile.image += 1 << tile.log_images)
    for (tile.top = 0; tile.top < height; tile.top += 1 << tile.log_height) work(tile);
}

// Depthwise weights, (taps, C). The number of taps is no constant of a kernel size: quotients by it
// would be kept in registers, for all sizes, from layer to layer.
template <int C>
__device__ void load_spatial(const Reach& call, const ReachRoom<C>& room) {
  const int thread = this_thread();
  const int kernel = static_cast<int>(room.row[kKernel]), taps = kernel * kernel;
  const float* from = call.weights + room.row[kSpatial];
#pragma unroll 1
  for (int i = thread; i < taps * C; i += kThreads) {
    const int tap = i / C, c = i % C;
    room.spatial[i] = from[c * taps + tap];
  }
}

// Weights of a product, (outputs, C).
template <int C>
__device__ void load_weights(const Reach& call, const ReachRoom<C>& room) {
  const auto* from = reinterpret_cast<const float4*>(call.weights + room.row[kProduct]);
  for (int i = this_thread(); i < C * kQuads<C>; i += kThreads)
    reinterpret_cast<float4*>(room.product)[i] = from[i];
}

// What is to be known of a layer, behind the barrier that its row is there; another barrier comes
// after it. `halo`: around tiles of its input.
template <int C>
__device__ void load_layer(const Reach& call, const ReachRoom<C>& room, int halo) {
  if (this_thread() == 0) {
    const auto tile = [&](int halo, int stride) {
      return tile_of(C, call.log_width, call.log_height, call.log_images, halo, stride);
    };
    room.program->input = tile(halo, input_of(room.row).stride);
    room.program->reached = tile(static_cast<int>(room.row[kPadding]), 1);
  }
  coefficients<C>(call, room.row, room.coefficients, reinterpret_cast<double*>(room.dz));
  load_spatial<C>(call, room);
  load_weights<C>(call, room);
}

}  // namespace da2s_fast::cell

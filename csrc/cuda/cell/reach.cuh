// Through second layers of separable convolutions and ReLU to their inner norm, as `reach_inner` of
// kernels/cell/reach.py has it; what all layers have in common.
//
// A program has a row and a chunk of whole images, and goes over these tile by tile: from the
// gradient behind the norm through the product to what the convolution hands back, which is kept
// (kept.cuh); next to it the layer's input, in shared memory with its halo, gives the depthwise
// output again, and with them the gradients of all weights, which stay in registers from tile to
// tile. The gradient of the input is a depthwise convolution of what is kept with the kernel turned
// around.
#pragma once

#include "convolve.cuh"
#include "kept.cuh"
#include "pull.cuh"

namespace da2s_fast::cell {

// Where a layer's tiles lie. Read anew behind every barrier: what follows from it for a thread
// would else be kept in registers that sums need.
struct Geometry {
  Tile tile;  // of its input
  Tile kept;
  int lag;
  int none;  // what follows is read by 16 bytes
};

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

// Shared memory of a program. `dz` and what is behind it also hold the tiles of a pool's gradients,
// `kept` and what is behind it the threads' parts of gradients of weights while they are added up:
// 16 numbers of a thread, or as many as taps. The rooms of a small tile may be less than that; what
// a program is given is not.
template <int C>
struct ReachRoom {
  double* sums;    // (2, C) of the chunk
  int64_t* row;    // of the table
  int64_t* group;  // likewise
  Program* program;
  Geometry* geometry;
  float* coefficients;  // (4, C)
  float* norm;          // (2, C)
  float* partial;       // (warps, C, 2)
  float* product;       // (outputs, C)
  float* spatial;       // (taps, C)
  float* dz;            // (pixels of the tile, C)
  float* between;       // likewise
  float* kept;          // a layer's, and its input behind

  __device__ ReachRoom(char* start, const Reach& call) {
    // Where two programs shall fit, registers do not suffice for addresses that are no constants.
    const int numbers =
        C > 16 ? C << (call.log_width + call.log_height + call.log_images) : kTilePixels<C> * C;
    Shared shared{start};
    sums = shared.take<double>(2 * C);
    row = shared.take<int64_t>(kLayer);
    program = shared.take<Program>(1);
    geometry = shared.take<Geometry>(1);
    group = shared.take<int64_t>(kGroup + 1);  // what follows is read by 16 bytes
    coefficients = shared.take<float>(4 * C);
    norm = shared.take<float>(2 * C);
    partial = shared.take<float>(kWarps * C * 2);
    product = shared.take<float>(C * C);
    spatial = shared.take<float>(call.taps * C);
    dz = shared.take<float>(numbers);
    between = shared.take<float>(numbers);
    kept = shared.take<float>(0);
  }

  __device__ Tile tile_at(int image, int top) const {
    Tile tile = geometry->tile;
    tile.image = image, tile.top = top;
    return tile;
  }
  __device__ Kept kept_rows() const { return {kept, geometry->kept, geometry->lag}; }
};

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
  const int taps = static_cast<int>(room.row[kKernel] * room.row[kKernel]);
  const float* from = call.weights + room.row[kSpatial];
#pragma unroll 1
  for (int i = threadIdx.x; i < taps * C; i += kThreads)
    room.spatial[i] = from[i % C * taps + i / C];
}

// What is to be known of a layer, behind the barrier that its row is there; another barrier comes
// after it.
template <int C>
__device__ void load_layer(const Reach& call, const ReachRoom<C>& room, int halo, int stride) {
  if (threadIdx.x == 0) {
    const int padding = stride == 1 ? static_cast<int>(room.row[kPadding]) : 0;
    const Tile tile = tile_of(C, call.log_width, call.log_height, call.log_images, halo, stride);
    const Kept kept = kept_of<C>(room.kept, tile, padding, call.height);
    *room.geometry = {tile, kept.tile, kept.lag, 0};
  }
  coefficients<C>(call, room.row, room.coefficients, reinterpret_cast<double*>(room.dz));
  load_spatial<C>(call, room);
  for (int i = threadIdx.x; i < C * C; i += kThreads)
    room.product[i] = call.weights[room.row[kProduct] + i];
}

// What a layer's weights get, a thread's part.
template <int kKernelSize>
struct WeightGradients {
  float products[4][4] = {};
  float taps[kKernelSize * kKernelSize] = {};
};

// A tile's rows of what is kept, and its part of the weights' gradients. `load_input(tile, to)`
// fills it with the layer's input. What the tile needed may go behind the next barrier.
template <int C, int kKernelSize, int kDilation, int kStride, class LoadInput>
__device__ __forceinline__ void pull(const Reach& call, const ReachRoom<C>& room, int image,
                                     int top, LoadInput load_input,
                                     WeightGradients<kKernelSize>& found) {
  const int64_t* row = room.row;
  const bool wanted = call.weight_gradients != nullptr;
  const int end = room.program->end;
  {
    const Tile tile = room.tile_at(image, top);
    if (wanted) load_input(tile, room.kept_rows().template behind<C>());
    load_dz<C>(call, row, room.coefficients, tile, end, room.dz);
  }
  __syncthreads();
  {
    const Tile tile = room.tile_at(image, top);
    const Kept kept = room.kept_rows();
    float values[kPixels][4] = {};
    // Where two programs shall fit, registers do not suffice for more than one case.
    product<C, (C > 16)>(tile, room.dz, room.product, values);
    keep<C>(kept, tile, call.height, call.width, end, values);
    if (wanted)
      depthwise<C, kKernelSize, kDilation, kStride>(
          kept.behind<C>(), tile, static_cast<int>(row[kPadding]), room.spatial, room.between);
  }
  __syncthreads();
  if (!wanted) return;
  const Tile tile = room.tile_at(image, top);
  const Kept kept = room.kept_rows();
  add_products<C>(room.dz, room.between, pixels_of(tile), found.products);
  add_taps<C, kKernelSize, kDilation, kStride>(kept.behind<C>(), tile,
                                               static_cast<int>(row[kPadding]), kept, found.taps);
}

// The chunk's gradients of a layer's weights, through what held tiles: nobody needs these any more.
template <int C, int kKernelSize>
__device__ __forceinline__ void write_weights(const Reach& call, const ReachRoom<C>& room,
                                              const WeightGradients<kKernelSize>& found) {
  if (call.weight_gradients == nullptr) return;
  float* to = call.weight_gradients + room.program->chunk * call.weight_count;
  write_products<C>(found.products, room.kept, to + room.row[kProduct]);
  write_taps<C, kKernelSize * kKernelSize>(found.taps, room.kept, to + room.row[kSpatial]);
}

// A layer with stride 1, behind a barrier. `finish(tile)` is given what reaches its input, in
// `between`.
template <int C, int kKernelSize, int kDilation, class LoadInput, class Finish>
__device__ __forceinline__ void go_back(const Reach& call, const ReachRoom<C>& room,
                                        LoadInput load_input, Finish finish) {
  WeightGradients<kKernelSize> found;
  for (int image = room.program->first; image < room.program->end; image += 1 << call.log_images) {
    clear<C>(room.kept_rows());
    for (int top = 0; top < call.height + room.geometry->lag; top += 1 << call.log_height) {
      if (top > 0) move_up<C>(room.kept_rows());
      if (top < call.height) {
        pull<C, kKernelSize, kDilation, 1>(call, room, image, top, load_input, found);
      } else {
        const float none[kPixels][4] = {};
        __syncthreads();
        keep<C>(room.kept_rows(), room.tile_at(image, top), call.height, call.width,
                room.program->end, none);
      }
      __syncthreads();
      {
        const Kept kept = room.kept_rows();
        depthwise<C, kKernelSize, kDilation, 1, true>(kept.rows, kept.tile, kept.tile.halo,
                                                      room.spatial, room.between, kept.lag - top,
                                                      kept.lines(top, call.height));
      }
      __syncthreads();
      finish(room.tile_at(image, top - room.geometry->lag));
    }
  }
  write_weights<C>(call, room, found);
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

template <int C, int kKernelSize>
__device__ __forceinline__ void reach_as(const Reach& call, const ReachRoom<C>& room) {
  const int64_t* row = room.row;
  const int c = threadIdx.x % kQuads<C> * 4;
  const auto load_input = [&](const Tile& tile, float* to) {
    load_tile<C>(to, tile, Input{call.height, call.width, 1}, call.z + row[kSource], C,
                 room.program->end, Normalized{room.norm, room.norm + C});
  };
  const auto finish = [&](const Tile& tile) {
    float found[kPixels][4] = {}, centred[kPixels][4] = {};
#pragma unroll
    for (int j = 0; j < kPixels; ++j) {
      const Pixel pixel = pixel_before<C>(room.program->end, j, tile, call);
      if (!pixel.live) continue;
      const float4 z = *reinterpret_cast<const float4*>(call.z + row[kSource] + pixel.at * C + c);
      const float4 v = reinterpret_cast<const float4*>(room.between)[quad_of(j)];
      through_relu<C>(room.norm, c, z, v, found[j], centred[j]);
      store(call.gradients + row[kInnerGradient] + pixel.at * C + c,
            make_float4(found[j][0], found[j][1], found[j][2], found[j][3]));
    }
    add_pairs<C>(found, centred, room.partial);
    __syncthreads();
    if (threadIdx.x < C)
      for (int which = 0; which < 2; ++which)
        room.sums[which * C + threadIdx.x] += across_warps<C>(room.partial, threadIdx.x, which);
  };
  go_back<C, kKernelSize, 1>(call, room, load_input, finish);
  if (threadIdx.x < C) {
    double* to = call.sums + row[kInnerSums] + int64_t(room.program->chunk) * 2 * C + threadIdx.x;
    to[0] = room.sums[threadIdx.x];
    to[C] = room.sums[C + threadIdx.x];
  }
}

// kMost: the largest kernel among the rows; those of 7x7 take the registers of two programs.
template <int C, int kMost>
__device__ __forceinline__ void reach_inner(const Reach& call, const ReachRoom<C>& room,
                                            const int64_t* row) {
  for (int i = threadIdx.x; i < 2 * C; i += kThreads) room.sums[i] = 0;
  load_row<C>(room, row);
  load_layer<C>(call, room, call.inner_halo, 1);
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

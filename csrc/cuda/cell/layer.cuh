// Through a layer on the way back: from the gradient behind its norm through the product, which
// gives what its depthwise results were reached by, and through the depthwise convolution to its
// input.
//
// A program goes over a chunk of whole images tile by tile. The layer's input, in shared memory
// with its halo, gives the depthwise output again, and with it and what was reached come the
// gradients of the weights, which stay in registers from tile to tile. Then what was reached takes
// the place of the input: the gradient of the input is a depthwise convolution with the kernel
// turned around.
//
// Its windows reach over a tile's last rows by the padding. So a tile finishes the input's rows
// from as many before its own rows on, and hands its last rows to the next tile, twice the padding:
//
//     input's rows that are finished       |-------------|
//     rows reached, for their windows   |----|-------------|
//                                     handed over  the tile's own
//
// A tile that has all rows of its images needs nothing of this.
#pragma once

#include "product.cuh"
#include "reach.cuh"

namespace da2s_fast::cell {

// A thread's part of what the weights of a layer get.
template <int kKernelSize>
struct WeightParts {
  float products[4][4] = {};
  float taps[kKernelSize * kKernelSize] = {};
};

// What a tile's depthwise results were reached by comes to `between`, and its part of the weights'
// gradients is added. `load_input(tile)` fills the room's tile with the layer's input. What the
// tile needed may go behind the next barrier.
template <int C, int kKernelSize, int kDilation, int kStride, class LoadInput>
__device__ __forceinline__ void pull(const Reach& call, const ReachRoom<C>& room, int image,
                                     int top, LoadInput load_input,
                                     WeightParts<kKernelSize>& parts) {
  const bool wanted = call.weight_gradients != nullptr;
  {
    const Tile tile = at(room.program->input, image, top);
    if (wanted) load_input(tile);
    load_dz<C>(call, room.row, room.coefficients, tile, room.program->end, room.dz);
  }
  __syncthreads();
  if (wanted)
    depthwise<C, kKernelSize, kDilation, kStride>(room.tile, room.program->input,
                                                  static_cast<int>(room.row[kPadding]),
                                                  room.spatial, room.between);
  __syncthreads();
  {
    const Tile tile = room.program->input;
    if (wanted) add_products<C>(room.dz, room.between, pixels_of(tile), parts.products);
    float values[kPixels][4] = {};
    // Where two programs shall fit, registers do not suffice for more than one case.
    product<C, false>(tile, room.dz, room.product, values);
    __syncthreads();
    const int thread = this_thread();
#pragma unroll
    for (int j = 0; j < kPixels; ++j)
      if (index_of<C>(j) < pixels_of(tile))
        quad_of(room.between, thread, j) =
            make_float4(values[j][0], values[j][1], values[j][2], values[j][3]);
  }
  __syncthreads();
  if (wanted)
    add_taps<C, kKernelSize, kDilation, kStride>(room.tile, room.program->input,
                                                 static_cast<int>(room.row[kPadding]), room.between,
                                                 parts.taps);
}

// The chunk's gradients of a layer's weights, through what held tiles: nobody needs these any more.
template <int C, int kKernelSize>
__device__ __forceinline__ void write_weights(const Reach& call, const ReachRoom<C>& room,
                                              const WeightParts<kKernelSize>& parts) {
  if (call.weight_gradients == nullptr) return;
  float* to = call.weight_gradients + room.program->chunk * call.weight_count;
  write_products<C>(parts.products, room.dz, to + room.row[kProduct]);
  write_taps<C, kKernelSize * kKernelSize>(parts.taps, room.dz, to + room.row[kSpatial]);
}

// Where a tile hands rows to the next: in shared memory behind the room's tile.
template <int C>
__device__ __forceinline__ float* handed_of(const ReachRoom<C>& room) {
  return room.tile + input_pixels(room.program->input) * C;
}

// Where there is not enough of that, they go to the layer's room in global memory, to the chunk's
// first rows there, whichever they are: memory that stays in the cache. Where row y of an image
// begins, of which row `top` is the first that is handed over.
template <int C>
__device__ __forceinline__ float* row_of(const Reach& call, const ReachRoom<C>& room, int y,
                                         int top) {
  const int64_t place = int64_t(room.program->first) * call.height + y - (top > 0 ? top : 0);
  return call.gradients + room.row[kReached] + place * (call.width * C);
}

// Fill the room's tile, `reached`, with the rows above `top`, which were handed over, and
// `between`.
template <int C>
__device__ __forceinline__ void gather_rows(const Reach& call, const ReachRoom<C>& room,
                                            const Tile& reached, int top) {
  const float* handed = handed_of<C>(room);
  const int above = top - (reached.top - reached.halo);
  fill_tile<C>(
      room.tile, reached, call.height, call.width, 1, room.program->end, [&](const Line& line) {
        const int y = line.y - top, before = (line.image - reached.image) << call.log_height;
        const float* near = y < 0 ? handed + ((y + above) << call.log_width) * C
                                  : room.between + ((y + before) << call.log_width) * C;
        const float* far = row_of<C>(call, room, line.y, top - above);
        const bool away = y < 0 && !call.kept;
        return [=](int x, int c) {
          if (away) return *reinterpret_cast<const float4*>(far + x * C + c);
          return *reinterpret_cast<const float4*>(near + x * C + c);
        };
      });
}

// Hand over the last rows of the room's tile, as many as it has above the next one's first.
template <int C>
__device__ __forceinline__ void hand_over(const Reach& call, const ReachRoom<C>& room,
                                          const Tile& reached) {
  const int rows = 1 << call.log_height, pitch = reached.columns * kQuads<C>;
  const int top = reached.top - reached.halo + rows;
  const float4* from = reinterpret_cast<const float4*>(room.tile) +
                       (rows * reached.columns + reached.halo) * kQuads<C>;
  float4* handed = reinterpret_cast<float4*>(handed_of<C>(room));
  const unsigned quads = kQuads<C> << call.log_width, end = 2 * reached.halo * quads;
#pragma unroll 1
  for (unsigned i = this_thread(); i < end; i += kThreads) {
    const int line = i / kQuads<C> >> call.log_width, place = i & (quads - 1), y = top + line;
    const float4 v = from[line * pitch + place];
    if (call.kept)
      handed[i] = v;
    else if (y >= 0 && y < call.height && place < call.width * kQuads<C>)
      store(row_of<C>(call, room, y, top) + 4 * place, v);
  }
}

// A layer with stride 1, behind a barrier. `finish(tile)` finds in `dz` what has come back to a
// tile of the input, behind a barrier of its own, and ends with one.
template <int C, int kKernelSize, int kDilation, class LoadInput, class Finish>
__device__ __forceinline__ void go_back(const Reach& call, const ReachRoom<C>& room,
                                        LoadInput load_input, Finish finish) {
  const int rows = 1 << call.log_height;
  const int lag = rows < call.height ? room.program->reached.halo : 0;
  WeightParts<kKernelSize> parts;
  for (int image = room.program->first; image < room.program->end; image += 1 << call.log_images)
    for (int top = 0; top < call.height + lag; top += rows) {
      if (top < call.height)
        pull<C, kKernelSize, kDilation, 1>(call, room, image, top, load_input, parts);
      __syncthreads();
      gather_rows<C>(call, room, at(room.program->reached, image, top - lag), top);
      __syncthreads();
      {
        const Tile reached = at(room.program->reached, image, top - lag);
        depthwise<C, kKernelSize, kDilation, 1, true>(room.tile, reached, reached.halo,
                                                      room.spatial, room.dz,
                                                      {-reached.top, call.height - reached.top});
        if (top + rows < call.height + lag) hand_over<C>(call, room, reached);
        finish(reached);
      }
    }
  write_weights<C>(call, room, parts);
}

}  // namespace da2s_fast::cell

// Through second layers of separable convolutions and ReLU to their inner norm, as `reach_inner` of
// kernels/cell/reach.py has it. A program has a row and a chunk of whole images.
#pragma once

#include "layer.cuh"

namespace da2s_fast::cell {

// What a layer hands back of a tile, through ReLU behind a norm; with sums of that norm.
template <int C>
__device__ __forceinline__ void finish_inner(const Reach& call, const ReachRoom<C>& room,
                                             const Tile& tile) {
  const int64_t* row = room.row;
  const int thread = this_thread(), c = thread % kQuads<C> * 4;
  float4 z[kPixels];
#pragma unroll
  for (int j = 0; j < kPixels; ++j) {
    const Pixel pixel = pixel_before<C>(room.program->end, j, tile, call);
    const float* from = call.z + row[kSource] + place_of(pixel, tile, call) * C + c;
    z[j] = *reinterpret_cast<const float4*>(from);
  }
  __syncthreads();
  float sums[4] = {}, products[4] = {};
#pragma unroll
  for (int j = 0; j < kPixels; ++j) {
    const Pixel pixel = pixel_before<C>(room.program->end, j, tile, call);
    if (!pixel.live) continue;
    const float4 v = quad_of(room.dz, thread, j);
    const float zs[4] = {z[j].x, z[j].y, z[j].z, z[j].w};
    float found[4] = {v.x, v.y, v.z, v.w};
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const float centred = zs[i] - room.norm[c + i];
      if (centred * room.norm[C + c + i] <= 0) found[i] = 0;
      sums[i] += found[i];
      products[i] += found[i] * centred;
    }
    store(call.gradients + row[kInnerGradient] + pixel.at * C + c,
          make_float4(found[0], found[1], found[2], found[3]));
  }
  add_lanes<C>(sums, products, room.partial);
  __syncthreads();
  add_warps<C>(room);
}

template <int C, int kKernelSize>
__device__ __forceinline__ void reach_as(const Reach& call, const ReachRoom<C>& room) {
  const Input input{call.height, call.width, 1};
  go_back<C, kKernelSize, 1>(
      call, room,
      [&](const Tile& tile) {
        load_tile<C, 4>(room.tile, tile, input, call.z + room.row[kSource], C, room.program->end,
                        Normalized{room.norm, room.norm + C});
      },
      [&](const Tile& tile) { finish_inner<C>(call, room, tile); });
  if (threadIdx.x < C) write_sums<C>(call, room, room.row[kInnerSums], threadIdx.x, C);
}

// kMost: the largest kernel among the rows; those of 7x7 take the registers of two programs.
template <int C, int kMost>
__device__ __forceinline__ void reach_inner(const Reach& call, const ReachRoom<C>& room,
                                            const int64_t* row) {
  for (int i = threadIdx.x; i < 2 * C; i += kThreads) room.sums[i] = 0;
  load_row<C>(room, row);
  load_layer<C>(call, room, call.inner_halo);
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

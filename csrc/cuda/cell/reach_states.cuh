// Through first layers of separable convolutions and ReLU, and through what has no layers, to the
// states before a node, as `reach_states` of kernels/cell/reach.py has it; dense convolutions, and
// at stride 2 what goes past the candidates, are Triton's.
//
// A program has a group of rows that read one state, and a chunk of whole images. It takes the
// layers one after the other through the passes of reach.cuh, all else through collect.cuh, and
// adds what each hands the state to the state's gradient in global memory, which nobody else
// touches meanwhile in these images.
#pragma once

#include "collect.cuh"

namespace da2s_fast::cell {

// Through ReLU to 4 channels of a pixel of the state, which is at `source` among the states.
__device__ __forceinline__ void add_behind_relu(const Reach& call, const int64_t* group,
                                                int64_t source, int64_t pixel, int c, float4 v) {
  const int64_t at = pixel * call.pitch;
  const float4 x = *reinterpret_cast<const float4*>(call.states + source + at + c);
  const float4 found =
      make_float4(x.x <= 0 ? 0 : v.x, x.y <= 0 ? 0 : v.y, x.z <= 0 ? 0 : v.z, x.w <= 0 ? 0 : v.w);
  add_to_state(call.gradients + group[kGroupGradient] + at, c, call.pitch,
               static_cast<int>(group[kGroupShuffled]), found);
}

// Fills a tile with the state behind ReLU.
template <int C>
struct LoadState {
  const Reach& call;
  const ReachRoom<C>& room;
  __device__ void operator()(const Tile& tile, float* to) const {
    load_tile<C>(to, tile, input_of(room.row), call.states + room.row[kSource], call.pitch,
                 room.program->end, Rectified{});
  }
};

// A layer with stride 1.
template <int C, int kKernelSize, int kDilation>
__device__ __forceinline__ void reach_alike(const Reach& call, const ReachRoom<C>& room,
                                            const int64_t* group) {
  const int64_t source = room.row[kSource];
  const int c = threadIdx.x % kQuads<C> * 4;
  const auto finish = [&](const Tile& tile) {
#pragma unroll 1
    for (int j = 0; j < kPixels; ++j) {
      const Pixel pixel = pixel_before<C>(room.program->end, j, tile, call);
      if (!pixel.live) continue;
      const float4 v = reinterpret_cast<const float4*>(room.between)[quad_of(j)];
      add_behind_relu(call, group, source, pixel.at, c, v);
    }
  };
  go_back<C, kKernelSize, kDilation>(call, room, LoadState<C>{call, room}, finish);
}

// The chunk's second pass at stride 2: pixels of the input collect from the outputs whose windows
// hold them.
template <int C>
__device__ __forceinline__ void gather_strided(const Reach& call, const ReachRoom<C>& room,
                                               const int64_t* group, const Tile& start) {
  const int64_t *row = room.row, source = row[kSource];
  const Input input{call.height, call.width, 1};
  const int padding = static_cast<int>(row[kPadding]), c = threadIdx.x % kQuads<C> * 4;
  const int kernel = static_cast<int>(row[kKernel]), dilation = static_cast<int>(row[kDilation]);
  const int in_height = static_cast<int>(row[kHeight]), in_width = static_cast<int>(row[kWidth]);
  for_tiles(start, call.height, *room.program, [&](const Tile& tile) {
    load_tile<C>(room.kept, tile, input, call.gradients + row[kReached], C, room.program->end,
                 Plain{});
    __syncthreads();
    const auto gather = [&](int image, int y, int x) {
      float4 sum = make_float4(0, 0, 0, 0);
      for (int ky = (y + padding) % 2; ky < kernel; ky += dilation == 1 ? 2 : 1) {
        const int up = y + padding - ky * dilation;
        if (up % 2 != 0) break;  // no window at this row: with dilation 2, at none of them
        const int from = image * tile.rows + (up >> 1) - tile.top + tile.halo;
        for (int kx = (x + padding) % 2; kx < kernel; kx += dilation == 1 ? 2 : 1) {
          const int left = x + padding - kx * dilation;
          if (left % 2 != 0) break;
          const int at = from * tile.columns + (left >> 1) + tile.halo;
          const float4 v = reinterpret_cast<const float4*>(room.kept)[at * kQuads<C> + c / 4];
          const float4 w =
              *reinterpret_cast<const float4*>(room.spatial + (ky * kernel + kx) * C + c);
          sum = make_float4(sum.x + v.x * w.x, sum.y + v.y * w.y, sum.z + v.z * w.z,
                            sum.w + v.w * w.w);
        }
      }
      const int64_t pixel = (int64_t(tile.image + image) * in_height + y) * in_width + x;
      add_behind_relu(call, group, source, pixel, c, sum);
    };
    for_input_pixels<C>(tile, 2, in_height, in_width, room.program->end, gather);
    // The next tile comes.
    __syncthreads();
  });
}

// A layer with stride 2, in two passes: what it is reached by goes through a room in global memory.
template <int C, int kKernelSize, int kDilation>
__device__ __forceinline__ void reach_strided(const Reach& call, const ReachRoom<C>& room,
                                              const int64_t* group) {
  const int c = threadIdx.x % kQuads<C> * 4;
  WeightGradients<kKernelSize> found;
  const Tile start = tile_of(C, call.log_width, call.log_height, call.log_images, call.halo, 1);
  for_tiles(start, call.height, *room.program, [&](const Tile& tile) {
    pull<C, kKernelSize, kDilation, 2>(call, room, tile.image, tile.top, LoadState<C>{call, room},
                                       found);
    const Kept kept = room.kept_rows();
#pragma unroll 1
    for (int j = 0; j < kPixels; ++j) {
      const Pixel pixel = pixel_before<C>(room.program->end, j, tile, call);
      if (!pixel.live) continue;
      const float* from = kept.pixel<C>(kept.row_of(pixel.image, pixel.y), pixel.x) + c;
      store(call.gradients + room.row[kReached] + pixel.at * C + c,
            *reinterpret_cast<const float4*>(from));
    }
    // The next tile comes.
    __syncthreads();
  });
  write_weights<C>(call, room, found);
  __syncthreads();
  gather_strided<C>(call, room, group, start);
}

template <int C, int kStride, int kKernelSize, int kDilation>
__device__ __forceinline__ void reach_state_as(const Reach& call, const ReachRoom<C>& room,
                                               const int64_t* group) {
  if (kStride == 1)
    reach_alike<C, kKernelSize, kDilation>(call, room, group);
  else
    reach_strided<C, kKernelSize, kDilation>(call, room, group);
}

template <int C, int kStride, int kMost>
__device__ __forceinline__ void reach_state(const Reach& call, const ReachRoom<C>& room,
                                            const int64_t* group) {
  const int64_t kernel = room.row[kKernel];
  if (room.row[kDilation] == 1) {
    if (kernel == 3) reach_state_as<C, kStride, 3, 1>(call, room, group);
    if (kernel == 5) reach_state_as<C, kStride, 5, 1>(call, room, group);
    if (kMost == 7 && kernel == 7) reach_state_as<C, kStride, kMost, 1>(call, room, group);
  } else {
    if (kernel == 3) reach_state_as<C, kStride, 3, 2>(call, room, group);
    if (kernel == 5) reach_state_as<C, kStride, 5, 2>(call, room, group);
  }
}

// kMost: as for `reach_inner`.
template <int C, int kMost>
__device__ __forceinline__ void reach_states(const Reach& call, const ReachRoom<C>& room,
                                             const int64_t* from) {
  const int64_t* group = room.group;
  if (threadIdx.x < kGroup) room.group[threadIdx.x] = from[threadIdx.x];
  __syncthreads();
  for (int layer = 0; layer < group[kGroupLength]; ++layer) {
    // The layer before reads nothing of its row behind its last barrier.
    load_row<C>(room, call.layers + (group[kGroupFirst] + layer) * kLayer);
    if (room.row[kKind] != kSeparable) {
      collect<C>(call, room, group);
      continue;
    }
    load_layer<C>(call, room, call.halo, static_cast<int>(room.row[kStride]));
    __syncthreads();
    if (room.row[kStride] == 1)
      reach_state<C, 1, kMost>(call, room, group);
    else
      reach_state<C, 2, kMost>(call, room, group);
  }
}

}  // namespace da2s_fast::cell

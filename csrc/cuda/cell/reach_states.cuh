// Through first layers of separable convolutions and ReLU, and through what has no layers, to the
// states before a node, as `reach_states` of kernels/cell/reach.py has it; dense convolutions other
// than FactorizedReduce's, and at stride 2 what goes past the candidates, are Triton's.
//
// A program has a group of rows that read one state, and a chunk of whole images. It takes the
// layers one after the other through layer.cuh, what has none through collect.cuh, FactorizedReduce
// last, through halves.cuh, and adds what each hands the state to the state's gradient in global
// memory, which nobody else touches meanwhile in these images.
#pragma once

#include "collect.cuh"
#include "halves.cuh"
#include "layer.cuh"

namespace da2s_fast::cell {

// What passes a ReLU in front of which there was x.
__device__ __forceinline__ float4 behind_relu(float4 x, float4 v) {
  return make_float4(x.x <= 0 ? 0 : v.x, x.y <= 0 ? 0 : v.y, x.z <= 0 ? 0 : v.z,
                     x.w <= 0 ? 0 : v.w);
}

// What a layer at stride 1 hands a tile of the state.
template <int C>
__device__ __forceinline__ void finish_state(const Reach& call, const ReachRoom<C>& room,
                                             const int64_t* group, const Tile& tile) {
  const int thread = this_thread(), c = thread % kQuads<C> * 4;
  const StateChannels own(c, call.pitch, static_cast<int>(group[kGroupShuffled]));
  const float* state = call.states + room.row[kSource];
  float* gradient = call.gradients + group[kGroupGradient];
  // More at a time would take the registers of the weights' gradients.
  constexpr int kAtOnce = kPixels / 2;
#pragma unroll
  for (int first = 0; first < kPixels; first += kAtOnce) {
    float4 x[kAtOnce], before[kAtOnce];
#pragma unroll
    for (int j = 0; j < kAtOnce; ++j) {
      const Pixel pixel = pixel_before<C>(room.program->end, first + j, tile, call);
      const int64_t at = place_of(pixel, tile, call) * call.pitch;
      x[j] = *reinterpret_cast<const float4*>(state + at + c);
      // Others write gradients of pixels that are theirs meanwhile.
      before[j] = own.of(pixel.live ? gradient + at : state + at);
    }
    if (first == 0) __syncthreads();
#pragma unroll
    for (int j = 0; j < kAtOnce; ++j) {
      const Pixel pixel = pixel_before<C>(room.program->end, first + j, tile, call);
      if (!pixel.live) continue;
      const float4 v = quad_of(room.dz, thread, first + j);
      own.put(gradient + pixel.at * call.pitch, before[j], behind_relu(x[j], v));
    }
  }
  // The next tile comes.
  __syncthreads();
}

// Pixels of the input of a layer at stride 2 collect from the outputs whose windows hold them.
template <int C>
__device__ __forceinline__ void gather_strided(const Reach& call, const ReachRoom<C>& room,
                                               const int64_t* group, const Tile& start) {
  const int64_t* row = room.row;
  const Input input{call.height, call.width, 1};
  const int padding = static_cast<int>(row[kPadding]), c = threadIdx.x % kQuads<C> * 4;
  const int kernel = static_cast<int>(row[kKernel]), dilation = static_cast<int>(row[kDilation]);
  const int in_height = static_cast<int>(row[kHeight]), in_width = static_cast<int>(row[kWidth]);
  const StateChannels own(c, call.pitch, static_cast<int>(group[kGroupShuffled]));
  const float* state = call.states + row[kSource] + c;
  float* gradient = call.gradients + group[kGroupGradient];
  for_tiles(start, call.height, *room.program, [&](const Tile& tile) {
    load_tile<C, 4>(room.tile, tile, input, call.gradients + row[kReached], C, room.program->end,
                    Plain{});
    __syncthreads();
    const auto gather = [&](int image, int y, int x) {
      const int64_t pixel = (int64_t(tile.image + image) * in_height + y) * in_width + x;
      // On their way meanwhile.
      const float4 input = *reinterpret_cast<const float4*>(state + pixel * call.pitch);
      const float4 before = own.of(gradient + pixel * call.pitch);
      float4 sum = make_float4(0, 0, 0, 0);
      for (int ky = (y + padding) % 2; ky < kernel; ky += dilation == 1 ? 2 : 1) {
        const int up = y + padding - ky * dilation;
        if (up % 2 != 0) break;  // no window at this row: with dilation 2, at none of them
        const int from = image * tile.rows + (up >> 1) - tile.top + tile.halo;
        for (int kx = (x + padding) % 2; kx < kernel; kx += dilation == 1 ? 2 : 1) {
          const int left = x + padding - kx * dilation;
          if (left % 2 != 0) break;
          const int at = from * tile.columns + (left >> 1) + tile.halo;
          const float4 v = reinterpret_cast<const float4*>(room.tile)[at * kQuads<C> + c / 4];
          const float4 w =
              *reinterpret_cast<const float4*>(room.spatial + (ky * kernel + kx) * C + c);
          sum = make_float4(sum.x + v.x * w.x, sum.y + v.y * w.y, sum.z + v.z * w.z,
                            sum.w + v.w * w.w);
        }
      }
      own.put(gradient + pixel * call.pitch, before, behind_relu(input, sum));
    };
    for_input_pixels<C>(tile, 2, in_height, in_width, room.program->end, gather);
    // The next tile comes.
    __syncthreads();
  });
}

// A layer at stride 2 in two passes over the chunk: what its depthwise results were reached by goes
// through a room in global memory.
template <int C, int kKernelSize, int kDilation, class LoadInput>
__device__ __forceinline__ void reach_strided(const Reach& call, const ReachRoom<C>& room,
                                              const int64_t* group, LoadInput load_input) {
  WeightParts<kKernelSize> parts;
  for_tiles(room.program->input, call.height, *room.program, [&](const Tile& start) {
    pull<C, kKernelSize, kDilation, 2>(call, room, start.image, start.top, load_input, parts);
    const Tile tile = at(room.program->input, start.image, start.top);
    const int thread = this_thread(), c = thread % kQuads<C> * 4;
#pragma unroll 1
    for (int j = 0; j < kPixels; ++j) {
      const Pixel pixel = pixel_before<C>(room.program->end, j, tile, call);
      if (pixel.live)
        store(call.gradients + room.row[kReached] + pixel.at * C + c,
              quad_of(room.between, thread, j));
    }
    // The next tile comes.
    __syncthreads();
  });
  write_weights<C>(call, room, parts);
  // Comes to where gradients of weights were added up.
  __syncthreads();
  load_spatial<C>(call, room);
  const Tile tile = tile_of(C, call.log_width, call.log_height, call.log_images, call.halo, 1);
  gather_strided<C>(call, room, group, tile);
}

template <int C, int kKernelSize, int kDilation, int kStride>
__device__ __forceinline__ void reach_state_as(const Reach& call, const ReachRoom<C>& room,
                                               const int64_t* group) {
  const auto load_input = [&](const Tile& tile) {
    load_tile<C, 4>(room.tile, tile, input_of(room.row), call.states + room.row[kSource],
                    call.pitch, room.program->end, Rectified{});
  };
  if constexpr (kStride == 1)
    go_back<C, kKernelSize, kDilation>(call, room, load_input, [&](const Tile& tile) {
      finish_state<C>(call, room, group, tile);
    });
  else
    reach_strided<C, kKernelSize, kDilation>(call, room, group, load_input);
}

template <int C, int kStride, int kMost>
__device__ __forceinline__ void reach_state(const Reach& call, const ReachRoom<C>& room,
                                            const int64_t* group) {
  const int64_t kernel = room.row[kKernel];
  if (room.row[kDilation] == 1) {
    if (kernel == 3) reach_state_as<C, 3, 1, kStride>(call, room, group);
    if (kernel == 5) reach_state_as<C, 5, 1, kStride>(call, room, group);
    if (kMost == 7 && kernel == 7) reach_state_as<C, kMost, 1, kStride>(call, room, group);
  } else {
    if (kernel == 3) reach_state_as<C, 3, 2, kStride>(call, room, group);
    if (kernel == 5) reach_state_as<C, 5, 2, kStride>(call, room, group);
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
    if (C % 8 == 0 && room.row[kKind] == kDense) {
      // The last two rows of a group: behind the loop, this takes fewer of its registers.
      reach_halves<C>(call, room, group);
      return;
    }
    if (room.row[kKind] != kSeparable) {
      collect<C>(call, room, group);
      continue;
    }
    load_layer<C>(call, room, call.halo);
    __syncthreads();
    if (room.row[kStride] == 1)
      reach_state<C, 1, kMost>(call, room, group);
    else
      reach_state<C, 2, kMost>(call, room, group);
  }
}

}  // namespace da2s_fast::cell

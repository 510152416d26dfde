// Through first layers of separable convolutions and ReLU to the states before a node, as
// `reach_states` of kernels/cell/reach.py has it: layers of stride 1, the others are Triton's.
//
// Grid (chunks of whole images, groups of layers that read one state). A program takes the layers
// of its group one after the other through the passes of reach.cuh, and adds what each hands the
// state to the state's gradient in global memory, which nobody else touches in these images.
#pragma once

#include "reach.cuh"

namespace da2s_fast::cell {

// What a launch is given; tests/gpu/ptx/cuda.py packs the same fields.
struct ReachStates {
  const int64_t* table;   // of `Group`
  const int64_t* layers;  // of `Layer`, the groups' rows
  const float* states;
  const float* z;
  float* gradients;  // all of them
  const float* weights;
  float* weight_gradients;  // (chunks, weight_count), or none
  const float* p_weights;   // (edges, operations)
  const float* g_weights;   // (edges,), or none
  const float* statistics;
  const double* sums;  // of gradients, partial
  int64_t pixels;
  int64_t weight_count;
  double eps;
  int height;
  int width;
  int images;      // of a chunk
  int operations;  // columns of p
  int pitch;       // channels of a state
  int halo;        // pixels around a tile
  int taps;        // most of a depthwise convolution
  int log_width;   // extents of a tile
  int log_height;
  int log_images;
};

// Add 4 channels to a pixel of the state's gradient. Where that has the order of channels before
// the shuffle of K parts, channel c is the (c / K)th of part c % K.
__device__ inline void add_to_state(float* gradient, int c, int pitch, int shuffled,
                                    const float (&found)[4]) {
  if (shuffled == 1) {
    float4* to = reinterpret_cast<float4*>(gradient + c);
    *to = make_float4(to->x + found[0], to->y + found[1], to->z + found[2], to->w + found[3]);
    return;
  }
#pragma unroll
  for (int i = 0; i < 4; ++i)
    gradient[(c + i) % shuffled * (pitch / shuffled) + (c + i) / shuffled] += found[i];
}

// The chunk's second pass.
template <int C, int kKernelSize, int kDilation>
__device__ void gather_state(const ReachStates& call, const ReachRoom<C>& room,
                             const int64_t* group, const Tile& start, const Images& images) {
  const int64_t* row = room.row;
  const Input input{call.height, call.width, 1};
  const int64_t size = int64_t(call.height) * call.width;
  const int padding = static_cast<int>(row[kPadding]), c = threadIdx.x % kQuads<C> * 4;
  const int shuffled = static_cast<int>(group[kGroupShuffled]);
  load_spatial<C>(call.weights + row[kSpatial], kKernelSize * kKernelSize, true, room.spatial);
  for_tiles(start, call.height, images.first, images.end, [&](const Tile& tile) {
    load_tile<C>(room.tile, tile, input, call.gradients + row[kReached], C, images.end, Plain{});
    __syncthreads();
    depthwise<C, kKernelSize, kDilation, 1>(room.tile, tile, padding, room.spatial, room.between);
    __syncthreads();
#pragma unroll
    for (int j = 0; j < kPixels; ++j) {
      const Pixel pixel =
          pixel_of<C>(j, tile, call.height, call.width, images.first * size, images.end * size);
      if (!pixel.live) continue;
      const int64_t at = pixel.at * call.pitch;
      const float4 x = *reinterpret_cast<const float4*>(call.states + row[kSource] + at + c);
      const float4 v =
          reinterpret_cast<const float4*>(room.between)[index_of<C>(j) * kQuads<C> + c / 4];
      const float found[4] = {x.x <= 0 ? 0 : v.x, x.y <= 0 ? 0 : v.y, x.z <= 0 ? 0 : v.z,
                              x.w <= 0 ? 0 : v.w};
      add_to_state(call.gradients + group[kGroupGradient] + at, c, call.pitch, shuffled, found);
    }
  });
}

template <int C, int kKernelSize, int kDilation>
__device__ void reach_state_as(const ReachStates& call, const ReachRoom<C>& room,
                               const int64_t* group) {
  const Images images = images_of(call);
  const Input input{call.height, call.width, 1};
  const Tile tile = tile_of(call.log_width, call.log_height, call.log_images, call.halo, 1);
  pull<C, kKernelSize, kDilation>(call, room, tile, images.first, images.end, [&](const Tile& at) {
    load_tile<C>(room.tile, at, input, call.states + room.row[kSource], call.pitch, images.end,
                 Rectified{});
  });
  gather_state<C, kKernelSize, kDilation>(call, room, group, tile, images);
}

// kMost: as for `reach_inner`.
template <int C, int kMost>
__device__ void reach_states(const ReachStates& call, char* shared) {
  const ReachRoom<C> room(shared, call.taps);
  const int64_t* group = call.table + blockIdx.y * kGroup;
  for (int64_t layer = 0; layer < group[kGroupLength]; ++layer) {
    // The layer before is done with its row and its weights.
    __syncthreads();
    for (int i = threadIdx.x; i < kLayer; i += kThreads)
      room.row[i] = call.layers[(group[kGroupFirst] + layer) * kLayer + i];
    __syncthreads();
    coefficients<C>(call, room.row, room.coefficients, reinterpret_cast<double*>(room.dz));
    __syncthreads();
    const int64_t kernel = room.row[kKernel];
    if (room.row[kDilation] == 1) {
      if (kernel == 3) reach_state_as<C, 3, 1>(call, room, group);
      if (kernel == 5) reach_state_as<C, 5, 1>(call, room, group);
      if (kMost == 7 && kernel == 7) reach_state_as<C, kMost, 1>(call, room, group);
    } else {
      if (kernel == 3) reach_state_as<C, 3, 2>(call, room, group);
      if (kernel == 5) reach_state_as<C, 5, 2>(call, room, group);
    }
  }
}

}  // namespace da2s_fast::cell

// What was reached before a layer's product, kept in shared memory until it has gone back through
// the depthwise convolution.
//
// A tile's rows of it come below those of the tiles above that windows still see: as many as twice
// the padding. So what is complete lags behind what comes, by the padding; where tiles have all
// rows of their images nothing lags. Rows and columns outside of an image are zeros.
#pragma once

#include "depthwise.cuh"

namespace da2s_fast::cell {

struct Kept {
  float* rows;  // of `tile`, with its halo
  Tile tile;    // of the input's stride, 1; its halo is the layer's padding
  int lag;      // rows

  // Row of an output pixel of the tile that comes.
  __device__ int row_of(int image, int y) const { return image * tile.rows + y + tile.halo + lag; }
  // How many lines there may be that end in the image, if the first is `lag` above `top`.
  __device__ int lines(int top, int height) const {
    return lag > 0 ? height + lag - top : 1 << (tile.log_height + tile.log_images);
  }
  // What comes behind: the layer's input.
  template <int C>
  __device__ float* behind() const {
    return rows + input_pixels(tile) * C;
  }
  // First channel of a pixel of such a row.
  template <int C>
  __device__ float* pixel(int row, int x) const {
    return rows + (row * tile.columns + tile.halo + x) * C;
  }
};

template <int C>
__device__ Kept kept_of(float* rows, const Tile& tile, int padding, int height) {
  const int lag = height > 1 << tile.log_height ? padding : 0;
  return {rows, tile_of(C, tile.log_width, tile.log_height, tile.log_images, padding, 1), lag};
}

// All zeros, for new images: what is in none of them stays so.
template <int C>
__device__ void clear(const Kept& kept) {
  for (int i = threadIdx.x; i < input_pixels(kept.tile) * kQuads<C>; i += kThreads)
    reinterpret_cast<float4*>(kept.rows)[i] = make_float4(0, 0, 0, 0);
}

// Before a tile's rows come: those of the tile before move up, as far as they are still seen. Where
// windows see more than a tile, several move in turn.
template <int C>
__device__ void move_up(const Kept& kept) {
  const int row = kept.tile.columns * kQuads<C>, height = 1 << kept.tile.log_height;
  float4* to = reinterpret_cast<float4*>(kept.rows) + kept.tile.halo * kQuads<C>;
  for (int first = 0; first < 2 * kept.lag; first += height) {
    const int end = first + height < 2 * kept.lag ? first + height : 2 * kept.lag;
    if (first > 0) __syncthreads();
    for (int i = first * row + threadIdx.x; i < end * row; i += kThreads)
      to[i] = to[i + height * row];
  }
}

// Rows of a tile, zeros where there is no pixel.
template <int C>
__device__ __forceinline__ void keep(const Kept& kept, const Tile& tile, int height, int width,
                                     int end, const float (&values)[kPixels][4]) {
#pragma unroll
  for (int j = 0; j < kPixels; ++j) {
    const int index = index_of<C>(j), line = index >> tile.log_width;
    if (index >= pixels_of(tile)) continue;
    const int x = index & ((1 << tile.log_width) - 1), image = line >> tile.log_height;
    const int y = line & ((1 << tile.log_height) - 1);
    const bool live = x < width && tile.top + y < height && tile.image + image < end;
    float4* to = reinterpret_cast<float4*>(kept.template pixel<C>(kept.row_of(image, y), x));
    to[threadIdx.x % kQuads<C>] =
        live ? make_float4(values[j][0], values[j][1], values[j][2], values[j][3])
             : make_float4(0, 0, 0, 0);
  }
}

}  // namespace da2s_fast::cell

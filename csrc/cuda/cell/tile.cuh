// A tile: the output pixels that a program works on at a time, and the input around them in shared
// memory.
//
// Its extents are powers of two: `images` of `height` rows of `width` pixels, at most 16 numbers of
// z for every thread. Rows are whole (width >= the image's), and a tile has several images only
// where it holds all their rows, so that the pixels of a tile that there are follow one another in
// memory.
#pragma once

#include "table.cuh"

namespace da2s_fast::cell {

constexpr int kThreads = 256;

// Who a thread is, asked anew: what follows from it would else be kept in registers from phase to
// phase.
__device__ __forceinline__ int this_thread() {
#ifdef __CUDACC__
  int thread;
  asm volatile("mov.u32 %0, %%tid.x;" : "=r"(thread));
  __builtin_assume(thread >= 0 && thread < kThreads);
  return thread;
#else
  return static_cast<int>(threadIdx.x);
#endif
}

constexpr int kWarps = kThreads / 32;
constexpr int kPixels = 4;  // of a thread, 4 channels each
constexpr int kRun = 8;     // neighbouring outputs of a depthwise convolution in one thread

template <int C>
constexpr int kQuads = C / 4;
template <int C>
constexpr int kTilePixels = kPixels * kThreads / kQuads<C>;

// Hands out a program's shared memory from its start: what needs the largest alignment comes first.
struct Shared {
  char* next;

  template <class T>
  __device__ T* take(int64_t numbers) {
    T* taken = reinterpret_cast<T*>(next);
    next += numbers * sizeof(T);
    return taken;
  }
};

// The input of the layers of a pack, an image after the other.
struct Input {
  int height;
  int width;
  int stride;
};

// What a row of the table says of its input.
__device__ inline Input input_of(const int64_t* row) {
  return {static_cast<int>(row[kHeight]), static_cast<int>(row[kWidth]),
          static_cast<int>(row[kStride])};
}

// Where pixel `at` of a node's images is among those of an input of `stride` times as many rows and
// columns.
__device__ inline int64_t strided_pixel(int at, int height, int width, const Input& input) {
  const int line = at / width, image = line / height;
  const int y = (line - image * height) * input.stride, x = (at - line * width) * input.stride;
  return (int64_t(image) * input.height + y) * input.width + x;
}

struct Tile {
  int log_width;
  int log_height;
  int log_images;
  int halo;     // pixels around, as many as the widest window needs
  int rows;     // of the input, with the halo
  int columns;  // from row to row, whose halos share the zeros between them
  int image;    // first image
  int top;      // first row of the output
};

__device__ inline Tile at(Tile tile, int image, int top) {
  tile.image = image, tile.top = top;
  return tile;
}

// As many columns as a row has, and a halo; where a warp has several rows, an odd number, so that
// neighbours begin in different banks.
__device__ inline Tile tile_of(int channels, int log_width, int log_height, int log_images,
                               int halo, int stride) {
  Tile tile{};
  tile.log_width = log_width;
  tile.log_height = log_height;
  tile.log_images = log_images;
  tile.halo = halo;
  tile.rows = ((1 << log_height) - 1) * stride + 1 + 2 * halo;
  tile.columns = ((stride << log_width) + halo) | (channels < 32 ? 1 : 0);
  return tile;
}

// Pixels of the input, and the last row's halo behind them.
__device__ inline int input_pixels(const Tile& tile) {
  return (tile.rows << tile.log_images) * tile.columns + tile.halo;
}

__device__ inline int pixels_of(const Tile& tile) {
  return 1 << (tile.log_width + tile.log_height + tile.log_images);
}

// What is done to an input on its way into shared memory.
struct Plain {
  __device__ float4 operator()(float4 v, int) const { return v; }
};

// NaN stays NaN.
__device__ inline float rectified(float v) {
#ifdef __CUDACC__
  float greater;
  asm("max.NaN.f32 %0, %1, 0f00000000;" : "=f"(greater) : "f"(v));
  return greater;
#else
  return v <= 0 ? 0 : v;
#endif
}
__device__ inline float4 rectified(float4 v) {
  return make_float4(rectified(v.x), rectified(v.y), rectified(v.z), rectified(v.w));
}

struct Rectified {
  __device__ float4 operator()(float4 v, int) const { return rectified(v); }
};

// A norm, then ReLU.
struct Normalized {
  const float* mean;
  const float* rstd;
  __device__ float4 operator()(float4 v, int c) const {
    return rectified(make_float4((v.x - mean[c]) * rstd[c], (v.y - mean[c + 1]) * rstd[c + 1],
                                 (v.z - mean[c + 2]) * rstd[c + 2],
                                 (v.w - mean[c + 3]) * rstd[c + 3]));
  }
};

// A row of pixels of an image.
struct Line {
  int image;
  int y;
  int64_t first;  // of its pixels, among those of all images
};

// Fill a tile with its halo by `row(line)(x, c)`: 4 channels from c on of a pixel; zeros outside of
// images. A warp takes a row after the other, first what is inside of the image, then up to the
// halo of the next; lanes keep their channels: per pixel little is left to be worked out. A thread
// waits for kAtOnce values at a time, as many as it has registers for.
template <int C, int kAtOnce = 1, class Row>
__device__ __forceinline__ void fill_tile(float* shared, const Tile& tile, int height, int width,
                                          int stride, int images, Row row) {
  constexpr int kStep = 32 / kQuads<C>;  // pixels that a warp takes at a time
  const int lane = threadIdx.x % 32, c = lane % kQuads<C> * 4;
  const int top = tile.top * stride - tile.halo, bottom = top + tile.rows;
  int n = tile.image, y = top + threadIdx.x / 32;
#pragma unroll 1
  for (int i = threadIdx.x; i < tile.halo * kQuads<C>; i += kThreads)
    reinterpret_cast<float4*>(shared)[i] = make_float4(0, 0, 0, 0);
  for (int line = threadIdx.x / 32; line < tile.rows << tile.log_images;
       line += kWarps, y += kWarps) {
    for (; y >= bottom; y -= tile.rows) ++n;
    const int inside = y >= 0 && y < height && n < images ? width : 0;
    const auto value = row(Line{n, y, (int64_t(n) * height + y) * width});
    float4* to =
        reinterpret_cast<float4*>(shared) + (line * tile.columns + tile.halo) * kQuads<C> + lane;
    float4* behind = to + inside * kQuads<C>;
#pragma unroll(kAtOnce)
    for (int x = lane / kQuads<C>; x < inside; x += kStep, to += 32) *to = value(x, c);
#pragma unroll 1
    for (int x = inside + lane / kQuads<C>; x < tile.columns; x += kStep, behind += 32)
      *behind = make_float4(0, 0, 0, 0);
  }
}

// Likewise from memory, `pitch` numbers a pixel.
template <int C, int kAtOnce = 1, class Change>
__device__ __forceinline__ void load_tile(float* shared, const Tile& tile, const Input& input,
                                          const float* source, int pitch, int images,
                                          Change change) {
  fill_tile<C, kAtOnce>(shared, tile, input.height, input.width, input.stride, images,
                        [&](const Line& line) {
                          const float* row = source + line.first * pitch;
                          return [=](int x, int c) {
                            const float* from = row + c + int64_t(x) * pitch;
                            return change(*reinterpret_cast<const float4*>(from), c);
                          };
                        });
}

// ReLU of what lies in shared memory, for the layers behind the pools.
template <int C>
__device__ void rectify_tile(float* shared, const Tile& tile) {
  const int numbers = input_pixels(tile) * kQuads<C>;
  for (int i = threadIdx.x; i < numbers; i += kThreads)
    reinterpret_cast<float4*>(shared)[i] = rectified(reinterpret_cast<float4*>(shared)[i]);
}

// By 16 bytes; compilers take plain assignments apart.
__device__ inline void store(float* to, float4 v) { __stwb(reinterpret_cast<float4*>(to), v); }

// One of a thread's pixels.
struct Pixel {
  int image;  // of the tile
  int y;      // of the tile
  int x;
  int64_t at;  // index in the output
  bool live;   // it is in the tile, and not outside of an image
};

// Index in the tile of pixel j of a thread; a warp's lanes have neighbours.
template <int C>
__device__ int index_of(int j) {
  return threadIdx.x / kQuads<C> + j * (kThreads / kQuads<C>);
}

// The thread's 4 channels of pixel j in a room of (pixels, C).
__device__ __forceinline__ float4& quad_of(float* room, int thread, int j) {
  return reinterpret_cast<float4*>(room)[thread + j * kThreads];
}

template <int C>
__device__ Pixel pixel_of(int j, const Tile& tile, int height, int width) {
  const int index = index_of<C>(j);
  Pixel pixel;
  pixel.x = index & ((1 << tile.log_width) - 1);
  pixel.y = (index >> tile.log_width) & ((1 << tile.log_height) - 1);
  pixel.image = index >> (tile.log_width + tile.log_height);
  pixel.at = (int64_t(tile.image) * height + tile.top) * width +
             ((pixel.image * height + pixel.y) * width + pixel.x);
  // Of a tile that begins above the image, the first rows are outside as well.
  pixel.live = index < pixels_of(tile) && pixel.x < width &&
               static_cast<unsigned>(tile.top + pixel.y) < static_cast<unsigned>(height);
  return pixel;
}

}  // namespace da2s_fast::cell

// Products over channels: pointwise and dense convolutions and the gradient of their weights.
//
// Tiling. A tile of pixels by vectors of output lanes is summed in registers (16 x 1 or 8 x 2 of
// them where there are 32 registers, half as many where there are 16): for every input channel one
// read per vector of weights and one repeated read per pixel. The gradient of the weights is tiled
// likewise, with input channels in the place of pixels and pixels summed over.
#include "ask.h"
#include "group.h"

namespace da2s_fast::DA2S_ISA {
namespace {

constexpr int kTile = kManyRegisters ? 16 : 8;
// Not more than so many pixels are summed in single precision.
constexpr int64_t kLongestSum = 256;

template <int Images, int Pixels, int Vectors, class T>
DA2S_INLINE void tile(const Product& shape, Grid<const T> in, const T* weights, Grid<T> out,
                      bool add) {
  Vector<T> sums[Pixels][Vectors] = {};
  if (add)
    for (int i = 0; i < Pixels; ++i)
      for (int j = 0; j < Vectors; ++j) sums[i][j] = read(out.data + i * out.pixel + j * kLanes<T>);
  // One pointer for every four pixels: with one for each, most would lie in memory.
  constexpr int kPointers = (Pixels + 3) / 4;
  for (int64_t tap = 0; tap < shape.taps; ++tap) {
    const T* from[kPointers];
    for (int k = 0; k < kPointers; ++k) from[k] = in.data + shape.offsets[tap] + 4 * k * in.pixel;
#pragma GCC unroll 4
    for (int64_t c = 0; c < shape.in_channels; ++c) {
      Vector<T> values[Vectors];
      for (int j = 0; j < Vectors; ++j) values[j] = read(weights + j * kLanes<T>);
      for (int i = 0; i < Pixels; ++i) {
        const Vector<T> factor = repeat<Images>(from[i / 4] + i % 4 * in.pixel);
        for (int j = 0; j < Vectors; ++j) sums[i][j] += values[j] * factor;
      }
      weights += shape.out_lanes;
      for (int k = 0; k < kPointers; ++k) {
        from[k] += Images;
        asm("" : "+r"(from[k]));  // the compiler may not make more of them
      }
    }
  }
  for (int i = 0; i < Pixels; ++i)
    for (int j = 0; j < Vectors; ++j) write(out.data + i * out.pixel + j * kLanes<T>, sums[i][j]);
}

template <int Images, int Vectors, class T>
DA2S_INLINE void row_of(const Product& shape, Grid<const T> in, const T* weights, Grid<T> out,
                        int64_t width, bool add) {
  constexpr int kPixels = kTile / Vectors;
  ask(shape.ahead);
  int64_t x = 0;
  for (; x + kPixels <= width; x += kPixels)
    tile<Images, kPixels, Vectors>(shape, in.at(0, x), weights, out.at(0, x), add);
  for (; x + 4 <= width; x += 4)
    tile<Images, 4, Vectors>(shape, in.at(0, x), weights, out.at(0, x), add);
  for (; x < width; ++x) tile<Images, 1, Vectors>(shape, in.at(0, x), weights, out.at(0, x), add);
}

template <int Images, class T>
void product_of(const Product& shape, Grid<const T> in, const T* weights, Grid<T> out, Size size,
                bool add) {
  int64_t lane = 0;
  for (; lane + 2 * kLanes<T> <= shape.out_lanes; lane += 2 * kLanes<T>)
    for (int64_t y = 0; y < size.height; ++y) {
      Grid<T> to = out.at(y, 0);
      to.data += lane;
      row_of<Images, 2>(shape, in.at(y, 0), weights + lane, to, size.width, add);
    }
  if (lane == shape.out_lanes) return;
  for (int64_t y = 0; y < size.height; ++y) {
    Grid<T> to = out.at(y, 0);
    to.data += lane;
    row_of<Images, 1>(shape, in.at(y, 0), weights + lane, to, size.width, add);
  }
}

template <int Images, int Channels, int Vectors, class T>
DA2S_INLINE void weights_tile(const Product& shape, Grid<const T> in, Grid<const T> gradient,
                              Size size, double* sums) {
  const int64_t rows = size.width < kLongestSum ? kLongestSum / size.width : 1;
  for (int64_t first = 0; first < size.height; first += rows) {
    const int64_t last = first + rows < size.height ? first + rows : size.height;
    for (int64_t left = 0; left < size.width; left += kLongestSum) {
      const int64_t right = left + kLongestSum < size.width ? left + kLongestSum : size.width;
      Vector<T> found[Channels][Vectors] = {};
      for (int64_t y = first; y < last; ++y) {
        ask(shape.ahead);
        const T* from = in.at(y, left).data;
        const T* g = gradient.at(y, left).data;
        for (int64_t x = left; x < right; ++x) {
          Vector<T> values[Vectors];
          for (int j = 0; j < Vectors; ++j) values[j] = read(g + j * kLanes<T>);
          for (int i = 0; i < Channels; ++i) {
            const Vector<T> factor = repeat<Images>(from + i * Images);
            for (int j = 0; j < Vectors; ++j) found[i][j] += values[j] * factor;
          }
          from += in.pixel;
          g += gradient.pixel;
        }
      }
      for (int i = 0; i < Channels; ++i)
        for (int j = 0; j < Vectors; ++j)
          add_to<T>(sums + i * shape.out_lanes + j * kLanes<T>, found[i][j]);
    }
  }
}

template <int Images, int Vectors, class T>
void weights_column(const Product& shape, Grid<const T> in, Grid<const T> gradient, Size size,
                    double* sums) {
  constexpr int kChannels = kTile / Vectors;
  int64_t c = 0;
  const auto at = [&](int64_t channel) {
    Grid<const T> moved = in;
    moved.data += channel * Images;
    return moved;
  };
  for (; c + kChannels <= shape.in_channels; c += kChannels)
    weights_tile<Images, kChannels, Vectors>(shape, at(c), gradient, size,
                                             sums + c * shape.out_lanes);
  for (; c + 4 <= shape.in_channels; c += 4)
    weights_tile<Images, 4, Vectors>(shape, at(c), gradient, size, sums + c * shape.out_lanes);
  for (; c < shape.in_channels; ++c)
    weights_tile<Images, 1, Vectors>(shape, at(c), gradient, size, sums + c * shape.out_lanes);
}

template <int Images, class T>
void weights_of(const Product& shape, Grid<const T> in, Grid<const T> gradient, Size size,
                double* sums) {
  for (int64_t lane = 0; lane < shape.out_lanes;) {
    const bool two = lane + 2 * kLanes<T> <= shape.out_lanes;
    Grid<const T> g = gradient;
    g.data += lane;
    (two ? weights_column<Images, 2, T> : weights_column<Images, 1, T>)(shape, in, g, size,
                                                                        sums + lane);
    lane += (two ? 2 : 1) * kLanes<T>;
  }
}

}  // namespace

template <class T>
void product(const Product& shape, Grid<const T> in, const T* weights, Grid<T> out, Size out_size,
             bool add) {
  with_images<T>(shape.images, [&](auto images) {
    product_of<decltype(images)::value>(shape, in, weights, out, out_size, add);
  });
}

template <class T>
void product_weights(const Product& shape, Grid<const T> in, Grid<const T> gradient, Size size,
                     double* sums) {
  with_images<T>(shape.images, [&](auto images) {
    weights_of<decltype(images)::value>(shape, in, gradient, size, sums);
  });
}

#define DA2S_INSTANTIATE(T)                                                            \
  template void product(const Product&, Grid<const T>, const T*, Grid<T>, Size, bool); \
  template void product_weights(const Product&, Grid<const T>, Grid<const T>, Size, double*);
DA2S_INSTANTIATE(float)
DA2S_INSTANTIATE(double)

}  // namespace da2s_fast::DA2S_ISA

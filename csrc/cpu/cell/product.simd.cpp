// Products over channels: pointwise and dense convolutions and the gradient of their weights.
//
// Tiling. A tile of pixels by vectors of output lanes is summed in registers (16 x 1 or 8 x 2 of
// them where there are 32 registers, half as many where there are 16): for every input channel one
// read per vector of weights and one repeated read per pixel. A norm's moments are taken of a tile
// before it leaves the registers. The gradient of the weights is tiled likewise, with input
// channels in the place of pixels and pixels summed over.
#include "ask.h"
#include "group.h"

namespace da2s_fast::DA2S_ISA {
namespace {

constexpr int kTile = kManyRegisters ? 16 : 8;
// Not more than so many pixels are summed in single precision.
constexpr int64_t kLongestSum = 256;
// Rounding errors grow with the number of products that are added one after the other. Sums of more
// than kLong are made of chains of kChain.
constexpr int64_t kLong = 64, kChain = 32;

// What becomes of a product: it is written, or added to what is there.
template <int Vectors, class T>
struct Stored {
  bool add;

  DA2S_INLINE Vector<T> begin(const T* out) const { return add ? read(out) : Vector<T>{}; }
  DA2S_INLINE void take(T* out, int, const Vector<T>& sum) { write(out, sum); }
  DA2S_INLINE void pixels(int64_t) {}
  DA2S_INLINE void end() {}
};

// It is written, past the caches if asked, and its moments are summed.
template <int Vectors, class T>
struct Measured {
  bool streaming;
  double *sums, *squares;
  Vector<T> center[Vectors];
  Vector<T> sum[Vectors] = {}, square[Vectors] = {};
  int64_t count = 0;

  Measured(const ProductMoments<T>& to, int64_t lane)
      : streaming(to.streaming), sums(to.sums + lane), squares(to.squares + lane) {
    for (int j = 0; j < Vectors; ++j) center[j] = read(to.pivot + lane + j * kLanes<T>);
  }
  DA2S_INLINE Vector<T> begin(const T*) const { return Vector<T>{}; }
  DA2S_INLINE void take(T* out, int j, const Vector<T>& z) {
    streaming ? stream(out, z) : write(out, z);
    const Vector<T> apart = z - center[j];
    sum[j] += apart;
    square[j] += apart * apart;
  }
  // Not more than so many pixels are summed in single precision.
  DA2S_INLINE void pixels(int64_t more) {
    if ((count += more) >= kRun) end();
  }
  DA2S_INLINE void end() {
    for (int j = 0; j < Vectors; ++j) {
      add_to<T>(sums + j * kLanes<T>, sum[j]);
      add_to<T>(squares + j * kLanes<T>, square[j]);
      sum[j] = square[j] = Vector<T>{};
    }
    count = 0;
  }
};

// `Long`: of more than kLong products.
template <int Images, int Pixels, int Vectors, bool Long, class T, class Sink>
DA2S_INLINE void tile(const Product& shape, Grid<const T> in, const T* weights, Grid<T> out,
                      Sink& sink) {
  Vector<T> sums[Pixels][Vectors], total[Pixels][Vectors];
  const auto for_all = [](auto visit) {
    for (int i = 0; i < Pixels; ++i)
      for (int j = 0; j < Vectors; ++j) visit(i, j);
  };
  const auto place = [&](int i, int j) { return out.data + i * out.pixel + j * kLanes<T>; };
  for_all([&](int i, int j) {
    sums[i][j] = sink.begin(place(i, j));
    if constexpr (Long) total[i][j] = Vector<T>{};
  });
  // One pointer for every four pixels: with one for each, most would lie in memory.
  constexpr int kPointers = (Pixels + 3) / 4;
  int64_t chain = 0;
  for (int64_t tap = 0; tap < shape.taps; ++tap) {
    const T* from[kPointers];
    for (int k = 0; k < kPointers; ++k) from[k] = in.data + shape.offsets[tap] + 4 * k * in.pixel;
    for (int64_t c = 0; c < shape.in_channels;) {
      int64_t count = shape.in_channels - c;
      if constexpr (Long)
        if (count > kChain - chain) count = kChain - chain;
      c += count;
#pragma GCC unroll 4
      for (int64_t i = 0; i < count; ++i) {
        Vector<T> values[Vectors];
        for (int j = 0; j < Vectors; ++j) values[j] = read(weights + j * kLanes<T>);
        for (int pixel = 0; pixel < Pixels; ++pixel) {
          const Vector<T> factor = repeat<Images>(from[pixel / 4] + pixel % 4 * in.pixel);
          for (int j = 0; j < Vectors; ++j) sums[pixel][j] += values[j] * factor;
        }
        weights += shape.out_lanes;
        for (int k = 0; k < kPointers; ++k) step(from[k], Images);
      }
      if constexpr (Long)
        if ((chain += count) == kChain) {
          chain = 0;
          for_all([&](int i, int j) {
            total[i][j] += sums[i][j];
            sums[i][j] = Vector<T>{};
          });
        }
    }
  }
  for_all([&](int i, int j) {
    if constexpr (Long) sums[i][j] += total[i][j];
    sink.take(place(i, j), j, sums[i][j]);
  });
  sink.pixels(Pixels);
}

template <int Images, int Vectors, bool Long, class T, class Sink>
DA2S_INLINE void rows_of(const Product& shape, Grid<const T> in, const T* weights, Grid<T> out,
                         Size size, Sink sink) {
  constexpr int kPixels = kTile / Vectors;
  for (int64_t y = 0; y < size.height; ++y) {
    ask(shape.ahead);
    const Grid<const T> from = in.at(y, 0);
    const Grid<T> to = out.at(y, 0);
    int64_t x = 0;
    for (; x + kPixels <= size.width; x += kPixels)
      tile<Images, kPixels, Vectors, Long>(shape, from.at(0, x), weights, to.at(0, x), sink);
    for (; x + 4 <= size.width; x += 4)
      tile<Images, 4, Vectors, Long>(shape, from.at(0, x), weights, to.at(0, x), sink);
    for (; x < size.width; ++x)
      tile<Images, 1, Vectors, Long>(shape, from.at(0, x), weights, to.at(0, x), sink);
  }
  sink.end();
}

template <int Images, int Vectors, class T, class Sink>
DA2S_INLINE void product_rows(const Product& shape, Grid<const T> in, const T* weights, Grid<T> out,
                              Size size, Sink sink) {
  if (shape.taps * shape.in_channels > kLong)
    rows_of<Images, Vectors, true>(shape, in, weights, out, size, sink);
  else
    rows_of<Images, Vectors, false>(shape, in, weights, out, size, sink);
}

template <int Images, class T>
void product_of(const Product& shape, Grid<const T> in, const T* weights, Grid<T> out, Size size,
                bool add) {
  for_two_vectors<T>(shape.out_lanes, [&](int64_t lane, auto vectors) {
    product_rows<Images, vectors>(shape, in, weights + lane, lanes_from(out, lane), size,
                                  Stored<vectors, T>{add});
  });
}

template <int Images, class T>
void product_moments_of(const Product& shape, Grid<const T> in, const T* weights, Grid<T> out,
                        Size size, const ProductMoments<T>& moments) {
  for_two_vectors<T>(shape.out_lanes, [&](int64_t lane, auto vectors) {
    product_rows<Images, vectors>(shape, in, weights + lane, lanes_from(out, lane), size,
                                  Measured<vectors, T>(moments, lane));
  });
  if (moments.streaming) stream_end();
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
  for_two_vectors<T>(shape.out_lanes, [&](int64_t lane, auto vectors) {
    weights_column<Images, vectors>(shape, in, lanes_from(gradient, lane), size, sums + lane);
  });
}

}  // namespace

template <class T>
void product(const Product& shape, Grid<const T> in, const T* weights, Grid<T> out, Size out_size,
             bool add) {
  with_images<T>(shape.images,
                 [&](auto images) { product_of<images>(shape, in, weights, out, out_size, add); });
}

template <class T>
void product_moments(const Product& shape, Grid<const T> in, const T* weights, Grid<T> out,
                     Size size, const ProductMoments<T>& moments) {
  with_images<T>(shape.images, [&](auto images) {
    product_moments_of<images>(shape, in, weights, out, size, moments);
  });
}

template <class T>
void product_weights(const Product& shape, Grid<const T> in, Grid<const T> gradient, Size size,
                     double* sums) {
  with_images<T>(shape.images,
                 [&](auto images) { weights_of<images>(shape, in, gradient, size, sums); });
}

#define DA2S_INSTANTIATE(T)                                                             \
  template void product(const Product&, Grid<const T>, const T*, Grid<T>, Size, bool);  \
  template void product_moments(const Product&, Grid<const T>, const T*, Grid<T>, Size, \
                                const ProductMoments<T>&);                              \
  template void product_weights(const Product&, Grid<const T>, Grid<const T>, Size, double*);
DA2S_INSTANTIATE(float)
DA2S_INSTANTIATE(double)

}  // namespace da2s_fast::DA2S_ISA

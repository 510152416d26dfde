#include "layer.h"

#include <algorithm>
#include <cstring>

namespace da2s_fast {

template <class T>
PackedLayer<T>::PackedLayer(const Layer& layer, Size size, int64_t images, int64_t border)
    : layer_(layer), size_(size), images_(images), border_(border) {
  const int64_t vector = DA2S_SIMD_CALL(vector_bytes) / sizeof(T);
  in_lanes_ = (layer.in_channels * images + vector - 1) / vector * vector;
  out_lanes_ = (layer.out_channels * images + vector - 1) / vector * vector;
  in_pixel_ = joined() > 1 ? layer.in_channels * images : in_lanes_;
}

template <class T>
Depthwise PackedLayer<T>::depthwise_shape(Ahead* ahead) const {
  return {layer_.kernel, layer_.dilation, layer_.stride, in_lanes_, ahead};
}

template <class T>
int64_t PackedLayer<T>::tap_offset(int64_t tap, int64_t pixel) const {
  const int64_t row = (size_.width + 2 * border_) * pixel;
  if (layer_.halves) return tap * (row + pixel);
  return (tap / layer_.kernel - layer_.padding()) * row +
         (tap % layer_.kernel - layer_.padding()) * pixel;
}

template <class T>
Product PackedLayer<T>::product_shape(Ahead* ahead) const {
  const int64_t taps = layer_.taps_of_product() / joined();
  Product shape{images_, joined() * layer_.in_channels, out_lanes(), taps, {}, ahead};
  if (!layer_.separable)
    for (int64_t tap = 0; tap < taps; ++tap) shape.offsets[tap] = tap_offset(tap * joined());
  return shape;
}

// Calls visit(weight tensor, position in it, tap, in channel, out channel) for every weight of the
// product over channels.
template <class T>
template <class Visit>
void PackedLayer<T>::for_each_product_weight(Visit visit) const {
  const int64_t in = layer_.in_channels, out = layer_.out_channels;
  const int64_t taps = layer_.taps_of_product();
  for (int64_t o = 0; o < out; ++o)
    for (int64_t i = 0; i < in; ++i) {
      if (layer_.halves) {
        const int64_t half = o >= out / 2;
        visit(half, (o - half * (out / 2)) * in + i, half, i, o);
        continue;
      }
      for (int64_t tap = 0; tap < taps; ++tap)
        visit(layer_.separable ? 1 : 0, (o * in + i) * taps + tap, tap, i, o);
    }
}

template <class T>
void PackedLayer<T>::lay_out(bool turned, Arena& arena) {
  if (layer_.separable) {
    spatial_ = arena.take<T>(layer_.taps() * in_lanes_);
    if (turned) turned_ = arena.take<T>(layer_.taps() * in_lanes_);
  }
  product_ = arena.take<T>(layer_.taps_of_product() * product_sums());
  if (turned)
    transposed_ = arena.take<T>(layer_.taps_of_product() * layer_.out_channels * in_lanes_);
}

// Where depthwise_back reads the weight of a tap.
template <class T>
int64_t PackedLayer<T>::turned_tap(int64_t tap) const {
  const int64_t kernel = layer_.kernel, y = tap / kernel, x = tap % kernel;
  if (layer_.stride == 1 || layer_.dilation == 2) return layer_.taps() - 1 - tap;
  // Of the taps that see inputs of one parity every other one is left.
  const int64_t padding = layer_.padding(), even = (kernel + 1 - padding % 2) / 2;
  const int64_t sizes[] = {even, kernel - even};
  const int64_t row = (y + padding) % 2, column = (x + padding) % 2;
  const int64_t first = row * even * kernel + column * sizes[row] * even;
  return first + (sizes[row] - 1 - y / 2) * sizes[column] + sizes[column] - 1 - x / 2;
}

template <class T>
void PackedLayer<T>::pack(const std::vector<const T*>& weights, bool turned) const {
  const int64_t in = layer_.in_channels, out = layer_.out_channels, lanes = out_lanes();
  if (layer_.separable) {
    const int64_t taps = layer_.taps();
    for (int64_t tap = 0; tap < taps; ++tap)
      for (int64_t lane = 0; lane < in_lanes_; ++lane) {
        const int64_t channel = lane / images_;
        const T weight = channel < in ? weights[layer_.weight][channel * taps + tap] : T{0};
        spatial_[tap * in_lanes_ + lane] = weight;
        if (turned) turned_[turned_tap(tap) * in_lanes_ + lane] = weight;
      }
  }
  const int64_t taps = layer_.taps_of_product();
  if (layer_.halves || out * images_ < lanes) std::fill_n(product_, taps * product_sums(), T{0});
  if (turned) std::fill_n(transposed_, taps * out * in_lanes_, T{0});
  for_each_product_weight([&](int64_t tensor, int64_t at, int64_t tap, int64_t i, int64_t o) {
    const T weight = weights[layer_.weight + tensor][at];
    std::fill_n(product_ + (tap * in + i) * lanes + o * images_, images_, weight);
    if (turned)
      std::fill_n(transposed_ + (tap * out + o) * in_lanes_ + i * images_, images_, weight);
  });
}

template <class T>
Grid<T> PackedLayer<T>::inside(T* padded) const {
  const int64_t row = (size_.width + 2 * border_) * in_pixel_;
  return Grid<T>{padded, row, in_pixel_}.at(border_, border_);
}

template <class T>
bool PackedLayer<T>::forward(Grid<const T> in, T* middle, T* z, Ahead* ahead,
                             const ProductMoments<T>* moments) const {
  const Size out = out_size();
  const Grid<T> to{z, out.width * out_lanes(), out_lanes()};
  if (layer_.halves) {
    halves_forward(in, middle, to);
    return false;
  }
  if (layer_.separable) {
    const Grid<T> between{middle, out.width * in_lanes_, in_lanes_};
    Ahead own;
    if (!ahead) ahead = &own;
    // The memory of z, too, comes while the depthwise convolution computes, where it has to come.
    if (!moments || !moments->streaming) {
      const int64_t bytes = features() * static_cast<int64_t>(sizeof(T));
      ahead->at[1] = reinterpret_cast<const char*>(z);
      ahead->end[1] = ahead->at[1] + bytes;
      ahead->step = std::max(ahead->step, (bytes / out.height + 63) / 64 * 64);
    }
    DA2S_SIMD_CALL(depthwise<T>, depthwise_shape(ahead),
                   in.at(-layer_.padding(), -layer_.padding()), spatial_, between, out, false);
    multiply(between, to, ahead, moments);
  } else {
    multiply({in.data, in.row * layer_.stride, in.pixel * layer_.stride}, to, ahead, moments);
  }
  return moments;
}

template <class T>
void PackedLayer<T>::multiply(Grid<const T> in, Grid<T> z, Ahead* ahead,
                              const ProductMoments<T>* moments) const {
  if (moments)
    DA2S_SIMD_CALL(product_moments<T>, product_shape(ahead), in, product_, z, out_size(), *moments);
  else
    DA2S_SIMD_CALL(product<T>, product_shape(ahead), in, product_, z, out_size(), false);
}

// Both halves with all lanes, of which each has its own: a product with zeros in their place would
// carry NaN from one half into the other.
template <class T>
void PackedLayer<T>::halves_forward(Grid<const T> in, T* middle, Grid<T> z) const {
  const Size out = out_size();
  const Product one{images_, layer_.in_channels, out_lanes()};
  const Grid<T> second{middle, z.row, z.pixel};
  for (int64_t tap = 0; tap < 2; ++tap) {
    const Grid<const T> from{in.data + tap_offset(tap), in.row * layer_.stride,
                             in.pixel * layer_.stride};
    DA2S_SIMD_CALL(product<T>, one, from, product_ + tap * product_sums(), tap ? second : z, out,
                   false);
  }
  const int64_t half = layer_.out_channels / 2 * images_, rest = out_lanes() - half;
  for (int64_t i = 0; i < out.pixels(); ++i)
    std::memcpy(z.data + i * z.pixel + half, second.data + i * z.pixel + half, rest * sizeof(T));
}

template <class T>
void PackedLayer<T>::backward(Grid<const T> in, const T* dz, const Scratch& scratch, Grid<T> dx,
                              bool add, double* sums) const {
  layer_.separable ? separable_backward(in, dz, scratch, dx, add, sums)
                   : dense_backward(in, dz, scratch, dx, add, sums);
}

template <class T>
void PackedLayer<T>::separable_backward(Grid<const T> in, const T* dz, const Scratch& scratch,
                                        Grid<T> dx, bool add, double* sums) const {
  const Size out = out_size();
  const Grid<const T> window = in.at(-layer_.padding(), -layer_.padding());
  const Depthwise shape = depthwise_shape(scratch.ahead);
  const Grid<const T> g{dz, out.width * out_lanes(), out_lanes()};
  if (sums) {
    const Grid<T> between{scratch.middle, out.width * in_lanes_, in_lanes_};
    DA2S_SIMD_CALL(depthwise<T>, shape, window, spatial_, between, out, false);
    DA2S_SIMD_CALL(product_weights<T>, product_shape(scratch.ahead), between, g, out,
                   sums + spatial_sums());
  }
  // The gradient of the depthwise result.
  Product back{images_, layer_.out_channels, in_lanes_, 1, {}, scratch.ahead};
  const int64_t row = (out.width + 2 * border_) * in_lanes_;
  const Grid<T> gradient = Grid<T>{scratch.padded, row, in_lanes_}.at(border_, border_);
  DA2S_SIMD_CALL(product<T>, back, g, transposed_, gradient, out, false);
  if (sums) DA2S_SIMD_CALL(depthwise_weights<T>, shape, window, gradient, out, sums);
  if (!dx.data) return;
  DA2S_SIMD_CALL(depthwise_back<T>, shape, gradient, turned_, dx, size_, add);
}

template <class T>
void PackedLayer<T>::dense_backward(Grid<const T> in, const T* dz, const Scratch& scratch,
                                    Grid<T> dx, bool add, double* sums) const {
  const Size out = out_size();
  const Grid<const T> g{dz, out.width * out_lanes(), out_lanes()};
  if (sums) {
    const Product one{images_, joined() * layer_.in_channels, out_lanes_};
    for (int64_t tap = 0; tap < layer_.taps(); tap += joined()) {
      const Grid<const T> moved{in.data + tap_offset(tap), in.row * layer_.stride,
                                in.pixel * layer_.stride};
      DA2S_SIMD_CALL(product_weights<T>, one, moved, g, out, sums + tap * product_sums());
    }
  }
  if (!dx.data) return;
  layer_.stride == 1 ? gather_input(g, scratch, dx, add) : spread_input(g, scratch, dx, add);
}

// At stride 1 the input's gradient is a convolution of the output's inside a border of zeros.
template <class T>
void PackedLayer<T>::gather_input(Grid<const T> g, const Scratch& scratch, Grid<T> dx,
                                  bool add) const {
  Product back{images_, layer_.out_channels, in_lanes_, layer_.taps()};
  if (layer_.padding() > 0) {
    const int64_t row = (size_.width + 2 * border_) * out_lanes_;
    const Grid<T> bordered = Grid<T>{scratch.padded, row, out_lanes_}.at(border_, border_);
    for (int64_t y = 0; y < size_.height; ++y)
      std::memcpy(bordered.at(y, 0).data, g.at(y, 0).data, g.row * sizeof(T));
    g = bordered;
  }
  for (int64_t tap = 0; tap < back.taps; ++tap) back.offsets[tap] = -tap_offset(tap, out_lanes_);
  DA2S_SIMD_CALL(product<T>, back, g, transposed_, dx, size_, add);
}

// Tap by tap to where the tap had read.
template <class T>
void PackedLayer<T>::spread_input(Grid<const T> g, const Scratch& scratch, Grid<T> dx,
                                  bool add) const {
  const Size out = out_size();
  const int64_t half = layer_.out_channels / 2, row = (size_.width + 2 * border_) * in_lanes_;
  const int64_t elements = (size_.height + 2 * border_) * row;
  const Grid<T> whole = Grid<T>{scratch.padded, row, in_lanes_}.at(border_, border_);
  std::memset(scratch.padded, 0, elements * sizeof(T));
  for (int64_t tap = 0; tap < layer_.taps(); ++tap) {
    const Grid<T> to{whole.data + tap_offset(tap, in_lanes_), whole.row * layer_.stride,
                     whole.pixel * layer_.stride};
    // Of a half, its own channels only.
    const int64_t first = layer_.halves ? tap * half : 0;
    const int64_t last = layer_.halves && tap == 0 ? half : layer_.out_channels;
    const Product back{images_, last - first, in_lanes_};
    const Grid<const T> part{g.data + first * images_, g.row, g.pixel};
    DA2S_SIMD_CALL(product<T>, back, part,
                   transposed_ + (tap * layer_.out_channels + first) * in_lanes_, to, out, true);
  }
  if (add)
    DA2S_SIMD_CALL(add<T>, whole, size_, in_lanes_, dx);
  else
    DA2S_SIMD_CALL(normalize<T>, whole, size_, in_lanes_, nullptr, nullptr, false, dx);
  std::memset(scratch.padded, 0, elements * sizeof(T));
}

template <class T>
void PackedLayer<T>::fold(double* sums, int64_t chunk_stride, int64_t chunks, T* gradients) const {
  const int64_t count = this->sums();
  for (int64_t chunk = 1; chunk < chunks; ++chunk)
    for (int64_t i = 0; i < count; ++i) sums[i] += sums[chunk * chunk_stride + i];
  // The images of a channel.
  const auto total = [&](int64_t first) {
    double found = 0;
    for (int64_t n = 0; n < images_; ++n) found += sums[first + n];
    return static_cast<T>(found);
  };
  const int64_t spatial = layer_.separable ? layer_.in_channels * layer_.taps() : 0;
  for (int64_t i = 0; i < spatial; ++i)
    gradients[i] = total(i % layer_.taps() * in_lanes_ + i / layer_.taps() * images_);
  const int64_t half = layer_.out_channels / 2 * layer_.in_channels;
  for_each_product_weight([&](int64_t tensor, int64_t at, int64_t tap, int64_t i, int64_t o) {
    const int64_t start = layer_.halves ? tensor * half : spatial;
    gradients[start + at] =
        total(spatial_sums() + (tap * layer_.in_channels + i) * out_lanes() + o * images_);
  });
}

template class PackedLayer<float>;
template class PackedLayer<double>;

}  // namespace da2s_fast

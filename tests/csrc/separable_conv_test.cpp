// separable_conv's loops against plain ones, image by image on threads, as the operator calls them.
#include "cpu/separable_conv.h"

#include <algorithm>

#include "separable_conv_reference.h"

namespace da2s_fast::test {
namespace {

enum class Layout { contiguous, channels_last, gaps };

// Images whose memory ends with the last element of the last one.
template <class T>
struct Images {
  Images(Layout layout, int64_t images, int64_t channels, int64_t height, int64_t width)
      : at(strides(layout, channels, height, width)),
        image(channels * (height + 1) * (width + 1) * 2),
        elements((images - 1) * image + (channels - 1) * at.channel + (height - 1) * at.row +
                 (width - 1) * at.pixel + 1) {}

  static Strides strides(Layout layout, int64_t channels, int64_t height, int64_t width) {
    if (layout == Layout::contiguous) return {height * width, width, 1};
    if (layout == Layout::channels_last) return {1, width * channels, channels};
    return {(height + 1) * (width + 1) * 2, (width + 1) * 2, 2};
  }
  int64_t index(int64_t n, int64_t c, int64_t y, int64_t x) const {
    return n * image + c * at.channel + y * at.row + x * at.pixel;
  }

  Strides at;
  int64_t image;
  Buffer<T> elements;
};

template <class T>
SeparableConv geometry(const Shape& shape) {
  const auto columns = [](int64_t channels) {
    return (channels + kVector<T> - 1) / kVector<T> * kVector<T>;
  };
  return {shape.kernel, shape.stride, shape.padding(),    shape.dilation,
          shape.in,     shape.out,    columns(shape.in),  columns(shape.out),
          shape.height, shape.width,  shape.out_height(), shape.out_width()};
}

// Scratch of one thread, zero where separable_conv.h asks for it (and `out`, whose columns behind
// the last channel meet weights of zero).
template <class T>
struct Scratch {
  explicit Scratch(const SeparableConv& conv)
      : padded(conv.padded_pixels() * conv.in_columns, T{0}),
        spread(padded.size(), T{0}),
        middle(conv.out_pixels() * conv.in_columns),
        middle_gradient(middle.size()),
        out(conv.out_pixels() * conv.out_columns, T{0}),
        image(std::max(conv.height * conv.width, conv.out_columns) * conv.in_columns) {}
  SeparableScratch<T> view() {
    return {padded.data(),          spread.data(), middle.data(),
            middle_gradient.data(), out.data(),    image.data()};
  }
  Buffer<T> padded, spread, middle, middle_gradient, out, image;
};

template <class T>
struct Weights {
  Weights(const SeparableConv& conv, const Operands& operands)
      : spatial(conv.kernel * conv.kernel * conv.in_columns, T{0}),
        channel(conv.in_columns * conv.out_columns, T{0}),
        turned(spatial.size(), T{0}),
        transposed(channel.size(), T{0}) {
    const int64_t taps = conv.kernel * conv.kernel;
    for (int64_t c = 0; c < conv.in_channels; ++c) {
      for (int64_t tap = 0; tap < taps; ++tap) {
        const T weight = static_cast<T>(operands.spatial[c * taps + tap]);
        spatial[tap * conv.in_columns + c] = weight;
        turned[(taps - 1 - tap) * conv.in_columns + c] = weight;
      }
      for (int64_t o = 0; o < conv.out_channels; ++o) {
        const T weight = static_cast<T>(operands.channel[o * conv.in_channels + c]);
        channel[c * conv.out_columns + o] = transposed[o * conv.in_columns + c] = weight;
      }
    }
  }
  SeparableWeights<T> view() const {
    return {spatial.data(), channel.data(), turned.data(), transposed.data()};
  }
  Buffer<T> spatial, channel, turned, transposed;
};

template <class T>
void check_layouts(const Shape& shape, Layout x_layout, Layout z_layout) {
  const Operands operands(shape);
  const Results wanted(shape, operands);
  const SeparableConv conv = geometry<T>(shape);
  const Weights<T> weights(conv, operands);
  Images<T> x(x_layout, shape.images, shape.in, shape.height, shape.width);
  Images<T> dx(x_layout, shape.images, shape.in, shape.height, shape.width);
  Images<T> z(z_layout, shape.images, shape.out, conv.out_height, conv.out_width);
  Images<T> dz(z_layout, shape.images, shape.out, conv.out_height, conv.out_width);
  shape.for_each_input([&](int64_t i, int64_t n, int64_t c, int64_t y, int64_t column) {
    x.elements[x.index(n, c, y, column)] = static_cast<T>(operands.x[i]);
  });
  shape.for_each_output([&](int64_t i, int64_t n, int64_t c, int64_t y, int64_t column) {
    dz.elements[dz.index(n, c, y, column)] = static_cast<T>(operands.dz[i]);
  });
  const int64_t taps = shape.kernel * shape.kernel;
  const int64_t spatial_size = taps * conv.in_columns;
  const int64_t channel_size = conv.out_columns * conv.in_columns;
  Buffer<double> spatial_sums(shape.images * spatial_size, 0);
  Buffer<double> channel_sums(shape.images * channel_size, 0);
  in_threads(shape.images, [&](int64_t n) {
    Scratch<T> forward(conv), backward(conv);
    DA2S_SIMD_CALL(separable_conv_image, conv, forward.view(), weights.view(),
                   &x.elements[n * x.image], x.at, &z.elements[n * z.image], z.at);
    DA2S_SIMD_CALL(separable_conv_image_gradient, conv, backward.view(), weights.view(),
                   &x.elements[n * x.image], x.at, &dz.elements[n * dz.image], dz.at,
                   &dx.elements[n * dx.image], dx.at, &spatial_sums[n * spatial_size],
                   &channel_sums[n * channel_size]);
  });
  shape.for_each_output([&](int64_t i, int64_t n, int64_t c, int64_t y, int64_t column) {
    DA2S_CHECK_CLOSE(T, z.elements[z.index(n, c, y, column)], wanted.z[i]);
  });
  shape.for_each_input([&](int64_t i, int64_t n, int64_t c, int64_t y, int64_t column) {
    DA2S_CHECK_CLOSE(T, dx.elements[dx.index(n, c, y, column)], wanted.dx[i]);
  });
  const auto total = [&](const Buffer<double>& sums, int64_t size, int64_t at) {
    double found = 0;
    for (int64_t n = 0; n < shape.images; ++n) found += sums[n * size + at];
    return found;
  };
  for (int64_t c = 0; c < shape.in; ++c) {
    for (int64_t tap = 0; tap < taps; ++tap)
      DA2S_CHECK_CLOSE(T, total(spatial_sums, spatial_size, tap * conv.in_columns + c),
                       wanted.spatial[c * taps + tap]);
    for (int64_t o = 0; o < shape.out; ++o)
      DA2S_CHECK_CLOSE(T, total(channel_sums, channel_size, o * conv.in_columns + c),
                       wanted.channel[o * shape.in + c]);
  }
}

template <class T>
void check_type() {
  for (const Shape& shape : {
           Shape{1, 1, 1, 1, 1, 3, 1, 1},    // one pixel, one channel
           Shape{2, 8, 16, 6, 9, 3, 1, 1},   // whole vectors: tensors are written in place
           Shape{2, 9, 5, 7, 5, 5, 2, 1},    // remainders everywhere, a stride
           Shape{2, 3, 11, 8, 6, 7, 1, 1},   // the largest kernel
           Shape{2, 17, 4, 9, 7, 3, 1, 2},   // a dilation
           Shape{2, 5, 24, 9, 10, 5, 2, 2},  // both
       })
    for (const Layout x : {Layout::contiguous, Layout::channels_last, Layout::gaps})
      for (const Layout z : {Layout::contiguous, Layout::channels_last})
        check_layouts<T>(shape, x, z);
}

DA2S_TEST(separable_conv_of_float) { check_type<float>(); }
DA2S_TEST(separable_conv_of_double) { check_type<double>(); }

}  // namespace
}  // namespace da2s_fast::test

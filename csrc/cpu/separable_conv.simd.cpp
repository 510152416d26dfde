#include "separable_conv.h"

#include <cstring>

#include "convert.h"

namespace da2s_fast::DA2S_ISA {
namespace {

template <class T>
struct VectorOf;
template <>
struct VectorOf<float> {
  typedef float type __attribute__((vector_size(32)));
};
template <>
struct VectorOf<double> {
  typedef double type __attribute__((vector_size(32)));
};
template <class T>
using Vector = typename VectorOf<T>::type;

template <class T>
DA2S_INLINE void read(const T* p, Vector<T>& v) {
  std::memcpy(&v, p, sizeof v);
}

template <class T>
DA2S_INLINE void write(T* p, const Vector<T>& v) {
  std::memcpy(p, &v, sizeof v);
}

// NaN is not below 0 and stays.
template <class T>
DA2S_INLINE T relu(T value) {
  return value < 0 ? T{0} : value;
}

// Whole vectors from one place to another.
template <class T>
DA2S_INLINE void copy_vectors(const T* from, int64_t count, T* to) {
  for (int64_t i = 0; i < count; i += kVector<T>) {
    Vector<T> v;
    read(from + i, v);
    write(to + i, v);
  }
}

// Whether an image lies as scratch does: channels last, no gaps, whole vectors of channels.
DA2S_INLINE bool is_dense(const Strides& at, int64_t channels, int64_t columns, int64_t width) {
  return channels == columns && at.channel == 1 && at.pixel == columns && at.row == width * columns;
}

// Copies an image into scratch, channels last: to(row, pixel) is where a pixel's channels begin.
template <bool Relu, class T, class To>
DA2S_INLINE void copy_in(const T* x, const Strides& at, int64_t channels, int64_t height,
                         int64_t width, To to) {
  for (int64_t row = 0; row < height; ++row) {
    if (at.channel == 1) {
      for (int64_t pixel = 0; pixel < width; ++pixel) {
        const T* from = x + row * at.row + pixel * at.pixel;
        T* target = to(row, pixel);
        int64_t c = 0;
        for (; c + kVector<T> <= channels; c += kVector<T>) {
          Vector<T> v;
          read(from + c, v);
          if (Relu) v = v < 0 ? Vector<T>{} : v;
          write(target + c, v);
        }
        for (; c < channels; ++c) target[c] = Relu ? relu(from[c]) : from[c];
      }
      continue;
    }
    for (int64_t c = 0; c < channels; ++c) {
      const T* from = x + c * at.channel + row * at.row;
      for (int64_t pixel = 0; pixel < width; ++pixel) {
        const T value = from[pixel * at.pixel];
        to(row, pixel)[c] = Relu ? relu(value) : value;
      }
    }
  }
}

// Copies from scratch (pixels, columns) into an image.
template <class T>
DA2S_INLINE void copy_out(const T* from, int64_t columns, int64_t channels, int64_t height,
                          int64_t width, T* z, const Strides& at) {
  for (int64_t row = 0; row < height; ++row) {
    const T* line = from + row * width * columns;
    if (at.channel == 1) {
      for (int64_t pixel = 0; pixel < width; ++pixel)
        for (int64_t c = 0; c < channels; ++c)
          z[row * at.row + pixel * at.pixel + c] = line[pixel * columns + c];
      continue;
    }
    for (int64_t c = 0; c < channels; ++c)
      for (int64_t pixel = 0; pixel < width; ++pixel)
        z[c * at.channel + row * at.row + pixel * at.pixel] = line[pixel * columns + c];
  }
}

// `Pixels` neighbouring outputs of one vector of channels.
template <int K, int Pixels, class T>
DA2S_INLINE void depthwise_pixels(const T* base, int64_t row, int64_t tap, int64_t step,
                                  const T* weights, int64_t columns, T* out) {
  Vector<T> sums[Pixels] = {};
  for (int ky = 0; ky < K; ++ky)
    for (int kx = 0; kx < K; ++kx) {
      Vector<T> weight;
      read(weights + (ky * K + kx) * columns, weight);
      const T* at = base + ky * row + kx * tap;
      for (int j = 0; j < Pixels; ++j) {
        Vector<T> value;
        read(at + j * step, value);
        sums[j] += value * weight;
      }
    }
  for (int j = 0; j < Pixels; ++j) write(out + j * columns, sums[j]);
}

// out (height, width, columns) from padded (.., padded width, columns).
template <int K, class T>
void depthwise(const T* padded, int64_t padded_width, int64_t stride, int64_t dilation,
               const T* weights, int64_t columns, int64_t height, int64_t width, T* out) {
  const int64_t row = dilation * padded_width * columns, tap = dilation * columns;
  const int64_t step = stride * columns;
  for (int64_t y = 0; y < height; ++y)
    for (int64_t c = 0; c < columns; c += kVector<T>) {
      const T* line = padded + y * stride * padded_width * columns + c;
      T* target = out + y * width * columns + c;
      int64_t x = 0;
      for (; x + 4 <= width; x += 4)
        depthwise_pixels<K, 4>(line + x * step, row, tap, step, weights + c, columns,
                               target + x * columns);
      for (; x < width; ++x)
        depthwise_pixels<K, 1>(line + x * step, row, tap, step, weights + c, columns,
                               target + x * columns);
    }
}

template <class T>
DA2S_INLINE void depthwise_of(int64_t kernel, const T* padded, int64_t padded_width, int64_t stride,
                              int64_t dilation, const T* weights, int64_t columns, int64_t height,
                              int64_t width, T* out) {
  const auto run = kernel == 3 ? depthwise<3, T> : kernel == 5 ? depthwise<5, T> : depthwise<7, T>;
  run(padded, padded_width, stride, dilation, weights, columns, height, width, out);
}

// sums[i][j] += sum over n of left[n * left_step + i * left_next] * right[n * right_step + j-th
// vector]: the register tile of every matrix product here.
template <int Rows, int Vectors, class T>
DA2S_INLINE void tile(int64_t count, const T* left, int64_t left_step, int64_t left_next,
                      const T* right, int64_t right_step, T* out, int64_t out_next) {
  Vector<T> sums[Rows][Vectors] = {};
  for (int64_t n = 0; n < count; ++n) {
    Vector<T> values[Vectors];
    for (int j = 0; j < Vectors; ++j) read(right + n * right_step + j * kVector<T>, values[j]);
    for (int i = 0; i < Rows; ++i) {
      const T factor = left[n * left_step + i * left_next];
      for (int j = 0; j < Vectors; ++j) sums[i][j] += values[j] * factor;
    }
  }
  for (int i = 0; i < Rows; ++i)
    for (int j = 0; j < Vectors; ++j) write(out + i * out_next + j * kVector<T>, sums[i][j]);
}

// out (rows, columns) = product of left, element (i, n) at i * left_next + n * left_step, and right
// (count, columns).
template <class T>
void product(int64_t rows, int64_t columns, int64_t count, const T* left, int64_t left_step,
             int64_t left_next, const T* right, T* out) {
  constexpr int64_t kTwo = 2 * kVector<T>;
  for (int64_t column = 0; column < columns;) {
    const bool two = column + kTwo <= columns;
    int64_t row = 0;
    for (; row + 4 <= rows; row += 4)
      (two ? tile<4, 2, T> : tile<4, 1, T>)(count, left + row * left_next, left_step, left_next,
                                            right + column, columns, out + row * columns + column,
                                            columns);
    for (; row < rows; ++row)
      (two ? tile<1, 2, T> : tile<1, 1, T>)(count, left + row * left_next, left_step, left_next,
                                            right + column, columns, out + row * columns + column,
                                            columns);
    column += two ? kTwo : kVector<T>;
  }
}

// `Rows` rows of the kernel's gradient for one vector of channels, `Pixels` pixels in flight.
template <int K, int Rows, int Pixels, class T>
DA2S_INLINE void kernel_rows(const SeparableConv& conv, const T* padded, const T* gradient,
                             int64_t pitch, double* sum) {
  const int64_t columns = conv.in_columns, line = conv.padded_width() * columns;
  const int64_t tap = conv.dilation * columns, step = conv.stride * columns;
  Vector<T> sums[Pixels][Rows][K] = {};
  const auto add = [&](const T* base, const T* g, Vector<T>(&into)[Rows][K]) {
    Vector<T> factor;
    read(g, factor);
    for (int ky = 0; ky < Rows; ++ky)
      for (int kx = 0; kx < K; ++kx) {
        Vector<T> value;
        read(base + ky * conv.dilation * line + kx * tap, value);
        into[ky][kx] += value * factor;
      }
  };
  for (int64_t y = 0; y < conv.out_height; ++y) {
    const T* base = padded + y * conv.stride * line;
    const T* g = gradient + y * pitch;
    int64_t x = 0;
    for (; x + Pixels <= conv.out_width; x += Pixels)
      for (int j = 0; j < Pixels; ++j) add(base + (x + j) * step, g + (x + j) * columns, sums[j]);
    for (; x < conv.out_width; ++x) add(base + x * step, g + x * columns, sums[0]);
  }
  for (int ky = 0; ky < Rows; ++ky)
    for (int kx = 0; kx < K; ++kx) {
      Vector<T> total = sums[0][ky][kx];
      for (int j = 1; j < Pixels; ++j) total += sums[j][ky][kx];
      for (int64_t i = 0; i < kVector<T>; ++i) sum[(ky * K + kx) * columns + i] += total[i];
    }
}

// sum (K * K, columns) += sum over output pixels of gradient, rows `pitch` apart, times the input
// under the kernel: about ten sums in registers at a time.
template <int K, class T>
void kernel_gradient(const SeparableConv& conv, const T* padded, const T* gradient, int64_t pitch,
                     double* sum) {
  constexpr int kRows = K == 3 ? 3 : 1, kPixels = K == 5 ? 2 : 1;
  const int64_t columns = conv.in_columns;
  for (int64_t c = 0; c < columns; c += kVector<T>)
    for (int64_t ky = 0; ky < K; ky += kRows)
      kernel_rows<K, kRows, kPixels>(
          conv, padded + ky * conv.dilation * conv.padded_width() * columns + c, gradient + c,
          pitch, sum + ky * K * columns + c);
}

template <class T>
void fill_padded(const SeparableConv& conv, const T* x, const Strides& at, T* padded) {
  const int64_t width = conv.padded_width();
  copy_in<true>(x, at, conv.in_channels, conv.height, conv.width, [&](int64_t row, int64_t pixel) {
    return padded + ((row + conv.padding) * width + pixel + conv.padding) * conv.in_columns;
  });
}

template <class T>
void depthwise_of_image(const SeparableConv& conv, const SeparableScratch<T>& scratch,
                        const SeparableWeights<T>& weights) {
  depthwise_of(conv.kernel, scratch.padded, conv.padded_width(), conv.stride, conv.dilation,
               weights.spatial, conv.in_columns, conv.out_height, conv.out_width, scratch.middle);
}

// Where ReLU let x through; the value it made of NaN is NaN, and lets the gradient through.
template <class T>
void mask(const SeparableConv& conv, const T* padded, T* image) {
  const int64_t columns = conv.in_columns;
  for (int64_t row = 0; row < conv.height; ++row) {
    const T* seen = padded + ((row + conv.padding) * conv.padded_width() + conv.padding) * columns;
    T* line = image + row * conv.width * columns;
    for (int64_t i = 0; i < conv.width * columns; ++i) line[i] = seen[i] <= 0 ? T{0} : line[i];
  }
}

}  // namespace

template <class T>
void separable_conv_image(const SeparableConv& conv, const SeparableScratch<T>& scratch,
                          const SeparableWeights<T>& weights, const T* x, const Strides& x_at, T* z,
                          const Strides& z_at) {
  const bool dense = is_dense(z_at, conv.out_channels, conv.out_columns, conv.out_width);
  fill_padded(conv, x, x_at, scratch.padded);
  depthwise_of_image(conv, scratch, weights);
  product(conv.out_pixels(), conv.out_columns, conv.in_columns, scratch.middle, 1, conv.in_columns,
          weights.channel, dense ? z : scratch.out);
  if (!dense)
    copy_out(scratch.out, conv.out_columns, conv.out_channels, conv.out_height, conv.out_width, z,
             z_at);
}

namespace {

// The gradient of the depthwise result, spread out by the stride; returns where its rows begin and,
// in pitch, how far apart they are.
template <class T>
const T* spread_gradient(const SeparableConv& conv, const SeparableScratch<T>& scratch,
                         const T* transposed, const T* dz, int64_t& pitch) {
  const int64_t columns = conv.in_columns, width = conv.padded_width();
  T* inside = scratch.spread + (conv.padding * width + conv.padding) * columns;
  if (conv.stride == 1) {
    pitch = width * columns;
    for (int64_t row = 0; row < conv.height; ++row)
      product(conv.width, columns, conv.out_columns, dz + row * conv.width * conv.out_columns, 1,
              conv.out_columns, transposed, inside + row * pitch);
    return inside;
  }
  pitch = conv.out_width * columns;
  product(conv.out_pixels(), columns, conv.out_columns, dz, 1, conv.out_columns, transposed,
          scratch.middle_gradient);
  for (int64_t row = 0; row < conv.out_height; ++row)
    for (int64_t pixel = 0; pixel < conv.out_width; ++pixel)
      copy_vectors(scratch.middle_gradient + row * pitch + pixel * columns, columns,
                   inside + (row * width + pixel) * conv.stride * columns);
  return scratch.middle_gradient;
}

}  // namespace

template <class T>
void separable_conv_image_gradient(const SeparableConv& conv, const SeparableScratch<T>& scratch,
                                   const SeparableWeights<T>& weights, const T* x,
                                   const Strides& x_at, const T* dz, const Strides& dz_at, T* dx,
                                   const Strides& dx_at, double* spatial_sum, double* channel_sum) {
  const int64_t columns = conv.in_columns;
  fill_padded(conv, x, x_at, scratch.padded);
  if (!is_dense(dz_at, conv.out_channels, conv.out_columns, conv.out_width)) {
    copy_in<false>(dz, dz_at, conv.out_channels, conv.out_height, conv.out_width,
                   [&](int64_t row, int64_t pixel) {
                     return scratch.out + (row * conv.out_width + pixel) * conv.out_columns;
                   });
    dz = scratch.out;
  }
  if (channel_sum) {
    depthwise_of_image(conv, scratch, weights);
    // (out_columns, in_columns), in the place of the image, which is not needed yet.
    product(conv.out_columns, columns, conv.out_pixels(), dz, conv.out_columns, 1, scratch.middle,
            scratch.image);
    for (int64_t i = 0; i < conv.out_columns * columns; ++i) channel_sum[i] += scratch.image[i];
  }
  if (!dx && !spatial_sum) return;
  int64_t pitch = 0;
  const T* gradient = spread_gradient(conv, scratch, weights.transposed, dz, pitch);
  if (spatial_sum) {
    const auto run = conv.kernel == 3   ? kernel_gradient<3, T>
                     : conv.kernel == 5 ? kernel_gradient<5, T>
                                        : kernel_gradient<7, T>;
    run(conv, scratch.padded, gradient, pitch, spatial_sum);
  }
  if (!dx) return;
  const bool dense = is_dense(dx_at, conv.in_channels, columns, conv.width);
  T* image = dense ? dx : scratch.image;
  depthwise_of(conv.kernel, scratch.spread, conv.padded_width(), 1, conv.dilation, weights.turned,
               columns, conv.height, conv.width, image);
  mask(conv, scratch.padded, image);
  if (!dense) copy_out(image, columns, conv.in_channels, conv.height, conv.width, dx, dx_at);
}

#define DA2S_INSTANTIATE(T)                                                                    \
  template void separable_conv_image(const SeparableConv&, const SeparableScratch<T>&,         \
                                     const SeparableWeights<T>&, const T*, const Strides&, T*, \
                                     const Strides&);                                          \
  template void separable_conv_image_gradient(                                                 \
      const SeparableConv&, const SeparableScratch<T>&, const SeparableWeights<T>&, const T*,  \
      const Strides&, const T*, const Strides&, T*, const Strides&, double*, double*);
DA2S_INSTANTIATE(float)
DA2S_INSTANTIATE(double)

}  // namespace da2s_fast::DA2S_ISA

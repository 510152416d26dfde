// separable_conv against plain loops, on threads, with all tensors exactly as large as they should
// be.
#include "cpu/separable_conv.h"

#include "images.h"
#include "separable_conv_reference.h"

namespace da2s_fast::test {
namespace {

template <class T>
void check_layouts(const Shape& shape, Layout x_layout, Layout z_layout) {
  const Operands operands(shape);
  const Results wanted(shape, operands);
  const int64_t out_height = shape.out_height(), out_width = shape.out_width();
  Images<T> x(x_layout, shape.images, shape.in, shape.height, shape.width);
  Images<T> dx(x_layout, shape.images, shape.in, shape.height, shape.width);
  Images<T> z(z_layout, shape.images, shape.out, out_height, out_width);
  Images<T> dz(z_layout, shape.images, shape.out, out_height, out_width);
  shape.for_each_input([&](int64_t i, int64_t n, int64_t c, int64_t y, int64_t column) {
    x.elements[x.index(n, c, y, column)] = static_cast<T>(operands.x[i]);
  });
  shape.for_each_output([&](int64_t i, int64_t n, int64_t c, int64_t y, int64_t column) {
    dz.elements[dz.index(n, c, y, column)] = static_cast<T>(operands.dz[i]);
  });
  const int64_t spatial = static_cast<int64_t>(operands.spatial.size());
  const int64_t channel = static_cast<int64_t>(operands.channel.size());
  Buffer<T> spatial_weights(spatial), channel_weights(channel), gradients(spatial + channel);
  for (int64_t i = 0; i < spatial; ++i) spatial_weights[i] = static_cast<T>(operands.spatial[i]);
  for (int64_t i = 0; i < channel; ++i) channel_weights[i] = static_cast<T>(operands.channel[i]);
  const SeparableConv<T> conv{
      {true, shape.kernel, shape.dilation, shape.stride, false, shape.in, shape.out, 0, 0},
      shape.images,
      {shape.height, shape.width},
      {spatial_weights.data(), channel_weights.data()},
      x};
  separable_conv_forward(conv, z.view());
  separable_conv_backward<T>(conv, dz, dx.view(), gradients.data());
  shape.for_each_output([&](int64_t i, int64_t n, int64_t c, int64_t y, int64_t column) {
    DA2S_CHECK_CLOSE(T, z.elements[z.index(n, c, y, column)], wanted.z[i]);
  });
  shape.for_each_input([&](int64_t i, int64_t n, int64_t c, int64_t y, int64_t column) {
    DA2S_CHECK_CLOSE(T, dx.elements[dx.index(n, c, y, column)], wanted.dx[i]);
  });
  for (int64_t i = 0; i < spatial; ++i) DA2S_CHECK_CLOSE(T, gradients[i], wanted.spatial[i]);
  for (int64_t i = 0; i < channel; ++i)
    DA2S_CHECK_CLOSE(T, gradients[spatial + i], wanted.channel[i]);

  // A gradient that is not asked for changes nothing about the others.
  Images<T> alone(x_layout, shape.images, shape.in, shape.height, shape.width);
  Buffer<T> gradients_alone(gradients.size());
  separable_conv_backward<T>(conv, dz, alone.view(), nullptr);
  separable_conv_backward<T>(conv, dz, {}, gradients_alone.data());
  shape.for_each_input([&](int64_t, int64_t n, int64_t c, int64_t y, int64_t column) {
    const int64_t i = dx.index(n, c, y, column);
    DA2S_CHECK(alone.elements[i] == dx.elements[i]);
  });
  for (int64_t i = 0; i < gradients.size(); ++i) DA2S_CHECK(gradients_alone[i] == gradients[i]);
}

template <class T>
void check_type() {
  for (const Shape& shape : {
           Shape{1, 1, 1, 1, 1, 3, 1, 1},    // one pixel, one channel
           Shape{3, 16, 32, 6, 9, 3, 1, 1},  // whole vectors: tensors are written in place
           Shape{5, 4, 12, 5, 6, 3, 1, 1},   // groups of images, the last not full
           Shape{2, 9, 5, 7, 5, 5, 2, 1},    // remainders everywhere, a stride
           Shape{19, 3, 11, 8, 6, 7, 1, 1},  // the largest kernel, several chunks
           Shape{2, 3, 6, 8, 7, 7, 2, 1},    // with a stride
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

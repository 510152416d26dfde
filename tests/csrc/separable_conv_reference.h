// A separable convolution and its gradients in plain loops and double.
#pragma once

#include <cstdint>
#include <vector>

#include "buffers.h"
#include "check.h"

namespace da2s_fast::test {

struct Shape {
  int64_t images, in, out, height, width, kernel, stride, dilation;

  int64_t padding() const { return dilation * (kernel - 1) / 2; }
  int64_t out_height() const { return (height - 1) / stride + 1; }
  int64_t out_width() const { return (width - 1) / stride + 1; }

  // visit(position in a contiguous tensor, image, channel, row, pixel)
  template <class Visit>
  void for_each_input(Visit visit) const {
    for_each(in, height, width, visit);
  }
  template <class Visit>
  void for_each_output(Visit visit) const {
    for_each(out, out_height(), out_width(), visit);
  }
  // Also visit(tap, position of the input under it) for the taps of an output that lie inside.
  template <class Visit>
  void for_each_tap(int64_t n, int64_t c, int64_t y, int64_t x, Visit visit) const {
    for (int64_t tap = 0; tap < kernel * kernel; ++tap) {
      const int64_t row = y * stride + tap / kernel * dilation - padding();
      const int64_t pixel = x * stride + tap % kernel * dilation - padding();
      if (row >= 0 && row < height && pixel >= 0 && pixel < width)
        visit(tap, ((n * in + c) * height + row) * width + pixel);
    }
  }

 private:
  template <class Visit>
  void for_each(int64_t channels, int64_t rows, int64_t pixels, Visit visit) const {
    int64_t i = 0;
    for (int64_t n = 0; n < images; ++n)
      for (int64_t c = 0; c < channels; ++c)
        for (int64_t y = 0; y < rows; ++y)
          for (int64_t x = 0; x < pixels; ++x) visit(i++, n, c, y, x);
  }
};

struct Operands {
  explicit Operands(const Shape& shape)
      : x(shape.images * shape.in * shape.height * shape.width),
        dz(shape.images * shape.out * shape.out_height() * shape.out_width()),
        spatial(shape.in * shape.kernel * shape.kernel),
        channel(shape.out * shape.in) {
    Numbers numbers;
    for (std::vector<double>* values : {&x, &dz, &spatial, &channel})
      for (double& value : *values) value = numbers.next();
  }
  std::vector<double> x, dz, spatial, channel;
};

// Everything twice: the values, and the sizes of what is added up, for the error that is allowed.
struct Results {
  Results(const Shape& shape, const Operands& operands)
      : z(operands.dz.size()),
        dx(operands.x.size()),
        spatial(operands.spatial.size()),
        channel(operands.channel.size()) {
    const int64_t taps = shape.kernel * shape.kernel, in = shape.in;
    const auto relu = [&](int64_t i) { return operands.x[i] < 0 ? 0 : operands.x[i]; };
    shape.for_each_output([&](int64_t i, int64_t n, int64_t o, int64_t y, int64_t x) {
      for (int64_t c = 0; c < in; ++c) {
        const double weight = operands.channel[o * in + c];
        shape.for_each_tap(n, c, y, x, [&](int64_t tap, int64_t under) {
          const double factor = operands.spatial[c * taps + tap];
          z[i].add(weight * factor * relu(under));
          channel[o * in + c].add(operands.dz[i] * factor * relu(under));
          spatial[c * taps + tap].add(operands.dz[i] * weight * relu(under));
          if (operands.x[under] > 0) dx[under].add(operands.dz[i] * weight * factor);
        });
      }
    });
  }
  std::vector<Sum> z, dx, spatial, channel;
};

}  // namespace da2s_fast::test

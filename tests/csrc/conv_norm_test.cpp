// conv_norm against plain loops, on threads, with all tensors exactly as large as they should be.
#include "cpu/conv_norm.h"

#include "images.h"
#include "separable_conv_reference.h"

namespace da2s_fast::test {
namespace {

constexpr double kEps = 1e-2;

struct Problem {
  Shape shape;
  bool relu, affine;

  int64_t weights() const { return shape.out * shape.in * shape.kernel * shape.kernel; }
  double values() const {
    return static_cast<double>(shape.images * shape.out_height() * shape.out_width());
  }
};

// The definition in double. Sums hold the sizes of what is added up too, for the error that is
// allowed; dividing by the deviation enlarges it.
struct Expected {
  explicit Expected(const Problem& problem)
      : x(problem.shape.images * problem.shape.in * problem.shape.height * problem.shape.width),
        g(problem.shape.images * problem.shape.out * problem.shape.out_height() *
          problem.shape.out_width()),
        weight(problem.weights()),
        scale(problem.shape.out),
        shift(problem.shape.out),
        output(g.size()),
        dx(x.size()),
        dweight(weight.size()),
        dscale(problem.shape.out),
        dshift(problem.shape.out) {
    Numbers numbers;
    for (std::vector<double>* values : {&x, &g, &weight, &scale, &shift})
      for (double& value : *values) value = numbers.next();
    if (!problem.affine) scale.assign(scale.size(), 1), shift.assign(shift.size(), 0);
    const Shape& shape = problem.shape;
    const int64_t taps = shape.kernel * shape.kernel;
    const auto seen = [&](int64_t i) { return problem.relu && x[i] < 0 ? 0 : x[i]; };
    // visit(position in the weights, position of the input under it) for an output's taps
    const auto for_each_term = [&](int64_t n, int64_t o, int64_t y, int64_t column, auto visit) {
      for (int64_t c = 0; c < shape.in; ++c)
        shape.for_each_tap(n, c, y, column, [&](int64_t tap, int64_t under) {
          visit((o * shape.in + c) * taps + tap, under);
        });
    };
    std::vector<Sum> z(g.size()), mean(shape.out), variance(shape.out), product(shape.out);
    shape.for_each_output([&](int64_t i, int64_t n, int64_t o, int64_t y, int64_t column) {
      for_each_term(n, o, y, column,
                    [&](int64_t at, int64_t under) { z[i].add(weight[at] * seen(under)); });
      mean[o].value += z[i].value / problem.values();
      mean[o].magnitude += z[i].magnitude / problem.values();
    });
    const auto centred = [&](int64_t i, int64_t o) { return z[i].value - mean[o].value; };
    const auto size = [&](int64_t i, int64_t o) { return z[i].magnitude + mean[o].magnitude; };
    shape.for_each_output([&](int64_t i, int64_t, int64_t o, int64_t, int64_t) {
      variance[o].value += centred(i, o) * centred(i, o) / problem.values();
      variance[o].magnitude += size(i, o) * size(i, o) / problem.values();
      dshift[o].add(g[i]);
      product[o].value += g[i] * centred(i, o);
      product[o].magnitude += std::fabs(g[i]) * size(i, o);
    });
    shape.for_each_output([&](int64_t i, int64_t n, int64_t o, int64_t y, int64_t column) {
      const double r = 1 / std::sqrt(variance[o].value + kEps), factor = scale[o] * r;
      const double worse = 1 + variance[o].magnitude * r * r, values = problem.values();
      output[i] = {factor * centred(i, o) + shift[o],
                   worse * std::fabs(factor) * size(i, o) + std::fabs(shift[o])};
      dscale[o] = {r * product[o].value, worse * r * product[o].magnitude};
      const double slope = r * r / values;
      const double dz =
          factor * (g[i] - dshift[o].value / values - centred(i, o) * slope * product[o].value);
      const double dz_size = worse * std::fabs(factor) *
                             (std::fabs(g[i]) + dshift[o].magnitude / values +
                              size(i, o) * slope * product[o].magnitude);
      for_each_term(n, o, y, column, [&](int64_t at, int64_t under) {
        dweight[at].value += dz * seen(under);
        dweight[at].magnitude += dz_size * std::fabs(seen(under));
        if (problem.relu && x[under] <= 0) return;
        dx[under].value += dz * weight[at];
        dx[under].magnitude += dz_size * std::fabs(weight[at]);
      });
    });
  }

  std::vector<double> x, g, weight, scale, shift;
  std::vector<Sum> output, dx, dweight, dscale, dshift;
};

template <class T>
void check_layouts(const Problem& problem, const Expected& wanted, Layout x_layout,
                   Layout out_layout) {
  const Shape& shape = problem.shape;
  const auto inputs = [&] {
    return Images<T>(x_layout, shape.images, shape.in, shape.height, shape.width);
  };
  const auto outputs = [&] {
    return Images<T>(out_layout, shape.images, shape.out, shape.out_height(), shape.out_width());
  };
  Images<T> x = inputs(), dx = inputs(), g = outputs(), output = outputs();
  shape.for_each_input([&](int64_t i, int64_t n, int64_t c, int64_t y, int64_t column) {
    x.elements[x.index(n, c, y, column)] = static_cast<T>(wanted.x[i]);
  });
  shape.for_each_output([&](int64_t i, int64_t n, int64_t c, int64_t y, int64_t column) {
    g.elements[g.index(n, c, y, column)] = static_cast<T>(wanted.g[i]);
  });
  const auto filled = [](Buffer<T>& to, const std::vector<double>& values) {
    for (int64_t i = 0; i < to.size(); ++i) to[i] = static_cast<T>(values[i]);
  };
  Buffer<T> weight(problem.weights()), scale(shape.out), shift(shape.out);
  filled(weight, wanted.weight);
  filled(scale, wanted.scale);
  filled(shift, wanted.shift);
  const ConvNorm<T> conv{{false, shape.kernel, 1, shape.stride, false, shape.in, shape.out, 0, 0},
                         shape.images,
                         {shape.height, shape.width},
                         {weight.data()},
                         x,
                         problem.relu,
                         kEps,
                         problem.affine ? scale.data() : nullptr,
                         problem.affine ? shift.data() : nullptr};
  Buffer<T> statistics(2 * shape.out), dweight(weight.size()), dscale(shape.out), dshift(shape.out);
  conv_norm_forward(conv, output.view(), statistics.data());
  conv_norm_backward<T>(conv, g, statistics.data(),
                        {dx.view(), dweight.data(), dscale.data(), dshift.data()});
  shape.for_each_output([&](int64_t i, int64_t n, int64_t c, int64_t y, int64_t column) {
    DA2S_CHECK_CLOSE(T, output.elements[output.index(n, c, y, column)], wanted.output[i]);
  });
  shape.for_each_input([&](int64_t i, int64_t n, int64_t c, int64_t y, int64_t column) {
    DA2S_CHECK_CLOSE(T, dx.elements[dx.index(n, c, y, column)], wanted.dx[i]);
  });
  for (int64_t i = 0; i < dweight.size(); ++i) DA2S_CHECK_CLOSE(T, dweight[i], wanted.dweight[i]);
  for (int64_t c = 0; c < shape.out; ++c) {
    DA2S_CHECK_CLOSE(T, dscale[c], wanted.dscale[c]);
    DA2S_CHECK_CLOSE(T, dshift[c], wanted.dshift[c]);
  }
  // Gradients that are not asked for change nothing about the others.
  Images<T> alone = inputs();
  Buffer<T> weight_alone(weight.size());
  conv_norm_backward<T>(conv, g, statistics.data(), {alone.view(), nullptr, nullptr, nullptr});
  conv_norm_backward<T>(conv, g, statistics.data(), {{}, weight_alone.data(), nullptr, nullptr});
  shape.for_each_input([&](int64_t, int64_t n, int64_t c, int64_t y, int64_t column) {
    const int64_t i = dx.index(n, c, y, column);
    DA2S_CHECK(alone.elements[i] == dx.elements[i]);
  });
  for (int64_t i = 0; i < dweight.size(); ++i) DA2S_CHECK(weight_alone[i] == dweight[i]);
}

template <class T>
void check_type() {
  for (const Problem& problem : {
           Problem{{3, 3, 16, 5, 6, 3, 1, 1}, false, true},   // a stem, written in place
           Problem{{5, 16, 32, 6, 5, 3, 2, 1}, true, true},   // between stages
           Problem{{5, 2, 4, 5, 6, 3, 1, 1}, true, false},    // groups, the last not full
           Problem{{2, 1, 1, 1, 1, 1, 1, 1}, false, true},    // one pixel, one channel
           Problem{{19, 5, 3, 7, 4, 1, 2, 1}, false, false},  // several chunks
       }) {
    const Expected wanted(problem);
    for (const Layout x : {Layout::contiguous, Layout::channels_last, Layout::gaps})
      for (const Layout out : {Layout::contiguous, Layout::channels_last, Layout::gaps})
        check_layouts<T>(problem, wanted, x, out);
  }
}

DA2S_TEST(conv_norm_of_float) { check_type<float>(); }
DA2S_TEST(conv_norm_of_double) { check_type<double>(); }

}  // namespace
}  // namespace da2s_fast::test

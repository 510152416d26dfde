// Pools and their gradients against plain loops, with ties (the numbers are few) and NaN.
#include <cmath>

#include "pixels.h"

namespace da2s_fast::test {
namespace {

struct Pool {
  int64_t kernel, stride, padding;
  Size out_size(Size in) const {
    return {(in.height + 2 * padding - kernel) / stride + 1,
            (in.width + 2 * padding - kernel) / stride + 1};
  }
};

template <class T>
struct Case {
  Case(const Pool& pool, Size size, bool with_nan)
      : pool(pool),
        x(size, 2 * vector_lanes<T>(), numbers, {3, 7}),
        g(pool.out_size(size), x.lanes(), numbers, {5, 7}),
        out(g.size(), x.lanes(), {2, 7}),
        dx(size, x.lanes(), numbers, {4, 7}) {
    if (!with_nan) return;
    x.at(0, 0, 0) = NAN;
    x.at(size.height / 2, size.width / 2, 1) = NAN;
    x.at(size.height / 2, size.width - 1, 1) = NAN;
  }

  // Calls visit(row, pixel) for the cells of an output's window, in row-major order.
  template <class Visit>
  void for_window(int64_t y, int64_t column, Visit visit) const {
    for (int64_t cell = 0; cell < pool.kernel * pool.kernel; ++cell) {
      const int64_t row = y * pool.stride - pool.padding + cell / pool.kernel;
      const int64_t pixel = column * pool.stride - pool.padding + cell % pool.kernel;
      if (x.holds(row, pixel)) visit(row, pixel);
    }
  }

  Sum& sum_at(std::vector<Sum>& sums, int64_t row, int64_t pixel, int64_t lane) const {
    return sums[(row * x.size().width + pixel) * x.lanes() + lane];
  }
  std::vector<Sum> sums_before() const {
    std::vector<Sum> sums;
    dx.for_each([&](int64_t y, int64_t column, int64_t lane) {
      sums.emplace_back();
      sums.back().add(dx.at(y, column, lane));
    });
    return sums;
  }
  void check_gradient(const std::vector<Sum>& wanted) const {
    auto next = wanted.begin();
    dx.for_each([&](int64_t y, int64_t column, int64_t lane) {
      DA2S_CHECK_CLOSE(T, dx.at(y, column, lane), *next++);
    });
    DA2S_CHECK(dx.is_intact());
  }

  Numbers numbers;
  Pool pool;
  Pixels<T> x, g, out, dx;
};

template <class T>
void check_max(const Pool& pool, Size size, bool with_nan) {
  Case<T> c(pool, size, with_nan);
  DA2S_SIMD_CALL(max_pool<T>, c.x.grid(), size, pool.kernel, pool.stride, pool.padding, c.x.lanes(),
                 c.out.grid(), c.out.size());
  std::vector<Sum> wanted = c.sums_before();
  c.out.for_each([&](int64_t y, int64_t column, int64_t lane) {
    int64_t row = -1, pixel = -1;
    c.for_window(y, column, [&](int64_t at, int64_t cell) {
      const T value = c.x.at(at, cell, lane);
      if (row >= 0 && value <= c.x.at(row, pixel, lane)) return;
      if (row >= 0 && std::isnan(c.x.at(row, pixel, lane)) && !std::isnan(value)) return;
      row = at;
      pixel = cell;
    });
    const T most = c.x.at(row, pixel, lane), found = c.out.at(y, column, lane);
    DA2S_CHECK(found == most || (std::isnan(found) && std::isnan(most)));
    c.sum_at(wanted, row, pixel, lane).add(c.g.at(y, column, lane));
  });
  if (!with_nan) DA2S_CHECK(c.out.is_intact());
  DA2S_SIMD_CALL(max_pool_gradient<T>, c.x.grid(), size, pool.kernel, pool.stride, pool.padding,
                 c.x.lanes(), c.g.grid(), c.g.size(), c.dx.grid());
  c.check_gradient(wanted);
}

template <class T>
void check_average(const Pool& pool, Size size) {
  Case<T> c(pool, size, false);
  DA2S_SIMD_CALL(average_pool<T>, c.x.grid(), size, pool.stride, c.x.lanes(), c.out.grid(),
                 c.out.size());
  std::vector<Sum> wanted = c.sums_before();
  c.out.for_each([&](int64_t y, int64_t column, int64_t lane) {
    int64_t cells = 0;
    c.for_window(y, column, [&](int64_t, int64_t) { ++cells; });
    Sum mean;
    c.for_window(y, column, [&](int64_t row, int64_t pixel) {
      mean.add(static_cast<double>(c.x.at(row, pixel, lane)) / cells);
      c.sum_at(wanted, row, pixel, lane).add(static_cast<double>(c.g.at(y, column, lane)) / cells);
    });
    DA2S_CHECK_CLOSE(T, c.out.at(y, column, lane), mean);
  });
  DA2S_CHECK(c.out.is_intact());
  DA2S_SIMD_CALL(average_pool_gradient<T>, size, pool.stride, c.x.lanes(), c.g.grid(), c.g.size(),
                 c.dx.grid());
  c.check_gradient(wanted);
}

template <class T>
void check_type() {
  for (const Size& size : {Size{1, 1}, Size{2, 5}, Size{7, 6}}) {
    for (const int64_t stride : {1, 2}) {
      check_max<T>({3, stride, 1}, size, false);
      check_max<T>({3, stride, 1}, size, true);
      check_average<T>({3, stride, 1}, size);
    }
    if (size.height > 1) check_max<T>({2, 2, 0}, size, false);
  }
}

DA2S_TEST(pools_of_float) { check_type<float>(); }
DA2S_TEST(pools_of_double) { check_type<double>(); }

}  // namespace
}  // namespace da2s_fast::test

// Norms, mixing and sums of a cell against plain loops.
#include <list>

#include "pixels.h"

namespace da2s_fast::test {
namespace {

constexpr Size kSize = {5, 13};  // two runs of pixels, one of them odd

template <class T>
struct Case {
  explicit Case(int64_t vectors)
      : lanes(vectors * vector_lanes<T>()),
        z(kSize, lanes, numbers),
        g(kSize, lanes, numbers, {3, 7}),
        apart(kSize, lanes, numbers, {3, 0}),
        out(kSize, lanes, numbers, {5, 7}),
        dense(kSize, lanes, numbers),
        scale(lanes, numbers),
        mean(lanes, numbers),
        shift(lanes, numbers),
        slope(lanes, numbers) {}

  // Calls run, then checks `result` against wanted(row, pixel, lane, sum), called before.
  template <class Wanted, class Run>
  void check(Pixels<T>& result, Wanted wanted, Run run) {
    std::vector<Sum> sums;
    result.for_each([&](int64_t y, int64_t x, int64_t lane) {
      sums.emplace_back();
      wanted(y, x, lane, sums.back());
    });
    run();
    auto next = sums.begin();
    result.for_each([&](int64_t y, int64_t x, int64_t lane) {
      DA2S_CHECK_CLOSE(T, result.at(y, x, lane), *next++);
    });
    DA2S_CHECK(result.is_intact());
  }

  // The same for numbers per lane that `term` adds up to 0.5.
  template <class Term>
  void check_lanes(const Buffer<double>& computed, Term term) {
    for (int64_t lane = 0; lane < lanes; ++lane) {
      Sum sum;
      sum.add(0.5);
      for (int64_t y = 0; y < kSize.height; ++y)
        for (int64_t x = 0; x < kSize.width; ++x) sum.add(term(y, x, lane));
      DA2S_CHECK_CLOSE(T, computed[lane], sum);
    }
  }

  Numbers numbers;
  int64_t lanes;
  Pixels<T> z, g, apart, out, dense;
  Buffer<T> scale, mean, shift, slope;
};

template <class T>
void check_sums(Case<T>& c) {
  Buffer<double> first(c.lanes, 0.5), second(c.lanes, 0.5);
  DA2S_SIMD_CALL(moments<T>, c.z.grid().data, kSize.pixels(), c.lanes, c.mean.data(), first.data(),
                 second.data());
  const auto deviation = [&](int64_t y, int64_t x, int64_t lane) {
    return static_cast<double>(c.z.at(y, x, lane)) - c.mean[lane];
  };
  c.check_lanes(first, deviation);
  c.check_lanes(second, [&](int64_t y, int64_t x, int64_t lane) {
    return deviation(y, x, lane) * deviation(y, x, lane);
  });

  Buffer<double> total(c.lanes, 0.5);
  DA2S_SIMD_CALL(lane_sums<T>, c.apart.grid(), kSize.pixels(), c.lanes, total.data());
  c.check_lanes(total, [&](int64_t y, int64_t x, int64_t lane) { return c.apart.at(y, x, lane); });

  // More factors than one pass of the kernel takes, each with products of its own.
  for (int64_t count = 1; count <= 5; ++count) {
    std::list<Buffer<double>> products;
    std::vector<Factor<T>> factors;
    for (int64_t i = 0; i < count; ++i) {
      products.emplace_back(c.lanes, 0.5);
      factors.push_back({(i % 2 ? c.apart : c.z).grid(), i % 3 ? nullptr : c.mean.data(),
                         products.back().data()});
    }
    DA2S_SIMD_CALL(lane_products<T>, c.g.grid(), factors.data(), count, kSize, c.lanes);
    for (int64_t i = 0; const Buffer<double>& found : products) {
      const Pixels<T>& z = i % 2 ? c.apart : c.z;
      const bool centred = i++ % 3 == 0;
      c.check_lanes(found, [&](int64_t y, int64_t x, int64_t lane) {
        return c.g.at(y, x, lane) *
               (static_cast<double>(z.at(y, x, lane)) - (centred ? c.mean[lane] : 0));
      });
    }
  }
}

// Up to five parts, more than one pass of the kernel takes; what was in out must not matter.
template <class T>
void check_weighed(Case<T>& c) {
  for (int64_t count = 1; count <= 5; ++count) {
    std::list<Buffer<double>> products;
    std::vector<Weighed<T>> parts;
    for (int64_t i = 0; i < count; ++i) {
      products.emplace_back(c.lanes, 0.5);
      parts.push_back(
          {(i % 2 ? c.apart : c.g).grid(), static_cast<T>(i - 1.5), products.back().data()});
    }
    c.check(
        c.out,
        [&](int64_t y, int64_t x, int64_t lane, Sum& sum) {
          for (int64_t i = 0; i < count; ++i)
            sum.add((i - 1.5) * (i % 2 ? c.apart : c.g).at(y, x, lane));
        },
        [&] {
          DA2S_SIMD_CALL(weighed_gradient<T>, c.z.grid(), parts.data(), count, kSize, c.lanes,
                         c.out.grid());
        });
    for (int64_t i = 0; const Buffer<double>& found : products) {
      const Pixels<T>& g = i++ % 2 ? c.apart : c.g;
      c.check_lanes(found, [&](int64_t y, int64_t x, int64_t lane) {
        return static_cast<double>(g.at(y, x, lane)) * c.z.at(y, x, lane);
      });
    }
  }
}

template <class T>
void check_maps(Case<T>& c) {
  const auto scaled = [&](const Pixels<T>& z, int64_t y, int64_t x, int64_t lane, Sum& sum) {
    sum.add(static_cast<double>(c.scale[lane]) * z.at(y, x, lane));
    sum.add(static_cast<double>(c.scale[lane]) * -c.mean[lane]);
  };
  for (const bool add : {false, true})
    for (int64_t count = 1; count <= 5; ++count) {
      std::vector<Mixed<T>> parts;
      for (int64_t i = 0; i < count; ++i)
        parts.push_back({(i % 2 ? c.z : c.g).grid(), (i % 2 ? c.slope : c.scale).data(),
                         i % 3 ? nullptr : c.mean.data()});
      c.check(
          c.out,
          [&](int64_t y, int64_t x, int64_t lane, Sum& sum) {
            if (add) sum.add(c.out.at(y, x, lane));
            for (int64_t i = 0; i < count; ++i) {
              const double factor = (i % 2 ? c.slope : c.scale)[lane];
              sum.add(factor * (i % 2 ? c.z : c.g).at(y, x, lane));
              if (i % 3 == 0) sum.add(factor * -c.mean[lane]);
            }
          },
          [&] { DA2S_SIMD_CALL(mix<T>, parts.data(), count, kSize, c.lanes, add, c.out.grid()); });
    }
  c.check(
      c.dense,
      [&](int64_t y, int64_t x, int64_t lane, Sum& sum) {
        const double factor = c.scale[lane], slope = c.slope[lane];
        sum.add(factor * c.apart.at(y, x, lane));
        sum.add(factor * -c.shift[lane]);
        sum.add(factor * slope * -c.z.at(y, x, lane));
        sum.add(factor * slope * c.mean[lane]);
      },
      [&] {
        const NormGradient<T> norm{c.scale.data(), c.mean.data(), c.shift.data(), c.slope.data()};
        DA2S_SIMD_CALL(norm_gradient<T>, c.apart.grid(), c.z.grid().data, kSize.pixels(), c.lanes,
                       norm, c.dense.grid().data);
      });
  for (const bool with_relu : {false, true})
    c.check(
        c.out,
        [&](int64_t y, int64_t x, int64_t lane, Sum& sum) {
          scaled(c.g, y, x, lane, sum);
          if (with_relu && sum.value < 0) sum.value = 0;
        },
        [&] {
          DA2S_SIMD_CALL(normalize<T>, c.g.grid(), kSize, c.lanes, c.scale.data(), c.mean.data(),
                         with_relu, c.out.grid());
        });
  // Into other memory, and in place.
  for (Pixels<T>* from : {&c.g, &c.out})
    c.check(
        c.out,
        [&](int64_t y, int64_t x, int64_t lane, Sum& sum) {
          scaled(*from, y, x, lane, sum);
          sum.add(c.shift[lane]);
        },
        [&] {
          DA2S_SIMD_CALL(affine<T>, from->grid(), kSize, c.lanes, c.scale.data(), c.mean.data(),
                         c.shift.data(), c.out.grid());
        });
  c.check(
      c.out,
      [&](int64_t y, int64_t x, int64_t lane, Sum& sum) {
        sum.add(c.out.at(y, x, lane));
        sum.add(c.g.at(y, x, lane));
      },
      [&] { DA2S_SIMD_CALL(add<T>, c.g.grid(), kSize, c.lanes, c.out.grid()); });
  for (const bool add : {false, true})
    c.check(
        c.out,
        [&](int64_t y, int64_t x, int64_t lane, Sum& sum) {
          if (add) sum.add(c.out.at(y, x, lane));
          if (c.g.at(y, x, lane) > 0) sum.add(c.z.at(y, x, lane));
        },
        [&] {
          DA2S_SIMD_CALL(mask<T>, c.g.grid(), c.z.grid(), kSize, c.lanes, add, c.out.grid());
        });
}

// A mask with the sums of what it lets through; `dense` is where vectors are.
template <class T>
void check_mask_and_sum(Case<T>& c) {
  for (const bool streaming : {false, true}) {
    Buffer<double> sums(c.lanes, 0.5), products(c.lanes, 0.5);
    const auto kept = [&](int64_t y, int64_t x, int64_t lane) {
      return c.g.at(y, x, lane) > 0 ? static_cast<double>(c.apart.at(y, x, lane)) : 0;
    };
    c.check(
        c.dense, [&](int64_t y, int64_t x, int64_t lane, Sum& sum) { sum.add(kept(y, x, lane)); },
        [&] {
          DA2S_SIMD_CALL(mask_and_sum<T>, c.g.grid(), c.apart.grid(), c.z.grid(), c.mean.data(),
                         kSize, c.lanes, streaming, c.dense.grid(), sums.data(), products.data());
        });
    c.check_lanes(sums, kept);
    c.check_lanes(products, [&](int64_t y, int64_t x, int64_t lane) {
      return kept(y, x, lane) * (static_cast<double>(c.z.at(y, x, lane)) - c.mean[lane]);
    });
  }
}

template <class T>
void check_type() {
  for (const int64_t vectors : {1, 3}) {
    Case<T> given(vectors);
    check_sums(given);
    check_weighed(given);
    check_maps(given);
    check_mask_and_sum(given);
  }
}

DA2S_TEST(elementwise_of_float) { check_type<float>(); }
DA2S_TEST(elementwise_of_double) { check_type<double>(); }

}  // namespace
}  // namespace da2s_fast::test

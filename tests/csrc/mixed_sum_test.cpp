// The loops of mixed_sum against plain ones, on tensors cut into blocks as the operator cuts them.
#include "cpu/mixed_sum.h"

#include "buffers.h"
#include "check.h"

namespace da2s_fast::test {
namespace {

struct Shape {
  int64_t images, channels, pixels;
  bool channels_last;

  int64_t elements() const { return images * channels * pixels; }
  int64_t index(int64_t n, int64_t c, int64_t p) const {
    return channels_last ? (n * pixels + p) * channels + c : (n * channels + c) * pixels + p;
  }
};

// Odd sizes, one channel and one pixel, rows longer than a block, channels that are repeated to
// fill a row and channels that are too many for that.
constexpr Shape kShapes[] = {
    {1, 1, 1, false}, {2, 3, 31, false},  {9, 2, 1, false},  {3, 2, 4101, false},
    {2, 3, 35, true}, {1, 65, 129, true}, {3, 33, 50, true}, {5, 16, 257, true},
};
constexpr int64_t kInputs = 3;

template <class T, class Visit>
void for_each_element(const Shape& shape, Visit visit) {
  for (int64_t c = 0; c < shape.channels; ++c)
    for (int64_t n = 0; n < shape.images; ++n)
      for (int64_t p = 0; p < shape.pixels; ++p) visit(c, shape.index(n, c, p));
}

// Rounding of what the kernels compute and then store.
template <class T>
double stored_rounding() {
  return sizeof(T) == 2 ? (std::is_same_v<T, BFloat16> ? 0x1p-8 : 0x1p-11) / 16
                        : kRounding<compute_t<T>>;
}

template <class T>
struct Case {
  using A = compute_t<T>;

  explicit Case(const Shape& shape)
      : shape(shape),
        blocks(shape.images, shape.channels, shape.pixels, shape.channels_last),
        y0(shape.elements(), numbers),
        y1(shape.elements(), numbers),
        y2(shape.elements(), numbers),
        g(shape.elements(), numbers),
        scale(kInputs * blocks.columns(), numbers),
        shift(kInputs * blocks.columns(), numbers),
        mean_g(blocks.columns(), numbers),
        slope(blocks.columns(), numbers) {
    const int64_t columns = blocks.columns();
    for (Buffer<A>* buffer : {&scale, &shift, &mean_g, &slope})
      for (int64_t i = 0; i < buffer->size(); ++i)
        (*buffer)[i] = (*buffer)[i / columns * columns + i % columns % shape.channels];
  }

  // Calls work(block, column, slot) for all blocks, on threads.
  template <class Work>
  void run(Work work) const {
    in_threads(blocks.tasks(), [&](int64_t task) {
      work(blocks.block(task), blocks.column(task), blocks.slot(task));
    });
  }

  Numbers numbers;
  Shape shape;
  Blocks blocks;
  Buffer<T> y0, y1, y2, g;
  Buffer<A> scale, shift, mean_g, slope;
};

// A channel's sums over its blocks.
double channel_total(const Blocks& blocks, const Buffer<double>& sums, int64_t channel) {
  double total = 0;
  for (int64_t q = 0; q < blocks.count(); ++q) total += sums[q * blocks.channels() + channel];
  return total;
}

template <class T>
void check_moments(const Case<T>& given) {
  const Blocks& blocks = given.blocks;
  Buffer<double> means(blocks.count() * blocks.channels()), deviations(means.size());
  given.run([&](const Block& block, int64_t, int64_t slot) {
    DA2S_SIMD_CALL(block_moments, block, given.y0.data(), &means[slot], &deviations[slot]);
  });
  for (int64_t c = 0; c < blocks.channels(); ++c) {
    const double values = static_cast<double>(blocks.values_per_channel());
    Sum mean, squares;
    for_each_element<T>(given.shape, [&](int64_t channel, int64_t i) {
      if (channel == c) mean.add(number(given.y0[i]) / values);
    });
    for_each_element<T>(given.shape, [&](int64_t channel, int64_t i) {
      const double deviation = number(given.y0[i]) - mean.value;
      if (channel == c) squares.add(deviation * deviation);
    });
    squares.magnitude += 1;  // what cancels where all values are alike
    double merged_mean = 0, merged_squares = 0;
    for (int64_t q = 0; q < blocks.count(); ++q)
      merged_mean += means[q * blocks.channels() + c] * (blocks.values(q) / values);
    for (int64_t q = 0; q < blocks.count(); ++q) {
      const double step = means[q * blocks.channels() + c] - merged_mean;
      merged_squares += deviations[q * blocks.channels() + c] + step * step * blocks.values(q);
    }
    DA2S_CHECK_CLOSE(double, merged_mean, mean);
    DA2S_CHECK_CLOSE(double, merged_squares, squares);
  }
}

template <class T>
void check_sums(const Case<T>& given) {
  const Blocks& blocks = given.blocks;
  Buffer<double> totals(blocks.count() * blocks.channels()), dots(totals.size());
  given.run([&](const Block& block, int64_t column, int64_t slot) {
    DA2S_SIMD_CALL(block_total, block, given.g.data(), &totals[slot]);
    DA2S_SIMD_CALL(block_dot, block, given.g.data(), given.y0.data(), &given.shift[column],
                   &dots[slot]);
  });
  for (int64_t c = 0; c < blocks.channels(); ++c) {
    Sum total, dot;
    for_each_element<T>(given.shape, [&](int64_t channel, int64_t i) {
      if (channel != c) return;
      total.add(number(given.g[i]));
      dot.add(number(given.g[i]) * (number(given.y0[i]) - number(given.shift[c])));
    });
    DA2S_CHECK_CLOSE(double, channel_total(blocks, totals, c), total);
    DA2S_CHECK_CLOSE(double, channel_total(blocks, dots, c), dot);
  }
}

template <class T>
void check_elements(const Case<T>& given) {
  const int64_t columns = given.blocks.columns();
  const T* ys[] = {given.y0.data(), given.y1.data(), given.y2.data()};
  const T* g = given.g.data();
  Buffer<T> sum(given.shape.elements()), scaled(sum.size()), gradient(sum.size());
  given.run([&](const Block& block, int64_t column, int64_t) {
    DA2S_SIMD_CALL(block_sum, block, ys, kInputs, &given.scale[column], &given.shift[column],
                   columns, sum.data());
    DA2S_SIMD_CALL(block_scale, block, g, &given.scale[column], scaled.data());
    DA2S_SIMD_CALL(block_norm_gradient, block, g, ys[0], &given.scale[column],
                   &given.mean_g[column], &given.slope[column], &given.shift[column],
                   gradient.data());
  });
  for_each_element<T>(given.shape, [&](int64_t c, int64_t i) {
    const auto at = [&](const auto& buffer, int64_t k) { return number(buffer[k * columns + c]); };
    Sum mixed, product, through;
    for (int64_t k = 0; k < kInputs; ++k) {
      mixed.add(at(given.scale, k) * number(ys[k][i]));
      mixed.add(at(given.scale, k) * -at(given.shift, k));
    }
    product.add(at(given.scale, 0) * number(g[i]));
    through.add(at(given.scale, 0) * (number(g[i]) - at(given.mean_g, 0)));
    through.add(-at(given.scale, 0) * at(given.slope, 0) * number(ys[0][i]));
    through.add(at(given.scale, 0) * at(given.slope, 0) * at(given.shift, 0));
    const double rounding = stored_rounding<T>();
    check_close(number(sum[i]), mixed, rounding, "block_sum", __FILE__, __LINE__);
    check_close(number(scaled[i]), product, rounding, "block_scale", __FILE__, __LINE__);
    check_close(number(gradient[i]), through, rounding, "norm_gradient", __FILE__, __LINE__);
  });
}

template <class T>
void check_type() {
  for (const Shape& shape : kShapes) {
    const Case<T> given(shape);
    check_moments(given);
    check_sums(given);
    check_elements(given);
  }
}

DA2S_TEST(mixed_sum_of_float) { check_type<float>(); }
DA2S_TEST(mixed_sum_of_double) { check_type<double>(); }
DA2S_TEST(mixed_sum_of_bfloat16) { check_type<BFloat16>(); }
DA2S_TEST(mixed_sum_of_float16) { check_type<Float16>(); }

}  // namespace
}  // namespace da2s_fast::test

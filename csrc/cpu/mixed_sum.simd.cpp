#include "mixed_sum.h"

#include <cstring>
#include <type_traits>

#include "convert.h"

namespace da2s_fast::DA2S_ISA {
namespace {

// Elements taken through all inputs at once; intermediate results stay in the first cache.
constexpr int64_t kChunk = 256;

typedef double Double4 __attribute__((vector_size(4 * sizeof(double))));
// Sums in flight: an addition does not wait for the one before.
constexpr int64_t kLanes = 4;

// The number at p, or the four from there on, in double.
template <class T>
DA2S_INLINE void read(const T* p, double& value) {
  value = load(*p);
}

template <class T>
DA2S_INLINE void read(const T* p, Double4& values) {
  compute_t<T> four[4];
  for (int j = 0; j < 4; ++j) four[j] = load(p[j]);
  typedef compute_t<T> Four __attribute__((vector_size(4 * sizeof(compute_t<T>))));
  Four loaded;
  std::memcpy(&loaded, four, sizeof loaded);
  values = __builtin_convertvector(loaded, Double4);
}

// Calls chunk(its first element, that one's column, its length) over a block.
template <bool Across, class Function>
DA2S_INLINE void for_each_chunk(const Block& block, int64_t size, Function chunk) {
  const int64_t row = Across ? block.period : block.length;
  for (int64_t run = 0; run < block.runs; ++run)
    for (int64_t start = 0; start < block.length; start += row) {
      const int64_t end = block.length - start < row ? block.length - start : row;
      for (int64_t i = 0; i < end; i += size)
        chunk(block.offset + run * block.stride + start + i, Across ? i : 0,
              end - i < size ? end - i : size);
    }
}

// sums = sum of term over a block, per channel. term(element, column, value) sets value, which is a
// double or, within a channel, four for as many elements.
template <bool Across, class Term>
DA2S_INLINE void accumulate(const Block& block, double* __restrict sums, Term term) {
  if constexpr (Across) {
    double repeated[kLongestPeriod];
    double* totals = block.period > block.channels ? repeated : sums;
    for (int64_t i = 0; i < block.period; ++i) totals[i] = 0;
    for_each_chunk<true>(block, block.period, [=](int64_t start, int64_t, int64_t length) {
      for (int64_t i = 0; i < length; ++i) {
        double value;
        term(start + i, i, value);
        totals[i] += value;
      }
    });
    if (totals == sums) return;
    for (int64_t c = 0; c < block.channels; ++c) sums[c] = 0;
    for (int64_t i = 0; i < block.period; ++i) sums[i % block.channels] += totals[i];
  } else {
    Double4 lanes[kLanes] = {};
    double rest = 0;
    for_each_chunk<false>(block, block.length, [&](int64_t start, int64_t, int64_t length) {
      int64_t i = 0;
      for (; i + 4 * kLanes <= length; i += 4 * kLanes)
        for (int64_t lane = 0; lane < kLanes; ++lane) {
          Double4 values;
          term(start + i + 4 * lane, 0, values);
          lanes[lane] += values;
        }
      for (; i < length; ++i) {
        double value;
        term(start + i, 0, value);
        rest += value;
      }
    });
    const Double4 total = (lanes[0] + lanes[1]) + (lanes[2] + lanes[3]);
    sums[0] = (total[0] + total[1]) + (total[2] + total[3]) + rest;
  }
}

template <bool Across, class T>
DA2S_INLINE void moments(const Block& block, const T* y, double* mean, double* deviations) {
  accumulate<Across>(block, mean, [=](int64_t i, int64_t, auto& value) { read(y + i, value); });
  const int64_t values = block.runs * block.length / block.channels;
  for (int64_t c = 0; c < block.channels; ++c) mean[c] /= static_cast<double>(values);
  double repeated[kLongestPeriod];
  const double* means = mean;
  if (block.period > block.channels) {
    for (int64_t i = 0; i < block.period; ++i) repeated[i] = mean[i % block.channels];
    means = repeated;
  }
  accumulate<Across>(block, deviations, [=](int64_t i, int64_t column, auto& value) {
    read(y + i, value);
    value -= means[column];
    value *= value;
  });
}

template <bool Across, class T>
DA2S_INLINE void sum(const Block& block, const T* const* ys, int64_t inputs,
                     const compute_t<T>* scale, const compute_t<T>* shift, int64_t columns,
                     T* out) {
  for_each_chunk<Across>(block, kChunk, [=](int64_t start, int64_t column, int64_t length) {
    compute_t<T> total[kChunk];
    for (int64_t k = 0; k < inputs; ++k) {
      const T* y = ys[k] + start;
      const compute_t<T>* a = scale + k * columns + column;
      const compute_t<T>* m = shift + k * columns + column;
      if (k == 0) {
        for (int64_t i = 0; i < length; ++i)
          total[i] = a[Across ? i : 0] * (load(y[i]) - m[Across ? i : 0]);
      } else {
        for (int64_t i = 0; i < length; ++i)
          total[i] += a[Across ? i : 0] * (load(y[i]) - m[Across ? i : 0]);
      }
    }
    for (int64_t i = 0; i < length; ++i) store(total[i], out + start + i);
  });
}

// dy = function(element, column)
template <bool Across, class T, class Function>
DA2S_INLINE void write(const Block& block, T* __restrict dy, Function function) {
  for_each_chunk<Across>(block, block.length, [=](int64_t start, int64_t, int64_t length) {
    for (int64_t i = 0; i < length; ++i) store(function(start + i, Across ? i : 0), dy + start + i);
  });
}

}  // namespace

template <class T>
void block_moments(const Block& block, const T* y, double* mean, double* deviations) {
  block.period ? moments<true>(block, y, mean, deviations)
               : moments<false>(block, y, mean, deviations);
}

template <class T>
void block_sum(const Block& block, const T* const* ys, int64_t inputs, const compute_t<T>* scale,
               const compute_t<T>* shift, int64_t columns, T* out) {
  block.period ? sum<true>(block, ys, inputs, scale, shift, columns, out)
               : sum<false>(block, ys, inputs, scale, shift, columns, out);
}

template <class T>
void block_total(const Block& block, const T* g, double* sum_g) {
  const auto term = [=](int64_t i, int64_t, auto& value) { read(g + i, value); };
  block.period ? accumulate<true>(block, sum_g, term) : accumulate<false>(block, sum_g, term);
}

template <class T>
void block_dot(const Block& block, const T* g, const T* y, const compute_t<T>* shift, double* dot) {
  const auto term = [=](int64_t i, int64_t column, auto& value) {
    std::remove_reference_t<decltype(value)> factor;
    read(g + i, factor);
    read(y + i, value);
    value = factor * (value - double{shift[column]});
  };
  block.period ? accumulate<true>(block, dot, term) : accumulate<false>(block, dot, term);
}

template <class T>
void block_scale(const Block& block, const T* g, const compute_t<T>* scale, T* dy) {
  const auto product = [=](int64_t i, int64_t c) { return scale[c] * load(g[i]); };
  block.period ? write<true>(block, dy, product) : write<false>(block, dy, product);
}

template <class T>
void block_norm_gradient(const Block& block, const T* g, const T* y, const compute_t<T>* scale,
                         const compute_t<T>* mean_g, const compute_t<T>* slope,
                         const compute_t<T>* shift, T* dy) {
  const auto gradient = [=](int64_t i, int64_t c) {
    return scale[c] * ((load(g[i]) - mean_g[c]) - slope[c] * (load(y[i]) - shift[c]));
  };
  block.period ? write<true>(block, dy, gradient) : write<false>(block, dy, gradient);
}

#define DA2S_INSTANTIATE(T)                                                                        \
  template void block_moments(const Block&, const T*, double*, double*);                           \
  template void block_sum(const Block&, const T* const*, int64_t, const compute_t<T>*,             \
                          const compute_t<T>*, int64_t, T*);                                       \
  template void block_total(const Block&, const T*, double*);                                      \
  template void block_dot(const Block&, const T*, const T*, const compute_t<T>*, double*);         \
  template void block_scale(const Block&, const T*, const compute_t<T>*, T*);                      \
  template void block_norm_gradient(const Block&, const T*, const T*, const compute_t<T>*,         \
                                    const compute_t<T>*, const compute_t<T>*, const compute_t<T>*, \
                                    T*);

DA2S_INSTANTIATE(float)
DA2S_INSTANTIATE(double)
DA2S_INSTANTIATE(BFloat16)
DA2S_INSTANTIATE(Float16)

}  // namespace da2s_fast::DA2S_ISA

#include "mixed_sum.h"

#include "convert.h"

namespace da2s_fast::DA2S_ISA {
namespace {

// Elements taken through all inputs at once; intermediate results stay in the first cache.
constexpr int64_t kChunk = 256;
// Partial sums a run is spread over, so that additions need not wait for each other.
constexpr int64_t kLanes = 64;

// Calls chunk(offset of its first element, its channel's index, its length) over a block.
template <bool Across, class Function>
DA2S_INLINE void for_each_chunk(const Block& block, int64_t size, Function chunk) {
  for (int64_t run = 0; run < block.runs; ++run) {
    const int64_t start = block.offset + run * block.stride;
    for (int64_t i = 0; i < block.length; i += size)
      chunk(start + i, Across ? i : 0, block.length - i < size ? block.length - i : size);
  }
}

// sums[c] = sum of term(element, channel) over a block.
template <bool Across, class Term>
DA2S_INLINE void accumulate(const Block& block, double* __restrict sums, Term term) {
  if constexpr (Across) {
    for (int64_t c = 0; c < block.length; ++c) sums[c] = 0;
    for_each_chunk<true>(block, block.length, [&](int64_t start, int64_t, int64_t length) {
      for (int64_t c = 0; c < length; ++c) sums[c] += term(start + c, c);
    });
  } else {
    double lanes[kLanes] = {};
    for_each_chunk<false>(block, kLanes, [&](int64_t start, int64_t, int64_t length) {
      for (int64_t i = 0; i < length; ++i) lanes[i] += term(start + i, 0);
    });
    double sum = 0;
    for (int64_t i = 0; i < kLanes; ++i) sum += lanes[i];
    sums[0] = sum;
  }
}

template <bool Across, class T>
DA2S_INLINE void moments(const Block& block, const T* y, double* mean, double* deviations) {
  accumulate<Across>(block, mean, [=](int64_t i, int64_t) { return double{load(y[i])}; });
  const int64_t values = Across ? block.runs : block.runs * block.length;
  for (int64_t c = 0; c < (Across ? block.length : 1); ++c) mean[c] /= static_cast<double>(values);
  accumulate<Across>(block, deviations, [=](int64_t i, int64_t c) {
    const double deviation = double{load(y[i])} - mean[c];
    return deviation * deviation;
  });
}

template <bool Across, class T>
DA2S_INLINE void sum(const Block& block, const T* const* ys, int64_t inputs,
                     const compute_t<T>* scale, const compute_t<T>* shift, int64_t channels,
                     T* out) {
  for_each_chunk<Across>(block, kChunk, [=](int64_t start, int64_t channel, int64_t length) {
    compute_t<T> total[kChunk];
    for (int64_t k = 0; k < inputs; ++k) {
      const T* y = ys[k] + start;
      const compute_t<T>* a = scale + k * channels + channel;
      const compute_t<T>* m = shift + k * channels + channel;
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

// dy = function(element, channel)
template <bool Across, class T, class Function>
DA2S_INLINE void write(const Block& block, T* __restrict dy, Function function) {
  for_each_chunk<Across>(block, block.length, [=](int64_t start, int64_t, int64_t length) {
    for (int64_t i = 0; i < length; ++i) store(function(start + i, Across ? i : 0), dy + start + i);
  });
}

}  // namespace

template <class T>
void block_moments(const Block& block, const T* y, double* mean, double* deviations) {
  block.across ? moments<true>(block, y, mean, deviations)
               : moments<false>(block, y, mean, deviations);
}

template <class T>
void block_sum(const Block& block, const T* const* ys, int64_t inputs, const compute_t<T>* scale,
               const compute_t<T>* shift, int64_t channels, T* out) {
  block.across ? sum<true>(block, ys, inputs, scale, shift, channels, out)
               : sum<false>(block, ys, inputs, scale, shift, channels, out);
}

template <class T>
void block_total(const Block& block, const T* g, double* sum_g) {
  const auto term = [=](int64_t i, int64_t) { return double{load(g[i])}; };
  block.across ? accumulate<true>(block, sum_g, term) : accumulate<false>(block, sum_g, term);
}

template <class T>
void block_dot(const Block& block, const T* g, const T* y, const compute_t<T>* shift, double* dot) {
  const auto term = [=](int64_t i, int64_t c) {
    return double{load(g[i])} * (double{load(y[i])} - double{shift[c]});
  };
  block.across ? accumulate<true>(block, dot, term) : accumulate<false>(block, dot, term);
}

template <class T>
void block_scale(const Block& block, const T* g, const compute_t<T>* scale, T* dy) {
  const auto product = [=](int64_t i, int64_t c) { return scale[c] * load(g[i]); };
  block.across ? write<true>(block, dy, product) : write<false>(block, dy, product);
}

template <class T>
void block_norm_gradient(const Block& block, const T* g, const T* y, const compute_t<T>* scale,
                         const compute_t<T>* mean_g, const compute_t<T>* slope,
                         const compute_t<T>* shift, T* dy) {
  const auto gradient = [=](int64_t i, int64_t c) {
    return scale[c] * ((load(g[i]) - mean_g[c]) - slope[c] * (load(y[i]) - shift[c]));
  };
  block.across ? write<true>(block, dy, gradient) : write<false>(block, dy, gradient);
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

// mixed_sum on CPUs: da2s_fast/ops/mixed_sum.py defines the operators and says what they compute.
#include "mixed_sum.h"

#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/util/Exception.h>

#include <algorithm>
#include <cmath>
#include <tuple>
#include <vector>

#include "operators.h"
#include "tensors.h"

namespace da2s_fast {
namespace {

enum Mode : int64_t { kNone, kBatch, kRunning };

// The shape, layout and blocks of one call's tensors.
struct Geometry {
  explicit Geometry(const std::vector<Tensor>& inputs, bool normalizes)
      : channels_last(is_channels_last(inputs[0])),
        channels(normalizes ? inputs[0].size(1) : 1),
        blocks(normalizes ? inputs[0].size(0) : 1, channels,
               inputs[0].numel() / (normalizes ? inputs[0].size(0) * channels : 1),
               normalizes && channels_last) {}

  bool channels_last;
  int64_t channels;  // 1 where nothing is normalized: channels do not matter then
  Blocks blocks;
};

void check(const std::vector<Tensor>& inputs, const Tensor& weights,
           const std::vector<int64_t>& modes, const std::vector<double>& eps) {
  STD_TORCH_CHECK(!inputs.empty(), "mixed_sum needs inputs");
  for (const Tensor& y : inputs) check_like(y, inputs[0], "mixed_sum's inputs");
  STD_TORCH_CHECK(inputs[0].numel() > 0, "mixed_sum's inputs are empty");
  const size_t count = inputs.size();
  STD_TORCH_CHECK(weights.dim() == 1 && weights.numel() == static_cast<int64_t>(count) &&
                      modes.size() == count && eps.size() == count,
                  "mixed_sum needs one weight, mode and eps per input");
  check_dtype(weights, compute_dtype(inputs[0]), "mixed_sum's weights");
  for (const int64_t mode : modes)
    STD_TORCH_CHECK(mode == kNone || ((mode == kBatch || mode == kRunning) && inputs[0].dim() >= 2),
                    "mixed_sum knows no mode ", mode, " for ", inputs[0].dim(), " dimensions");
}

int64_t count_normalized(const std::vector<int64_t>& modes) {
  return std::count_if(modes.begin(), modes.end(), [](int64_t mode) { return mode != kNone; });
}

// Mean and variance of every channel, blocks merged in order (Chan, Golub, LeVeque 1979).
template <class T>
void batch_statistics(const Blocks& blocks, const T* y, compute_t<T>* mean,
                      compute_t<T>* variance) {
  const int64_t channels = blocks.channels();
  std::vector<double> means(blocks.count() * channels), deviations(means.size());
  torch::stable::parallel_for(0, blocks.tasks(), blocks.grain(1), [&](int64_t begin, int64_t end) {
    for (int64_t task = begin; task < end; ++task) {
      const int64_t slot = blocks.slot(task);
      DA2S_SIMD_CALL(block_moments, blocks.block(task), y, &means[slot], &deviations[slot]);
    }
  });
  for (int64_t c = 0; c < channels; ++c) {
    double total_mean = 0, total_deviations = 0;
    int64_t total = 0;
    for (int64_t q = 0; q < blocks.count(); ++q) {
      const int64_t values = blocks.values(q);
      const double step = means[q * channels + c] - total_mean;
      const double share = static_cast<double>(values) / static_cast<double>(total + values);
      total_mean += step * share;
      total_deviations += deviations[q * channels + c] + step * step * share * total;
      total += values;
    }
    mean[c] = static_cast<compute_t<T>>(total_mean);
    variance[c] = static_cast<compute_t<T>>(total_deviations / total);
  }
}

// For every input and channel: what is subtracted, and the factor that normalizes. 0 and 1 for
// inputs that are not normalized.
template <class A>
struct Coefficients {
  Coefficients(int64_t channels, const std::vector<int64_t>& modes, const std::vector<double>& eps,
               const A* mean, const A* variance)
      : shift(modes.size() * channels), rstd(shift.size(), 1) {
    for (size_t k = 0; k < modes.size(); ++k) {
      if (modes[k] == kNone) continue;
      for (int64_t c = 0; c < channels; ++c) {
        shift[k * channels + c] = *mean++;
        rstd[k * channels + c] = 1 / std::sqrt(double{*variance++} + eps[k]);
      }
    }
  }

  std::vector<A> shift;
  std::vector<double> rstd;
};

// Values per channel, of any number of inputs, as values per column of the blocks.
template <class A>
std::vector<A> to_columns(const Blocks& blocks, const std::vector<A>& values) {
  const int64_t channels = blocks.channels(), columns = blocks.columns();
  if (columns == channels) return values;
  std::vector<A> result(values.size() / channels * columns);
  for (size_t i = 0; i < result.size(); ++i)
    result[i] = values[i / columns * channels + i % columns % channels];
  return result;
}

std::tuple<Tensor, Tensor, Tensor> mixed_sum(std::vector<Tensor> inputs, Tensor weights,
                                             std::vector<Tensor> running_means,
                                             std::vector<Tensor> running_vars,
                                             std::vector<int64_t> modes, std::vector<double> eps) {
  check(inputs, weights, modes, eps);
  const int64_t rows = count_normalized(modes);
  const Geometry geometry(inputs, rows > 0);
  const Blocks& blocks = geometry.blocks;
  const int64_t channels = geometry.channels;
  const size_t running = std::count(modes.begin(), modes.end(), kRunning);
  STD_TORCH_CHECK(running_means.size() == running && running_vars.size() == running,
                  "mixed_sum needs running statistics for the inputs of that mode");
  for (size_t i = 0; i < running; ++i)
    for (const Tensor& statistic : {running_means[i], running_vars[i]}) {
      check_dtype(statistic, weights.scalar_type(), "mixed_sum's running statistics");
      STD_TORCH_CHECK(statistic.numel() == channels, "mixed_sum's running statistics have ",
                      statistic.numel(), " values for ", channels, " channels");
    }

  Tensor out = empty(inputs[0], geometry.channels_last);
  Tensor mean = empty({rows, rows ? channels : 0}, weights.scalar_type());
  Tensor variance = empty({rows, rows ? channels : 0}, weights.scalar_type());
  dispatch(inputs[0], "mixed_sum", [&](auto element) {
    using T = decltype(element);
    using A = compute_t<T>;
    const Pointers<T> ys(inputs, geometry.channels_last);
    const Pointers<A> running_mean(running_means, false), running_var(running_vars, false);
    A* means = data<A>(mean);
    A* variances = data<A>(variance);
    for (size_t k = 0, row = 0, next = 0; k < modes.size(); ++k) {
      if (modes[k] == kNone) continue;
      if (modes[k] == kBatch) {
        batch_statistics(blocks, ys[k], means + row * channels, variances + row * channels);
      } else {
        std::copy_n(running_mean[next], channels, means + row * channels);
        std::copy_n(running_var[next++], channels, variances + row * channels);
      }
      ++row;
    }
    const Coefficients<A> coefficients(channels, modes, eps, means, variances);
    const Pointers<A> ws({weights}, false);
    const A* w = ws[0];
    std::vector<A> scale(coefficients.rstd.size());
    for (size_t i = 0; i < scale.size(); ++i) scale[i] = w[i / channels] * coefficients.rstd[i];
    scale = to_columns(blocks, scale);
    const std::vector<A> shift = to_columns(blocks, coefficients.shift);
    const int64_t count = inputs.size();
    torch::stable::parallel_for(
        0, blocks.tasks(), blocks.grain(count), [&](int64_t begin, int64_t end) {
          for (int64_t task = begin; task < end; ++task) {
            const int64_t column = blocks.column(task);
            DA2S_SIMD_CALL(block_sum, blocks.block(task), ys.data(), count, &scale[column],
                           &shift[column], blocks.columns(), data<T>(out));
          }
        });
  });
  return {out, mean, variance};
}

// Which sums over the gradient g one call needs: per channel sum g, and for inputs sum g (y -
// mean).
struct Sums {
  std::vector<bool> dot;
  bool total = false;
};

// One pass over g and the inputs; blocks are added in order.
template <class T>
std::tuple<std::vector<double>, std::vector<double>> gradient_sums(
    const Blocks& blocks, const T* g, const Pointers<T>& ys, const std::vector<compute_t<T>>& shift,
    const Sums& wanted) {
  const int64_t channels = blocks.channels(), inputs = wanted.dot.size();
  const int64_t size = blocks.count() * channels;
  std::vector<double> partial((inputs + 1) * size);
  torch::stable::parallel_for(
      0, blocks.tasks(), blocks.grain(inputs + 1), [&](int64_t begin, int64_t end) {
        for (int64_t task = begin; task < end; ++task) {
          const Block block = blocks.block(task);
          double* slot = &partial[blocks.slot(task)];
          for (int64_t k = 0; k < inputs; ++k)
            if (wanted.dot[k])
              DA2S_SIMD_CALL(block_dot, block, g, ys[k],
                             &shift[k * blocks.columns() + blocks.column(task)], slot + k * size);
          if (wanted.total) DA2S_SIMD_CALL(block_total, block, g, slot + inputs * size);
        }
      });
  std::vector<double> dots(inputs * channels), total(channels);
  for (int64_t k = 0; k <= inputs; ++k) {
    double* sums = k < inputs ? &dots[k * channels] : total.data();
    for (int64_t q = 0; q < blocks.count(); ++q)
      for (int64_t c = 0; c < channels; ++c) sums[c] += partial[k * size + q * channels + c];
  }
  return {std::move(dots), std::move(total)};
}

std::tuple<std::vector<Tensor>, Tensor> mixed_sum_backward(
    Tensor grad, std::vector<Tensor> inputs, Tensor weights, Tensor mean, Tensor variance,
    std::vector<int64_t> modes, std::vector<double> eps, std::vector<bool> input_mask,
    bool weights_mask) {
  check(inputs, weights, modes, eps);
  check_like(grad, inputs[0], "mixed_sum's gradient and inputs");
  STD_TORCH_CHECK(input_mask.size() == inputs.size(), "mixed_sum needs one mask per input");
  const int64_t rows = count_normalized(modes);
  const Geometry geometry(inputs, rows > 0);
  const Blocks& blocks = geometry.blocks;
  const int64_t channels = geometry.channels, count = inputs.size();
  for (const Tensor& statistic : {mean, variance}) {
    check_dtype(statistic, weights.scalar_type(), "mixed_sum's statistics");
    STD_TORCH_CHECK(statistic.numel() == rows * channels,
                    "mixed_sum needs a mean and a variance per normalized input and channel");
  }

  std::vector<Tensor> grad_inputs;
  for (int64_t k = 0; k < count; ++k)
    if (input_mask[k]) grad_inputs.push_back(empty(inputs[k], geometry.channels_last));
  Tensor grad_weights = empty({weights_mask ? count : 0}, weights.scalar_type());
  dispatch(inputs[0], "mixed_sum_backward", [&](auto element) {
    using T = decltype(element);
    using A = compute_t<T>;
    const Pointers<T> ys(inputs, geometry.channels_last);
    const Pointers<T> gs({grad}, geometry.channels_last);
    const T* g = gs[0];
    const Pointers<A> mean_data({mean}, false), variance_data({variance}, false);
    const Coefficients<A> coefficients(channels, modes, eps, mean_data[0], variance_data[0]);
    const std::vector<A> shift = to_columns(blocks, coefficients.shift);
    const std::vector<double>& rstd = coefficients.rstd;
    Sums wanted{std::vector<bool>(count, weights_mask)};
    for (int64_t k = 0; k < count; ++k) {
      const bool through_statistics = input_mask[k] && modes[k] == kBatch;
      if (through_statistics) wanted.dot[k] = wanted.total = true;
    }
    const auto [dots, total] = gradient_sums(blocks, g, ys, shift, wanted);
    for (int64_t k = 0; weights_mask && k < count; ++k) {
      double sum = 0;
      for (int64_t i = k * channels; i < (k + 1) * channels; ++i) sum += rstd[i] * dots[i];
      data<A>(grad_weights)[k] = static_cast<A>(sum);
    }
    const Pointers<A> ws({weights}, false);
    const A* w = ws[0];
    const double values = static_cast<double>(blocks.values_per_channel());
    std::vector<A> scale(rstd.size()), slope(rstd.size()), mean_g(channels);
    for (size_t i = 0; i < rstd.size(); ++i) {
      scale[i] = w[i / channels] * rstd[i];
      slope[i] = rstd[i] * rstd[i] * dots[i] / values;
    }
    for (int64_t c = 0; c < channels; ++c) mean_g[c] = total[c] / values;
    scale = to_columns(blocks, scale);
    slope = to_columns(blocks, slope);
    mean_g = to_columns(blocks, mean_g);
    std::vector<T*> dys;
    for (const Tensor& dy : grad_inputs) dys.push_back(data<T>(dy));
    if (dys.empty()) return;
    torch::stable::parallel_for(
        0, blocks.tasks(), blocks.grain(2 * dys.size()), [&](int64_t begin, int64_t end) {
          for (int64_t task = begin; task < end; ++task) {
            const Block block = blocks.block(task);
            const int64_t column = blocks.column(task);
            auto dy = dys.begin();
            for (int64_t k = 0; k < count; ++k) {
              if (!input_mask[k]) continue;
              const int64_t i = k * blocks.columns() + column;
              if (modes[k] == kBatch)
                DA2S_SIMD_CALL(block_norm_gradient, block, g, ys[k], &scale[i], &mean_g[column],
                               &slope[i], &shift[i], *dy++);
              else
                DA2S_SIMD_CALL(block_scale, block, g, &scale[i], *dy++);
            }
          }
        });
  });
  return {grad_inputs, grad_weights};
}

}  // namespace

void register_mixed_sum(torch::stable::detail::StableLibrary& library) {
  library.impl("mixed_sum", TORCH_BOX(&mixed_sum));
  library.impl("mixed_sum_backward", TORCH_BOX(&mixed_sum_backward));
}

}  // namespace da2s_fast

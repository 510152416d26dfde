// Whole cells: their numbers, and one forward and backward pass of the engine over them, with all
// memory that it is given exactly as large as it should be.
#pragma once

#include <memory>
#include <vector>

#include "../buffers.h"
#include "../check.h"
#include "cpu/cell/pass.h"

namespace da2s_fast::test {

struct CellCase {
  std::vector<int64_t> code;         // see plan.h
  std::vector<int64_t> in_channels;  // of the inputs, with their sizes
  std::vector<Size> sizes;
  int64_t batch;
  std::vector<int64_t> frozen = {};  // norms that use running statistics
  bool channels_last = false;
};

// Everything a cell computes with, in double.
struct CellValues {
  std::vector<std::vector<double>> inputs;
  std::vector<double> p, g;
  std::vector<double> weights;     // all of them, one after the other
  std::vector<double> gradient;    // of the output
  std::vector<double> statistics;  // of frozen norms
};

struct CellResults {
  std::vector<double> output;
  std::vector<std::vector<double>> inputs;
  std::vector<double> p, g, weights;
};

// Weights of the layers that take part, in the order of the list; the others have none.
inline std::vector<int64_t> weight_sizes(const Plan& plan) {
  std::vector<int64_t> sizes(plan.weight_count, 0);
  const auto add = [&](const Layer& layer) {
    const int64_t products = layer.in_channels * layer.out_channels;
    if (layer.separable) {
      sizes[layer.weight] = layer.in_channels * layer.taps();
      sizes[layer.weight + 1] = products;
    } else if (layer.halves) {
      sizes[layer.weight] = layer.out_channels / 2 * layer.in_channels;
      sizes[layer.weight + 1] = products - sizes[layer.weight];
    } else {
      sizes[layer.weight] = products * layer.taps();
    }
  };
  for (const auto& layers : plan.preprocess)
    for (const Layer& layer : layers) add(layer);
  for (const Edge& edge : plan.edges)
    for (const Candidate& candidate : edge.candidates)
      for (const Layer& layer : candidate.layers) add(layer);
  return sizes;
}

inline Size output_size(const Plan& plan, Size last) {
  if (!plan.preprocess.back().empty()) last = plan.preprocess.back()[0].out_size(last);
  return plan.reduction ? Size{(last.height + 1) / 2, (last.width + 1) / 2} : last;
}

// With `exact`, all types hold the tensors' numbers; otherwise there are neither ties nor zeros.
inline CellValues random_values(const CellCase& given, bool exact) {
  const Plan plan(given.code, given.in_channels);
  Numbers numbers;
  const auto some = [&](int64_t count, bool rounded) {
    std::vector<double> values(count);
    for (double& value : values) value = rounded ? numbers.next() : numbers.next_real();
    return values;
  };
  const int64_t edges = static_cast<int64_t>(plan.edges.size());
  const Size out = output_size(plan, given.sizes.back());
  CellValues values;
  for (size_t i = 0; i < given.sizes.size(); ++i)
    values.inputs.push_back(
        some(given.batch * given.in_channels[i] * given.sizes[i].pixels(), exact));
  values.gradient = some(given.batch * plan.outputs * plan.channels * out.pixels(), exact);
  values.p = some(edges * plan.operations, false);
  values.g = some(edges, false);
  int64_t weights = 0;
  for (const int64_t size : weight_sizes(plan)) weights += size;
  values.weights = some(weights, false);
  values.statistics = some(2 * plan.norm_offset(plan.norm_count), false);
  for (double& statistic : values.statistics) statistic += 1.5;  // variances are positive
  return values;
}

// A tensor (N, C, H, W); values are in its own order of memory.
template <class Stored>
class CellTensor {
 public:
  CellTensor(int64_t images, int64_t channels, Size size, bool channels_last)
      : elements_(images * channels * size.pixels()),
        outer_{elements_.data(),
               kOuterType<Stored>,
               channels * size.pixels(),
               channels_last ? ImageStrides{1, size.width * channels, channels}
                             : ImageStrides{size.pixels(), size.width, 1},
               channels,
               size} {}
  void fill(const std::vector<double>& values) {
    for (int64_t i = 0; i < elements_.size(); ++i) store_exact(values[i], elements_[i]);
  }
  std::vector<double> values() const {
    std::vector<double> found(elements_.size());
    for (int64_t i = 0; i < elements_.size(); ++i) found[i] = number(elements_[i]);
    return found;
  }
  const Outer& outer() const { return outer_; }

 private:
  Buffer<Stored> elements_;
  Outer outer_;
};

// Computes in T with tensors of type Stored; without `backward` the output alone.
template <class T, class Stored>
CellResults compute_cell(const CellCase& given, const CellValues& values, bool save,
                         bool backward) {
  const Plan plan(given.code, given.in_channels);
  using Tensor = CellTensor<Stored>;
  std::vector<std::unique_ptr<Tensor>> inputs, gradients;
  CellArguments<T> arguments{plan, given.batch, {}, {}, values.p, values.g, {}, 1e-5, save};
  CellGradients<T> wanted{};
  for (size_t i = 0; i < given.sizes.size(); ++i) {
    for (auto* list : {&inputs, &gradients})
      list->push_back(std::make_unique<Tensor>(given.batch, given.in_channels[i], given.sizes[i],
                                               given.channels_last));
    inputs[i]->fill(values.inputs[i]);
    arguments.inputs.push_back(inputs[i]->outer());
    wanted.inputs.push_back(&gradients[i]->outer());
  }
  std::vector<std::unique_ptr<Buffer<T>>> weights;
  auto next = values.weights.begin();
  for (const int64_t size : weight_sizes(plan)) {
    weights.push_back(std::make_unique<Buffer<T>>(size));
    wanted.offsets.push_back(next - values.weights.begin());
    for (int64_t i = 0; i < size; ++i) (*weights.back())[i] = static_cast<T>(*next++);
    arguments.weights.push_back(weights.back()->data());
  }
  arguments.frozen.assign(plan.norm_count, false);
  Buffer<T> statistics(static_cast<int64_t>(values.statistics.size()));
  for (const int64_t slot : given.frozen) {
    arguments.frozen[slot] = true;
    for (int64_t i = 0; i < 2 * plan.norm_channels(slot); ++i)
      statistics[2 * plan.norm_offset(slot) + i] =
          static_cast<T>(values.statistics[2 * plan.norm_offset(slot) + i]);
  }
  Buffer<T> saved(CellPass<T>::saved_size(plan, given.batch, given.sizes, save));
  const Size out = output_size(plan, given.sizes.back());
  Tensor output(given.batch, plan.outputs * plan.channels, out, given.channels_last);
  cell_forward<T>(arguments, output.outer(), statistics.data(), saved.data());
  CellResults results{output.values(), {}, {}, {}, {}};
  if (!backward) return results;

  Tensor gradient(given.batch, plan.outputs * plan.channels, out, given.channels_last);
  gradient.fill(values.gradient);
  Buffer<double> p(static_cast<int64_t>(values.p.size()), 0);
  Buffer<double> g(static_cast<int64_t>(values.g.size()), 0);
  Buffer<T> all_weights(static_cast<int64_t>(values.weights.size()), 0);
  wanted.p = p.data();
  wanted.g = g.data();
  wanted.weights = all_weights.data();
  cell_backward<T>(arguments, gradient.outer(), statistics.data(), saved.data(), wanted);
  for (const auto& tensor : gradients) results.inputs.push_back(tensor->values());
  results.p.assign(p.data(), p.data() + p.size());
  results.g.assign(g.data(), g.data() + g.size());
  results.weights.assign(all_weights.data(), all_weights.data() + all_weights.size());
  return results;
}

}  // namespace da2s_fast::test

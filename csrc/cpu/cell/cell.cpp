// cell on CPUs: da2s_fast/ops/cell/operator.py defines the operators and says what they compute.
// Here tensors become pointers; plan.h, layer.h, bundle.h and pass.h explain the computation.
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/util/Exception.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <optional>
#include <tuple>
#include <vector>

#include "../operators.h"
#include "../pooled.h"
#include "pass.h"

namespace da2s_fast {
namespace {

using Ints = std::vector<int64_t>;

OuterType outer_type(const Tensor& tensor) {
  switch (tensor.scalar_type()) {
    case ScalarType::Float:
      return OuterType::float32;
    case ScalarType::Double:
      return OuterType::float64;
    case ScalarType::BFloat16:
      return OuterType::bfloat16;
    case ScalarType::Half:
      return OuterType::float16;
    default:
      STD_TORCH_CHECK(false, "cell does not take ",
                      torch::headeronly::toString(tensor.scalar_type()));
  }
}

Outer outer(const Tensor& tensor) {
  STD_TORCH_CHECK(tensor.dim() == 4 && tensor.numel() > 0,
                  "cell takes tensors (N, C, H, W) that are not empty");
  return {tensor.mutable_data_ptr(),
          outer_type(tensor),
          tensor.stride(0),
          {tensor.stride(1), tensor.stride(2), tensor.stride(3)},
          tensor.size(1),
          {tensor.size(2), tensor.size(3)}};
}

float from_float16(uint16_t bits) {
  const int exponent = bits >> 10 & 31, fraction = bits & 1023;
  double value = exponent == 0    ? std::ldexp(fraction, -24)
                 : exponent == 31 ? (fraction ? std::nan("") : HUGE_VAL)
                                  : std::ldexp(1024 + fraction, exponent - 25);
  return static_cast<float>(bits >> 15 ? -value : value);
}

// A parameter's numbers, adjacent, in the type computed in.
template <class T>
std::vector<T> numbers(const Tensor& tensor) {
  const Tensor flat = torch::stable::contiguous(tensor);
  std::vector<T> found(flat.numel());
  const auto copy = [&](auto convert, const auto* from) {
    std::transform(from, from + flat.numel(), found.begin(), convert);
  };
  const auto same = [](auto value) { return static_cast<T>(value); };
  const void* data = flat.const_data_ptr();
  switch (outer_type(flat)) {
    case OuterType::float32:
      copy(same, static_cast<const float*>(data));
      break;
    case OuterType::float64:
      copy(same, static_cast<const double*>(data));
      break;
    case OuterType::bfloat16:
      copy(
          [](uint16_t bits) {
            const uint32_t wide = uint32_t{bits} << 16;
            float value;
            std::memcpy(&value, &wide, sizeof value);
            return static_cast<T>(value);
          },
          static_cast<const uint16_t*>(data));
      break;
    case OuterType::float16:
      copy([](uint16_t bits) { return static_cast<T>(from_float16(bits)); },
           static_cast<const uint16_t*>(data));
      break;
  }
  return found;
}

// The other way round: a tensor of the type from numbers.
template <class T>
Tensor tensor_of(const std::vector<T>& numbers, const Ints& sizes, ScalarType dtype) {
  const ScalarType own = sizeof(T) == sizeof(double) ? ScalarType::Double : ScalarType::Float;
  Tensor made = empty(sizes, own);
  std::copy(numbers.begin(), numbers.end(), data<T>(made));
  return dtype == own ? made : torch::stable::to(made, dtype);
}

// The arguments that both passes share, and what keeps their pointers alive.
template <class T>
struct Given {
  Given(const std::vector<Tensor>& inputs, const Tensor& p, const std::optional<Tensor>& g,
        const std::vector<Tensor>& weights, const Ints& frozen, const Ints& code, double eps,
        bool save)
      : plan(code, channels(inputs)),
        arguments{plan, inputs[0].size(0), {}, {}, {}, {}, {}, eps, save} {
    for (const Tensor& input : inputs) {
      STD_TORCH_CHECK(
          input.size(0) == inputs[0].size(0) && input.scalar_type() == inputs[0].scalar_type(),
          "cell's inputs differ in batch or type");
      arguments.inputs.push_back(outer(input));
    }
    STD_TORCH_CHECK(static_cast<int64_t>(weights.size()) == plan.weight_count, "cell needs ",
                    plan.weight_count, " weights, not ", weights.size());
    const int64_t edges = static_cast<int64_t>(plan.edges.size());
    STD_TORCH_CHECK(p.numel() == edges * plan.operations && (!g || g->numel() == edges),
                    "cell needs p of ", edges, " edges and ", plan.operations,
                    " operations and g of as many edges");
    const ScalarType own = sizeof(T) == sizeof(double) ? ScalarType::Double : ScalarType::Float;
    for (const Tensor& weight : weights) {
      // Asking first saves hundreds of trips through the dispatcher.
      tensors.push_back(weight.is_contiguous() ? weight : torch::stable::contiguous(weight));
      if (weight.scalar_type() == own) {
        arguments.weights.push_back(static_cast<const T*>(tensors.back().const_data_ptr()));
      } else {
        converted.push_back(numbers<T>(weight));
        arguments.weights.push_back(converted.back().data());
      }
    }
    arguments.p = numbers<double>(p);
    arguments.g = g ? numbers<double>(*g) : std::vector<double>(edges, 1.0);
    arguments.frozen.assign(plan.norm_count, false);
    for (const int64_t slot : frozen) arguments.frozen.at(slot) = true;
    check_shapes(weights);
  }

  static Ints channels(const std::vector<Tensor>& inputs) {
    Ints found;
    for (const Tensor& input : inputs) found.push_back(input.size(1));
    return found;
  }

  void check_layer(const Layer& layer, const std::vector<Tensor>& weights) const {
    const int64_t products = layer.in_channels * layer.out_channels;
    int64_t wanted = products * layer.taps_of_product(), given = 0;
    if (layer.separable) wanted += layer.in_channels * layer.taps();
    if (layer.halves) wanted = products;
    for (int64_t i = 0; i < layer.weights(); ++i) given += weights[layer.weight + i].numel();
    STD_TORCH_CHECK(given == wanted, "cell's weights from number ", layer.weight, " on have ",
                    given, " elements, not ", wanted);
  }

  void check_shapes(const std::vector<Tensor>& weights) const {
    for (const auto& layers : plan.preprocess)
      for (const Layer& layer : layers) check_layer(layer, weights);
    for (const Edge& edge : plan.edges)
      for (const Candidate& candidate : edge.candidates)
        for (const Layer& layer : candidate.layers) check_layer(layer, weights);
  }

  Plan plan;
  CellArguments<T> arguments;
  std::vector<Tensor> tensors;
  std::vector<std::vector<T>> converted;
};

Size output_size(const Plan& plan, Size last) {
  if (!plan.preprocess.back().empty()) last = plan.preprocess.back()[0].out_size(last);
  return plan.reduction ? Size{(last.height + 1) / 2, (last.width + 1) / 2} : last;
}

template <class Function>
void dispatch_arithmetic(const Tensor& tensor, Function function) {
  if (tensor.scalar_type() == ScalarType::Double) return function(double{});
  function(float{});
}

std::tuple<Tensor, Tensor, Tensor> cell(std::vector<Tensor> inputs, Tensor p,
                                        std::optional<Tensor> g, std::vector<Tensor> weights,
                                        std::vector<Tensor> running, Ints frozen, Ints code,
                                        double eps, bool save) {
  STD_TORCH_CHECK(!inputs.empty(), "cell needs an input");
  Tensor output, statistics, saved;
  dispatch_arithmetic(inputs[0], [&](auto element) {
    using T = decltype(element);
    const Given<T> given(inputs, p, g, weights, frozen, code, eps, save);
    const Plan& plan = given.plan;
    std::vector<Size> sizes;
    for (const Outer& input : given.arguments.inputs) sizes.push_back(input.size);
    const Size size = output_size(plan, sizes.back());
    output = pooled({inputs[0].size(0), plan.outputs * plan.channels, size.height, size.width},
                    inputs[0].scalar_type(), is_channels_last(inputs[0]));
    statistics = empty({2 * plan.norm_offset(plan.norm_count)}, compute_dtype(inputs[0]));
    std::fill_n(data<T>(statistics), statistics.numel(), T{0});  // of what does not run
    saved = pooled({CellPass<T>::saved_size(plan, inputs[0].size(0), sizes, save)},
                   compute_dtype(inputs[0]));
    for (const int64_t slot : frozen) {
      const int64_t channels = plan.norm_channels(slot);
      T* to = data<T>(statistics) + 2 * plan.norm_offset(slot);
      for (int64_t i = 0; i < 2; ++i) {
        const std::vector<T> values = numbers<T>(running.at(2 * slot + i));
        STD_TORCH_CHECK(static_cast<int64_t>(values.size()) == channels,
                        "running statistics of norm ", slot, " have ", values.size(),
                        " channels, not ", channels);
        std::copy(values.begin(), values.end(), to + i * channels);
      }
    }
    cell_forward<T>(given.arguments, outer(output), data<T>(statistics), data<T>(saved));
  });
  return {output, statistics, saved};
}

std::tuple<std::vector<Tensor>, Tensor, Tensor, Tensor> cell_backward_operator(
    Tensor grad, std::vector<Tensor> inputs, Tensor p, std::optional<Tensor> g,
    std::vector<Tensor> weights, Tensor statistics, Tensor saved, Ints frozen, Ints code,
    double eps, bool save, std::vector<bool> mask) {
  STD_TORCH_CHECK(mask.size() == inputs.size() + 3, "cell_backward needs ", inputs.size() + 3,
                  " masks");
  const ScalarType dtype = grad.scalar_type();
  STD_TORCH_CHECK(dtype == inputs.at(0).scalar_type(), "cell's gradient differs in type");
  const auto want = mask.begin() + static_cast<int64_t>(inputs.size());
  std::vector<Tensor> found;
  Tensor grad_p, grad_g, grad_weights;
  dispatch_arithmetic(grad, [&](auto element) {
    using T = decltype(element);
    const Given<T> given(inputs, p, g, weights, frozen, code, eps, save);
    const Outer gradient = outer(grad);
    const Size size = output_size(given.plan, given.arguments.inputs.back().size);
    STD_TORCH_CHECK(gradient.channels == given.plan.outputs * given.plan.channels &&
                        gradient.size.height == size.height && gradient.size.width == size.width &&
                        grad.size(0) == given.arguments.batch,
                    "cell's gradient does not have the shape of its output");
    CellGradients<T> wanted{};
    std::vector<Outer> outers(inputs.size());
    for (size_t i = 0; i < inputs.size(); ++i) {
      found.push_back(mask[i] ? pooled_like(inputs[i]) : empty({0}, inputs[i].scalar_type()));
      if (mask[i]) outers[i] = outer(found.back());
      wanted.inputs.push_back(mask[i] ? &outers[i] : nullptr);
    }
    std::vector<double> p_sums(given.arguments.p.size()), g_sums(given.arguments.g.size());
    wanted.p = p_sums.data();
    wanted.g = g_sums.data();
    int64_t count = 0;
    for (const Tensor& weight : weights) {
      wanted.offsets.push_back(count);
      count += weight.numel();
    }
    std::vector<T> weight_sums(want[2] ? count : 0);
    if (want[2]) wanted.weights = weight_sums.data();
    cell_backward<T>(given.arguments, gradient, data<T>(statistics), data<T>(saved), wanted);
    grad_p = want[0] ? tensor_of(p_sums, {p.size(0), p.size(1)}, p.scalar_type())
                     : empty({0}, p.scalar_type());
    const ScalarType g_type = g ? g->scalar_type() : p.scalar_type();
    grad_g = want[1] ? tensor_of(g_sums, {static_cast<int64_t>(g_sums.size())}, g_type)
                     : empty({0}, g_type);
    const ScalarType weight_type = weights.empty() ? dtype : weights[0].scalar_type();
    grad_weights = tensor_of(weight_sums, {static_cast<int64_t>(weight_sums.size())}, weight_type);
  });
  return {found, grad_p, grad_g, grad_weights};
}

}  // namespace

void register_cell(torch::stable::detail::StableLibrary& library) {
  library.impl("cell", TORCH_BOX(&cell));
  library.impl("cell_backward", TORCH_BOX(&cell_backward_operator));
}

}  // namespace da2s_fast

// conv_norm on CPUs: da2s_fast/ops/conv_norm.py defines the operators and says what they compute.
// Here tensors become pointers, conv_norm.h explains the computation.
#include "conv_norm.h"

#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/util/Exception.h>

#include <optional>
#include <tuple>
#include <vector>

#include "operators.h"
#include "pooled.h"

namespace da2s_fast {
namespace {

// The arguments that both passes share, and what keeps their pointers alive.
template <class T>
struct Given {
  Given(const Tensor& x, const Tensor& weight, const std::optional<Tensor>& scale,
        const std::optional<Tensor>& shift, int64_t stride, bool relu, double eps)
      : weights(parameters(weight, scale, shift), false) {
    STD_TORCH_CHECK(x.dim() == 4 && weight.dim() == 4 && x.numel() > 0 && weight.numel() > 0,
                    "conv_norm takes (N, C, H, W) that is not empty");
    const int64_t kernel = weight.size(3), channels = weight.size(0);
    STD_TORCH_CHECK((kernel == 1 || kernel == 3) && weight.size(2) == kernel &&
                        weight.size(1) == x.size(1) && (stride == 1 || stride == 2),
                    "conv_norm got a weight or a stride that does not fit");
    check_dtype(weight, x.scalar_type(), "conv_norm's weight");
    for (const std::optional<Tensor>& numbers : {scale, shift}) {
      if (!numbers) continue;
      check_dtype(*numbers, x.scalar_type(), "conv_norm's scale and shift");
      STD_TORCH_CHECK(numbers->numel() == channels, "conv_norm needs scale and shift of ", channels,
                      " numbers, not ", numbers->numel());
    }
    conv.layer = {false, kernel, 1, stride, false, x.size(1), channels, 0, 0};
    conv.batch = x.size(0);
    conv.size = {x.size(2), x.size(3)};
    conv.weights = {weights[0]};
    conv.x = images_of<const T>(x);
    conv.relu = relu;
    conv.eps = eps;
    conv.scale = scale ? weights[1] : nullptr;
    conv.shift = shift ? weights[scale ? 2 : 1] : nullptr;
  }

  static std::vector<Tensor> parameters(const Tensor& weight, const std::optional<Tensor>& scale,
                                        const std::optional<Tensor>& shift) {
    std::vector<Tensor> given{weight};
    for (const std::optional<Tensor>& numbers : {scale, shift})
      if (numbers) given.push_back(*numbers);
    return given;
  }

  std::vector<int64_t> out_sizes() const {
    const Size size = conv.layer.out_size(conv.size);
    return {conv.batch, conv.layer.out_channels, size.height, size.width};
  }

  Pointers<T> weights;
  ConvNorm<T> conv;
};

template <class Function>
void dispatch_real(const Tensor& tensor, Function function) {
  if (tensor.scalar_type() == ScalarType::Double) return function(double{});
  check_dtype(tensor, ScalarType::Float, "conv_norm's input");
  function(float{});
}

std::tuple<Tensor, Tensor> conv_norm(Tensor x, Tensor weight, std::optional<Tensor> scale,
                                     std::optional<Tensor> shift, int64_t stride, bool relu,
                                     double eps) {
  Tensor output, statistics;
  dispatch_real(x, [&](auto element) {
    using T = decltype(element);
    const Given<T> given(x, weight, scale, shift, stride, relu, eps);
    output = pooled(given.out_sizes(), x.scalar_type(), is_channels_last(x));
    statistics = empty({2 * weight.size(0)}, x.scalar_type());
    conv_norm_forward(given.conv, images_of<T>(output), data<T>(statistics));
  });
  return {output, statistics};
}

std::tuple<Tensor, Tensor, Tensor, Tensor> conv_norm_backward_operator(
    Tensor grad, Tensor x, Tensor weight, std::optional<Tensor> scale, std::optional<Tensor> shift,
    Tensor statistics, int64_t stride, bool relu, double eps, std::vector<bool> mask) {
  STD_TORCH_CHECK(mask.size() == 4, "conv_norm_backward needs four masks");
  check_dtype(grad, x.scalar_type(), "conv_norm's gradient");
  check_dtype(statistics, x.scalar_type(), "conv_norm's statistics");
  const int64_t channels = weight.size(0);
  Tensor dx = mask[0] ? pooled_like(x) : empty({0}, x.scalar_type());
  Tensor dweight = mask[1] ? empty(weight, false) : empty({0}, x.scalar_type());
  Tensor dscale = empty({mask[2] ? channels : 0}, x.scalar_type());
  Tensor dshift = empty({mask[3] ? channels : 0}, x.scalar_type());
  dispatch_real(x, [&](auto element) {
    using T = decltype(element);
    const Given<T> given(x, weight, scale, shift, stride, relu, eps);
    STD_TORCH_CHECK(sizes_of(grad) == given.out_sizes() && statistics.numel() == 2 * channels,
                    "conv_norm's gradient or statistics do not have the shape of its output");
    const auto wanted = [&](size_t i, const Tensor& tensor) {
      return mask[i] ? data<T>(tensor) : nullptr;
    };
    ConvNormGradients<T> gradients{{}, wanted(1, dweight), wanted(2, dscale), wanted(3, dshift)};
    if (mask[0]) gradients.x = images_of<T>(dx);
    conv_norm_backward(given.conv, images_of<const T>(grad), data<T>(statistics), gradients);
  });
  return {dx, dweight, dscale, dshift};
}

}  // namespace

void register_conv_norm(torch::stable::detail::StableLibrary& library) {
  library.impl("conv_norm", TORCH_BOX(&conv_norm));
  library.impl("conv_norm_backward", TORCH_BOX(&conv_norm_backward_operator));
}

}  // namespace da2s_fast

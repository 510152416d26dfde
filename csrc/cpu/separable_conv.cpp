// separable_conv on CPUs: da2s_fast/ops/separable_conv.py defines the operators and says what they
// compute. Here tensors become pointers, separable_conv.h explains the computation.
#include "separable_conv.h"

#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/util/Exception.h>

#include <algorithm>
#include <tuple>
#include <vector>

#include "operators.h"
#include "tensors.h"

namespace da2s_fast {
namespace {

// The arguments that both passes share, and what keeps their pointers alive.
template <class T>
struct Given {
  Given(const Tensor& x, const Tensor& spatial, const Tensor& channel, int64_t stride,
        int64_t padding, int64_t dilation)
      : pointers({spatial, channel}, false) {
    STD_TORCH_CHECK(x.dim() == 4 && spatial.dim() == 4 && channel.dim() == 4 && x.numel() > 0,
                    "separable_conv takes (N, C, H, W) that is not empty");
    check_dtype(spatial, x.scalar_type(), "separable_conv's depthwise weight");
    check_dtype(channel, x.scalar_type(), "separable_conv's pointwise weight");
    const int64_t kernel = spatial.size(3), channels = x.size(1);
    const bool known = kernel == 3 || kernel == 5 || (kernel == 7 && dilation == 1);
    STD_TORCH_CHECK(known && (stride == 1 || stride == 2) && (dilation == 1 || dilation == 2),
                    "separable_conv has no kernel of ", kernel, " rows, stride ", stride,
                    " and dilation ", dilation);
    STD_TORCH_CHECK(spatial.size(2) == kernel && spatial.size(0) == channels &&
                        spatial.size(1) == 1 && channel.size(1) == channels &&
                        channel.size(2) == 1 && channel.size(3) == 1 && channel.size(0) > 0 &&
                        2 * padding == dilation * (kernel - 1),
                    "separable_conv got weights or a padding that do not fit");
    conv.layer = {true, kernel, dilation, stride, false, channels, channel.size(0), 0, 0};
    conv.batch = x.size(0);
    conv.size = {x.size(2), x.size(3)};
    conv.weights = {pointers[0], pointers[1]};
    conv.x = images_of<const T>(x);
  }

  Size out_size() const { return conv.layer.out_size(conv.size); }

  Pointers<T> pointers;
  SeparableConv<T> conv;
};

template <class Function>
void dispatch_real(const Tensor& tensor, Function function) {
  if (tensor.scalar_type() == ScalarType::Double) return function(double{});
  check_dtype(tensor, ScalarType::Float, "separable_conv's input");
  function(float{});
}

Tensor separable_conv(Tensor x, Tensor spatial, Tensor channel, int64_t stride, int64_t padding,
                      int64_t dilation) {
  Tensor z;
  dispatch_real(x, [&](auto element) {
    using T = decltype(element);
    const Given<T> given(x, spatial, channel, stride, padding, dilation);
    const Size size = given.out_size();
    z = torch::stable::empty({x.size(0), channel.size(0), size.height, size.width}, x.scalar_type(),
                             std::nullopt, std::nullopt, std::nullopt,
                             memory_format(is_channels_last(x)));
    separable_conv_forward(given.conv, images_of<T>(z));
  });
  return z;
}

std::tuple<Tensor, Tensor, Tensor> separable_conv_backward_operator(Tensor grad, Tensor x,
                                                                    Tensor spatial, Tensor channel,
                                                                    int64_t stride, int64_t padding,
                                                                    int64_t dilation,
                                                                    std::vector<bool> mask) {
  STD_TORCH_CHECK(mask.size() == 3, "separable_conv_backward needs three masks");
  check_dtype(grad, x.scalar_type(), "separable_conv's gradient");
  Tensor dx = mask[0] ? empty(x, is_channels_last(x)) : empty({0}, x.scalar_type());
  Tensor dspatial = mask[1] ? empty(spatial, false) : empty({0}, x.scalar_type());
  Tensor dchannel = mask[2] ? empty(channel, false) : empty({0}, x.scalar_type());
  dispatch_real(x, [&](auto element) {
    using T = decltype(element);
    const Given<T> given(x, spatial, channel, stride, padding, dilation);
    const Size size = given.out_size();
    STD_TORCH_CHECK(grad.dim() == 4 && grad.size(0) == x.size(0) &&
                        grad.size(1) == channel.size(0) && grad.size(2) == size.height &&
                        grad.size(3) == size.width,
                    "separable_conv's gradient does not have the shape of its output");
    std::vector<T> weights(mask[1] || mask[2] ? spatial.numel() + channel.numel() : 0);
    separable_conv_backward(given.conv, images_of<const T>(grad),
                            mask[0] ? images_of<T>(dx) : ImageTensor<T>{},
                            weights.empty() ? nullptr : weights.data());
    const auto second = weights.begin() + (weights.empty() ? 0 : spatial.numel());
    if (mask[1]) std::copy(weights.begin(), second, data<T>(dspatial));
    if (mask[2]) std::copy(second, weights.end(), data<T>(dchannel));
  });
  return {dx, dspatial, dchannel};
}

}  // namespace

void register_separable_conv(torch::stable::detail::StableLibrary& library) {
  library.impl("separable_conv", TORCH_BOX(&separable_conv));
  library.impl("separable_conv_backward", TORCH_BOX(&separable_conv_backward_operator));
}

}  // namespace da2s_fast

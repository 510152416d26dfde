// separable_conv on CPUs: da2s_fast/ops/separable_conv.py defines the operators and says what they
// compute. One image after the other, see separable_conv.h for its tiling.
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

// Images are cut into so many chunks at most, by their number alone: weight gradients are summed
// per chunk and the chunks added in order, whatever the number of threads.
constexpr int64_t kChunks = 32;
// Multiply-adds per thread below which another thread does not pay.
constexpr int64_t kGrain = 200'000;

template <class T>
int64_t to_vectors(int64_t channels) {
  return (channels + kVector<T> - 1) / kVector<T> * kVector<T>;
}

template <class T>
SeparableConv geometry(const Tensor& x, const Tensor& spatial, const Tensor& channel,
                       int64_t stride, int64_t padding, int64_t dilation) {
  STD_TORCH_CHECK(x.dim() == 4 && spatial.dim() == 4 && channel.dim() == 4 && x.numel() > 0,
                  "separable_conv takes (N, C, H, W) that is not empty");
  check_dtype(spatial, x.scalar_type(), "separable_conv's depthwise weight");
  check_dtype(channel, x.scalar_type(), "separable_conv's pointwise weight");
  const int64_t kernel = spatial.size(3), channels = x.size(1);
  STD_TORCH_CHECK((kernel == 3 || kernel == 5 || kernel == 7) && spatial.size(2) == kernel &&
                      spatial.size(0) == channels && spatial.size(1) == 1 &&
                      channel.size(1) == channels && channel.size(2) == 1 && channel.size(3) == 1 &&
                      channel.size(0) > 0 && stride > 0 && dilation > 0 &&
                      2 * padding == dilation * (kernel - 1),
                  "separable_conv got weights or a padding that do not fit");
  const int64_t height = x.size(2), width = x.size(3);
  return {kernel,
          stride,
          padding,
          dilation,
          channels,
          channel.size(0),
          to_vectors<T>(channels),
          to_vectors<T>(channel.size(0)),
          height,
          width,
          (height - 1) / stride + 1,
          (width - 1) / stride + 1};
}

Strides strides(const Tensor& tensor) {
  return {tensor.stride(1), tensor.stride(2), tensor.stride(3)};
}

// The weights in the orders the loops read them in, columns filled up with zeros.
template <class T>
class Weights {
 public:
  Weights(const SeparableConv& conv, const Tensor& spatial, const Tensor& channel) {
    const int64_t taps = conv.kernel * conv.kernel, in = conv.in_columns, out = conv.out_columns;
    spatial_.resize(taps * in);
    turned_.resize(taps * in);
    channel_.resize(in * out);
    transposed_.resize(in * out);
    const Pointers<T> pointers({spatial, channel}, false);
    for (int64_t c = 0; c < conv.in_channels; ++c)
      for (int64_t tap = 0; tap < taps; ++tap)
        spatial_[tap * in + c] = turned_[(taps - 1 - tap) * in + c] = pointers[0][c * taps + tap];
    for (int64_t o = 0; o < conv.out_channels; ++o)
      for (int64_t c = 0; c < conv.in_channels; ++c)
        channel_[c * out + o] = transposed_[o * in + c] = pointers[1][o * conv.in_channels + c];
  }
  SeparableWeights<T> view() const {
    return {spatial_.data(), channel_.data(), turned_.data(), transposed_.data()};
  }

 private:
  std::vector<T> spatial_, turned_, channel_, transposed_;
};

template <class T>
class Scratch {
 public:
  Scratch(const SeparableConv& conv, bool backward) {
    const int64_t padded = conv.padded_pixels() * conv.in_columns;
    const int64_t middle = conv.out_pixels() * conv.in_columns;
    const int64_t out = conv.out_pixels() * conv.out_columns;
    const int64_t image = std::max(conv.height * conv.width, conv.out_columns) * conv.in_columns;
    memory_.resize(padded + middle + out + backward * (padded + middle + image));
    T* next = memory_.data();
    const auto take = [&](int64_t size) { return std::exchange(next, next + size); };
    view_.padded = take(padded);
    view_.middle = take(middle);
    view_.out = take(out);
    if (!backward) return;
    view_.spread = take(padded);
    view_.middle_gradient = take(middle);
    view_.image = take(image);
  }
  const SeparableScratch<T>& view() const { return view_; }

 private:
  std::vector<T> memory_;
  SeparableScratch<T> view_{};
};

// Calls work(chunk, first image, last image + 1) for every chunk.
template <class Work>
void for_each_chunk(const SeparableConv& conv, int64_t images, Work work) {
  const int64_t chunks = std::min(images, kChunks);
  const int64_t taps = conv.kernel * conv.kernel + conv.out_channels;
  const int64_t cost = images / chunks * conv.out_pixels() * conv.in_channels * taps;
  const int64_t grain = std::max<int64_t>(1, kGrain / std::max<int64_t>(1, cost));
  torch::stable::parallel_for(0, chunks, grain, [&](int64_t begin, int64_t end) {
    work(begin, end, [=](int64_t chunk) { return chunk * images / chunks; });
  });
}

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
    const SeparableConv conv = geometry<T>(x, spatial, channel, stride, padding, dilation);
    z = torch::stable::empty({x.size(0), conv.out_channels, conv.out_height, conv.out_width},
                             x.scalar_type(), std::nullopt, std::nullopt, std::nullopt,
                             memory_format(is_channels_last(x)));
    const Weights<T> weights(conv, spatial, channel);
    const Strides x_at = strides(x), z_at = strides(z);
    for_each_chunk(conv, x.size(0), [&](int64_t begin, int64_t end, auto first) {
      const Scratch<T> scratch(conv, false);
      for (int64_t n = first(begin); n < first(end); ++n)
        DA2S_SIMD_CALL(separable_conv_image, conv, scratch.view(), weights.view(),
                       data<T>(x) + n * x.stride(0), x_at, data<T>(z) + n * z.stride(0), z_at);
    });
  });
  return z;
}

// The chunks' sums, added in order and written as a weight: element(i) is where i stands in a sum.
template <class T, class Element>
void add_chunks(const std::vector<double>& sums, int64_t size, const Tensor& weight,
                Element element) {
  for (int64_t i = 0; i < weight.numel(); ++i) {
    double total = 0;
    for (size_t chunk = 0; chunk < sums.size(); chunk += size) total += sums[chunk + element(i)];
    data<T>(weight)[i] = static_cast<T>(total);
  }
}

std::tuple<Tensor, Tensor, Tensor> separable_conv_backward(Tensor grad, Tensor x, Tensor spatial,
                                                           Tensor channel, int64_t stride,
                                                           int64_t padding, int64_t dilation,
                                                           std::vector<bool> mask) {
  STD_TORCH_CHECK(mask.size() == 3, "separable_conv_backward needs three masks");
  check_dtype(grad, x.scalar_type(), "separable_conv's gradient");
  Tensor dx = mask[0] ? empty(x, is_channels_last(x)) : empty({0}, x.scalar_type());
  Tensor dspatial = mask[1] ? empty(spatial, false) : empty({0}, x.scalar_type());
  Tensor dchannel = mask[2] ? empty(channel, false) : empty({0}, x.scalar_type());
  dispatch_real(x, [&](auto element) {
    using T = decltype(element);
    const SeparableConv conv = geometry<T>(x, spatial, channel, stride, padding, dilation);
    STD_TORCH_CHECK(grad.dim() == 4 && grad.size(0) == x.size(0) &&
                        grad.size(1) == conv.out_channels && grad.size(2) == conv.out_height &&
                        grad.size(3) == conv.out_width,
                    "separable_conv's gradient does not have the shape of its output");
    const Weights<T> weights(conv, spatial, channel);
    const Strides x_at = strides(x), grad_at = strides(grad);
    const Strides dx_at = mask[0] ? strides(dx) : Strides{};
    const int64_t taps = conv.kernel * conv.kernel, in = conv.in_columns;
    const int64_t chunks = std::min(x.size(0), kChunks);
    const int64_t spatial_size = taps * in, channel_size = conv.out_columns * in;
    std::vector<double> spatial_sums(mask[1] * chunks * spatial_size);
    std::vector<double> channel_sums(mask[2] * chunks * channel_size);
    for_each_chunk(conv, x.size(0), [&](int64_t begin, int64_t end, auto first) {
      const Scratch<T> scratch(conv, true);
      for (int64_t chunk = begin; chunk < end; ++chunk)
        for (int64_t n = first(chunk); n < first(chunk + 1); ++n)
          DA2S_SIMD_CALL(separable_conv_image_gradient, conv, scratch.view(), weights.view(),
                         data<T>(x) + n * x.stride(0), x_at, data<T>(grad) + n * grad.stride(0),
                         grad_at, mask[0] ? data<T>(dx) + n * dx.stride(0) : nullptr, dx_at,
                         mask[1] ? &spatial_sums[chunk * spatial_size] : nullptr,
                         mask[2] ? &channel_sums[chunk * channel_size] : nullptr);
    });
    if (mask[1])
      add_chunks<T>(spatial_sums, spatial_size, dspatial,
                    [=](int64_t i) { return i % taps * in + i / taps; });
    const int64_t channels = conv.in_channels;
    if (mask[2])
      add_chunks<T>(channel_sums, channel_size, dchannel,
                    [=](int64_t i) { return i / channels * in + i % channels; });
  });
  return {dx, dspatial, dchannel};
}

}  // namespace

void register_separable_conv(torch::stable::detail::StableLibrary& library) {
  library.impl("separable_conv", TORCH_BOX(&separable_conv));
  library.impl("separable_conv_backward", TORCH_BOX(&separable_conv_backward));
}

}  // namespace da2s_fast

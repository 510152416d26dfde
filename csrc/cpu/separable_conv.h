// The inner loops of separable_conv (ReLU, depthwise, pointwise convolution), on one image.
//
// Tiling. One image at a time lies in scratch memory of the second cache, channels last and padded
// to whole vectors, so that every loop runs over vectors of channels whatever the layout of the
// tensors. ReLU happens while the image is copied in, between borders of zeros: the depthwise loop
// has no cases. Its result never leaves the cache: the pointwise product reads it there, four
// pixels by two vectors of output channels at a time (eight sums in registers, six loads for eight
// multiply-adds). The depthwise loop holds four neighbouring pixels of one vector of channels.
//
// Backward recomputes the depthwise result instead of reading a stored one. The gradient with
// respect to the image is a depthwise convolution again, of the gradient spread out by the stride
// between borders of zeros, with the kernel turned around.
#pragma once

#include <cstdint>

#include "isa.h"

namespace da2s_fast {

// Elements in a vector of 32 bytes.
template <class T>
constexpr int64_t kVector = 32 / sizeof(T);

// How one image of a tensor (N, C, H, W) lies in memory, in elements.
struct Strides {
  int64_t channel, row, pixel;
};

struct SeparableConv {
  int64_t kernel, stride, padding, dilation;
  int64_t in_channels, out_channels;  // of the tensors
  int64_t in_columns, out_columns;    // the same, padded to whole vectors
  int64_t height, width;              // of the input
  int64_t out_height, out_width;

  int64_t padded_width() const { return width + 2 * padding; }
  int64_t padded_pixels() const { return (height + 2 * padding) * padded_width(); }
  int64_t out_pixels() const { return out_height * out_width; }
};

// Scratch of one thread. padded and spread must have been zero when first used with a geometry;
// what is written between their borders is overwritten with each image.
template <class T>
struct SeparableScratch {
  T* padded;           // (padded pixels, in_columns): ReLU(x)
  T* spread;           // (padded pixels, in_columns): the depthwise result's gradient
  T* middle;           // (out pixels, in_columns): the depthwise result
  T* middle_gradient;  // (out pixels, in_columns), for strides above 1
  T* out;              // (out pixels, out_columns): the pointwise result or its gradient
  T* image;            // (pixels, in_columns): gradient of ReLU(x)
};

// spatial: (kernel * kernel, in_columns). channel: (in_columns, out_columns). For backward also
// turned: spatial, last row first, and transposed: (out_columns, in_columns).
template <class T>
struct SeparableWeights {
  const T* spatial;
  const T* channel;
  const T* turned;
  const T* transposed;
};

DA2S_DECLARE_SIMD(template <class T>
                  void separable_conv_image(const SeparableConv& conv,
                                            const SeparableScratch<T>& scratch,
                                            const SeparableWeights<T>& weights, const T* x,
                                            const Strides& x_at, T* z, const Strides& z_at);

                  // Adds to spatial_sum (kernel * kernel, in_columns) and channel_sum (out_columns,
                  // in_columns); a null pointer among dx and the sums leaves that gradient out.
                  template <class T> void separable_conv_image_gradient(
                      const SeparableConv& conv, const SeparableScratch<T>& scratch,
                      const SeparableWeights<T>& weights, const T* x, const Strides& x_at,
                      const T* dz, const Strides& dz_at, T* dx, const Strides& dx_at,
                      double* spatial_sum, double* channel_sum);)

}  // namespace da2s_fast

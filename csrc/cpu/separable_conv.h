// separable_conv (ReLU, depthwise, pointwise convolution) over a batch: one layer of a cell, on the
// cell's kernels and in its layout (cell/kernels.h, cell/layer.h), between tensors of PyTorch.
//
// A group of images is moved into scratch memory of the second cache, through ReLU and inside a
// border of zeros, and everything about it is computed there. What is laid out as a group anyway
// (one image, channels last, whole vectors of them) is written and read in place. Backward computes
// the depthwise result again instead of reading a stored one.
#pragma once

#include <cstdint>
#include <vector>

#include "cell/layer.h"
#include "cell/side.h"

namespace da2s_fast {

template <class T>
struct SeparableConv {
  Layer layer;
  int64_t batch;
  Size size;                      // of the input
  std::vector<const T*> weights;  // spatial (in, 1, k, k), channel (out, in, 1, 1)
  ImageTensor<const T> x;
};

template <class T>
void separable_conv_forward(const SeparableConv<T>& conv, const ImageTensor<T>& z);

// dx with data null and weights null: not wanted. weights are both gradients, one after the other.
template <class T>
void separable_conv_backward(const SeparableConv<T>& conv, const ImageTensor<const T>& dz,
                             const ImageTensor<T>& dx, T* weights);

}  // namespace da2s_fast

// ReLU, a dense convolution and a BatchNorm with the batch's statistics, in one.
//
// What lies between convolution and norm is not kept for backward. Each direction is two passes
// over the batch, with the sums that the norm needs between them. Forward leaves the convolution's
// features where the output will be, if that lies as the kernels want it, and normalizes them
// there; else the second pass computes them again, group by group, as both passes of backward do.
// Where the convolution is not cheap, the second pass of backward finds them in a workspace.
#pragma once

#include <cstdint>
#include <vector>

#include "cell/layer.h"
#include "cell/side.h"

namespace da2s_fast {

template <class T>
struct ConvNorm {
  Layer layer;
  int64_t batch;
  Size size;                      // of the input
  std::vector<const T*> weights;  // one: (out, in, k, k)
  ImageTensor<const T> x;
  bool relu;
  double eps;
  const T* scale;  // of the norm; null for 1
  const T* shift;  // null for 0
};

// Statistics: mean and biased variance, (2 * out channels).
template <class T>
void conv_norm_forward(const ConvNorm<T>& conv, const ImageTensor<T>& output, T* statistics);

// Null: not wanted.
template <class T>
struct ConvNormGradients {
  ImageTensor<T> x;
  T* weight;
  T* scale;
  T* shift;
};

template <class T>
void conv_norm_backward(const ConvNorm<T>& conv, const ImageTensor<const T>& gradient,
                        const T* statistics, const ConvNormGradients<T>& wanted);

}  // namespace da2s_fast

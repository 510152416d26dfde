// ReLU, a dense convolution and a BatchNorm with the batch's statistics, in one.
//
// What lies between convolution and norm is never stored. Forward leaves it where the output will
// be, if the output lies as the kernels want it, and normalizes it there; else, and in backward, it
// is computed again, group by group, wherever it is needed: that costs less than fresh memory of
// its size. Between two passes over the batch lies the sum that the norm needs.
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

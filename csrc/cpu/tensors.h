// What the CPU operators do with torch's stable tensors: checks, layouts, typed pointers.
#pragma once

#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/util/Exception.h>

#include <algorithm>
#include <cstring>
#include <vector>

#include "cell/side.h"
#include "scalar.h"

namespace da2s_fast {

using torch::headeronly::MemoryFormat;
using torch::headeronly::ScalarType;
using torch::stable::Tensor;

template <class T>
T* data(const Tensor& tensor) {
  return static_cast<T*>(tensor.mutable_data_ptr());
}

inline ScalarType compute_dtype(const Tensor& tensor) {
  return tensor.scalar_type() == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
}

inline void check_dtype(const Tensor& tensor, ScalarType dtype, const char* what) {
  STD_TORCH_CHECK(tensor.scalar_type() == dtype, what, " must be ",
                  torch::headeronly::toString(dtype), ", not ",
                  torch::headeronly::toString(tensor.scalar_type()));
}

inline void check_like(const Tensor& tensor, const Tensor& first, const char* what) {
  check_dtype(tensor, first.scalar_type(), what);
  const auto sizes = tensor.sizes(), wanted = first.sizes();
  STD_TORCH_CHECK(std::equal(sizes.begin(), sizes.end(), wanted.begin(), wanted.end()), what,
                  " differ in shape");
}

// Whether a tensor (N, C, H, W) is channels_last and not contiguous too, as torch tells.
inline bool is_channels_last(const Tensor& tensor) {
  if (tensor.dim() != 4 || tensor.is_contiguous()) return false;
  int64_t stride = 1;
  for (const int64_t dim : {1, 3, 2, 0}) {
    if (tensor.size(dim) != 1 && tensor.stride(dim) != stride) return false;
    stride *= tensor.size(dim);
  }
  return true;
}

inline MemoryFormat memory_format(bool channels_last) {
  return channels_last ? MemoryFormat::ChannelsLast : MemoryFormat::Contiguous;
}

inline Tensor empty(const std::vector<int64_t>& sizes, ScalarType dtype) {
  return torch::stable::empty(sizes, dtype);
}

inline Tensor empty(const Tensor& like, bool channels_last) {
  return torch::stable::empty(like.sizes(), like.scalar_type(), std::nullopt, std::nullopt,
                              std::nullopt, memory_format(channels_last));
}

// A tensor (N, C, H, W) for the kernels.
template <class T>
ImageTensor<T> images_of(const Tensor& tensor) {
  return {
      data<T>(tensor), tensor.stride(0), {tensor.stride(1), tensor.stride(2), tensor.stride(3)}};
}

// The tensors' data in one layout; holds a copy of every tensor that is laid out otherwise.
template <class T>
class Pointers {
 public:
  Pointers(const std::vector<Tensor>& tensors, bool channels_last) {
    for (const Tensor& tensor : tensors) {
      tensors_.push_back(torch::stable::contiguous(tensor, memory_format(channels_last)));
      pointers_.push_back(static_cast<const T*>(tensors_.back().const_data_ptr()));
    }
  }
  const T* operator[](int64_t k) const { return pointers_[k]; }
  const T* const* data() const { return pointers_.data(); }

 private:
  std::vector<Tensor> tensors_;
  std::vector<const T*> pointers_;
};

// Calls function with a value of the element type that tells nothing but the type.
template <class Function>
void dispatch(const Tensor& tensor, const char* what, Function function) {
  switch (tensor.scalar_type()) {
    case ScalarType::Float:
      return function(float{});
    case ScalarType::Double:
      return function(double{});
    case ScalarType::BFloat16:
      return function(BFloat16{});
    case ScalarType::Half:
      return function(Float16{});
    default:
      STD_TORCH_CHECK(false, what, " does not take ",
                      torch::headeronly::toString(tensor.scalar_type()));
  }
}

}  // namespace da2s_fast

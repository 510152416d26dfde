// Tensors in memory that is kept from call to call.
#pragma once

#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/util/Exception.h>

#include <cstdint>
#include <memory>
#include <vector>

#include "tensors.h"
#include "workspace.h"

// Since torch 2.11; absent from an older torch at run time, where it is null then.
extern "C" __attribute__((weak)) AOTITorchError
torch_from_blob(void* data, int64_t ndim, const int64_t* sizes, const int64_t* strides,
                int64_t offset, int32_t dtype, int32_t device_type, int32_t device_index,
                AtenTensorHandle* made, int32_t layout, const uint8_t* metadata,
                int64_t metadata_size, void (*deleter)(void* data, void* context), void* context);

namespace da2s_fast {

constexpr size_t kPooledBytes = size_t{1} << 20;

inline size_t element_size(ScalarType dtype) {
  return dtype == ScalarType::Double ? 8 : dtype == ScalarType::Float ? 4 : 2;
}

// A tensor in a workspace, if it is large: fresh memory would cost as much time as filling it.
inline Tensor pooled(const std::vector<int64_t>& sizes, ScalarType dtype,
                     bool channels_last = false) {
  size_t bytes = element_size(dtype);
  for (const int64_t size : sizes) bytes *= size;
  if (bytes < kPooledBytes || torch_from_blob == nullptr)
    return torch::stable::empty(sizes, dtype, std::nullopt, std::nullopt, std::nullopt,
                                memory_format(channels_last));
  std::vector<int64_t> order(sizes.size()), strides(sizes.size());  // dimensions, innermost first
  for (size_t i = 0; i < sizes.size(); ++i) order[i] = static_cast<int64_t>(sizes.size() - 1 - i);
  if (channels_last) order = {1, 3, 2, 0};
  int64_t stride = 1;
  for (const int64_t dim : order) {
    strides[dim] = stride;
    stride *= sizes[dim];
  }
  auto memory = std::make_unique<Workspace>(bytes, Workspace::Use::kept);
  const auto release = [](void*, void* context) { delete static_cast<Workspace*>(context); };
  AtenTensorHandle made;
  TORCH_ERROR_CODE_CHECK(torch_from_blob(
      memory->data(), static_cast<int64_t>(sizes.size()), sizes.data(), strides.data(), 0,
      torch::stable::detail::to<int32_t>(torch::stable::detail::from(dtype)),
      aoti_torch_device_type_cpu(), -1, &made, aoti_torch_layout_strided(), nullptr, 0, release,
      memory.get()));
  memory.release();
  return Tensor(made);
}

inline std::vector<int64_t> sizes_of(const Tensor& tensor) {
  const auto sizes = tensor.sizes();
  return {sizes.begin(), sizes.end()};
}

// The same for a tensor like another.
inline Tensor pooled_like(const Tensor& tensor) {
  return pooled(sizes_of(tensor), tensor.scalar_type(), is_channels_last(tensor));
}

}  // namespace da2s_fast

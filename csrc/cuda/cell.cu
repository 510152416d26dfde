// The kernels of csrc/cuda/cell, and the operators that start them. Without torch (DA2S_STANDALONE)
// there are only the kernels: that is how tests compile them.
#include "cell/convolve.cuh"

#define DA2S_CONVOLVE(name, channels, second)                                \
  extern "C" __global__ void __launch_bounds__(da2s_fast::cell::kThreads, 2) \
      name(const __grid_constant__ da2s_fast::cell::Convolve call) {         \
    extern __shared__ __align__(16) char shared[];                           \
    da2s_fast::cell::convolve<channels, second>(call, shared);               \
  }
#define DA2S_BOTH(channels)                                \
  DA2S_CONVOLVE(cell_convolve_##channels, channels, false) \
  DA2S_CONVOLVE(cell_convolve_##channels##_second, channels, true)

DA2S_BOTH(4)
DA2S_BOTH(8)
DA2S_BOTH(16)
DA2S_BOTH(32)
DA2S_BOTH(64)

#ifndef DA2S_STANDALONE
#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/util/Exception.h>

#include <vector>

namespace da2s_fast {
namespace {

using torch::stable::Tensor;

template <class T>
T* data(const Tensor& tensor) {
  return static_cast<T*>(tensor.mutable_data_ptr());
}

void check(cudaError_t error, const char* kernel) {
  STD_TORCH_CHECK(error == cudaSuccess, kernel, ": ", cudaGetErrorString(error));
}

using Convolve = void (*)(cell::Convolve);

Convolve convolve_for(int64_t channels, bool second) {
  switch (channels) {
    case 4:
      return second ? cell_convolve_4_second : cell_convolve_4;
    case 8:
      return second ? cell_convolve_8_second : cell_convolve_8;
    case 16:
      return second ? cell_convolve_16_second : cell_convolve_16;
    case 32:
      return second ? cell_convolve_32_second : cell_convolve_32;
    case 64:
      return second ? cell_convolve_64_second : cell_convolve_64;
    default:
      return nullptr;
  }
}

// On the current device, which is the tensors', and its current stream.
template <class Call>
void start(void (*kernel)(Call), const char* name, const std::vector<int64_t>& grid, int64_t shared,
           const Tensor& where, const Call& call) {
  STD_TORCH_CHECK(kernel != nullptr, name, ": there is no kernel for so many channels");
  STD_TORCH_CHECK(grid.size() == 2, name, ": a grid of two axes was expected");
  void* stream = nullptr;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(where.get_device_index(), &stream));
  check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                             static_cast<int>(shared)),
        name);
  const dim3 programs(static_cast<unsigned>(grid[0]), static_cast<unsigned>(grid[1]));
  kernel<<<programs, cell::kThreads, shared, static_cast<cudaStream_t>(stream)>>>(call);
  check(cudaGetLastError(), name);
}

void cell_convolve(std::vector<int64_t> grid, Tensor table, Tensor packs, Tensor source, Tensor z,
                   Tensor weights, Tensor moments, Tensor statistics, int64_t pixels,
                   int64_t chunk_pixels, double eps, int64_t height, int64_t width, int64_t pitch,
                   bool known, int64_t halo, int64_t taps, int64_t log_width, int64_t log_height,
                   int64_t log_images, int64_t channels, bool second, int64_t shared) {
  const cell::Convolve call{data<int64_t>(table),
                            data<int64_t>(packs),
                            data<float>(source),
                            data<float>(z),
                            data<float>(weights),
                            data<double>(moments),
                            data<float>(statistics),
                            pixels,
                            chunk_pixels,
                            eps,
                            static_cast<int>(height),
                            static_cast<int>(width),
                            static_cast<int>(pitch),
                            known,
                            static_cast<int>(halo),
                            static_cast<int>(taps),
                            static_cast<int>(log_width),
                            static_cast<int>(log_height),
                            static_cast<int>(log_images)};
  start(convolve_for(channels, second), "cell_convolve", grid, shared, z, call);
}

}  // namespace
}  // namespace da2s_fast

STABLE_TORCH_LIBRARY_IMPL(da2s_fast, CUDA, library) {
  library.impl("cell_convolve", TORCH_BOX(&da2s_fast::cell_convolve));
}
#endif

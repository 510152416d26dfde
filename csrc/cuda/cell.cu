// The operators that start the kernels of csrc/cuda/cell.
#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/util/Exception.h>

#include <optional>
#include <vector>

#include "cell/kernels.cuh"

DA2S_DECLARE_KERNELS(4)
DA2S_DECLARE_KERNELS(8)
DA2S_DECLARE_KERNELS(16)
DA2S_DECLARE_KERNELS(32)
DA2S_DECLARE_KERNELS(64)

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

// The kernel for a number of channels; `name##suffix` is none of them.
#define DA2S_CHOOSE(name, suffix, channels) \
  ((channels) == 4    ? name##_4##suffix    \
   : (channels) == 8  ? name##_8##suffix    \
   : (channels) == 16 ? name##_16##suffix   \
   : (channels) == 32 ? name##_32##suffix   \
   : (channels) == 64 ? name##_64##suffix   \
                      : nullptr)

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

void cell_nodes(std::vector<int64_t> grid, Tensor tasks, Tensor waits, Tensor counters,
                Tensor packs, Tensor layers, Tensor mixes, Tensor mixed, Tensor states, Tensor z,
                Tensor weights, Tensor p_weights, std::optional<Tensor> g_weights,
                std::optional<Tensor> moments, Tensor statistics, std::optional<Tensor> output,
                std::vector<int64_t> output_strides, int64_t pixels, int64_t chunk_pixels,
                double eps, int64_t height, int64_t width, int64_t images, int64_t chunks,
                int64_t operations, int64_t pitch, bool known, int64_t type, int64_t halo,
                int64_t second_halo, int64_t taps, int64_t log_width, int64_t log_height,
                int64_t log_images, int64_t channels, int64_t shared) {
  STD_TORCH_CHECK(output_strides.size() == 4, "cell_nodes: four strides were expected");
  const cell::Nodes call{data<int64_t>(tasks),
                         data<int64_t>(waits),
                         data<int>(counters),
                         data<int64_t>(packs),
                         data<int64_t>(layers),
                         data<int64_t>(mixes),
                         data<int64_t>(mixed),
                         data<float>(states),
                         data<float>(z),
                         data<float>(weights),
                         data<float>(p_weights),
                         g_weights ? data<float>(*g_weights) : nullptr,
                         moments ? data<double>(*moments) : nullptr,
                         data<float>(statistics),
                         output ? data<void>(*output) : nullptr,
                         output_strides[0],
                         output_strides[1],
                         output_strides[2],
                         output_strides[3],
                         eps,
                         static_cast<int>(pixels),
                         static_cast<int>(chunk_pixels),
                         static_cast<int>(height),
                         static_cast<int>(width),
                         static_cast<int>(images),
                         static_cast<int>(chunks),
                         static_cast<int>(operations),
                         static_cast<int>(pitch),
                         known,
                         static_cast<int>(type),
                         static_cast<int>(halo),
                         static_cast<int>(second_halo),
                         static_cast<int>(taps),
                         static_cast<int>(log_width),
                         static_cast<int>(log_height),
                         static_cast<int>(log_images)};
  start(DA2S_CHOOSE(cell_nodes, , channels), "cell_nodes", grid, shared, z, call);
}

void cell_reach(std::vector<int64_t> grid, Tensor tasks, Tensor waits, Tensor counters,
                Tensor candidates, Tensor seconds, Tensor groups, Tensor layers, Tensor states,
                Tensor z, Tensor gradients, Tensor weights, std::optional<Tensor> weight_gradients,
                Tensor p_weights, std::optional<Tensor> g_weights, Tensor statistics, Tensor sums,
                int64_t pixels, int64_t weight_count, double eps, int64_t height, int64_t width,
                int64_t chunks, int64_t images, int64_t operations, int64_t pitch, int64_t halo,
                int64_t inner_halo, int64_t taps, int64_t log_width, int64_t log_height,
                int64_t log_images, bool kept, int64_t channels, int64_t shared) {
  const cell::Reach call{data<int64_t>(tasks),
                         data<int64_t>(waits),
                         data<int>(counters),
                         data<int64_t>(candidates),
                         data<int64_t>(seconds),
                         data<int64_t>(groups),
                         data<int64_t>(layers),
                         data<float>(states),
                         data<float>(z),
                         data<float>(gradients),
                         data<float>(weights),
                         weight_gradients ? data<float>(*weight_gradients) : nullptr,
                         data<float>(p_weights),
                         g_weights ? data<float>(*g_weights) : nullptr,
                         data<float>(statistics),
                         data<double>(sums),
                         pixels,
                         weight_count,
                         eps,
                         static_cast<int>(height),
                         static_cast<int>(width),
                         static_cast<int>(chunks),
                         static_cast<int>(images),
                         static_cast<int>(operations),
                         static_cast<int>(pitch),
                         static_cast<int>(halo),
                         static_cast<int>(inner_halo),
                         static_cast<int>(taps),
                         static_cast<int>(log_width),
                         static_cast<int>(log_height),
                         static_cast<int>(log_images),
                         kept};
  start(taps > 25 ? DA2S_CHOOSE(cell_reach, _7x7, channels) : DA2S_CHOOSE(cell_reach, , channels),
        "cell_reach", grid, shared, z, call);
}

}  // namespace
}  // namespace da2s_fast

STABLE_TORCH_LIBRARY_IMPL(da2s_fast, CUDA, library) {
  library.impl("cell_nodes", TORCH_BOX(&da2s_fast::cell_nodes));
  library.impl("cell_reach", TORCH_BOX(&da2s_fast::cell_reach));
}

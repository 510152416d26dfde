// Running statistics of all norms of a cell in one call: hundreds of them cost more time one by
// one than their numbers are worth.
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/util/Exception.h>

#include <algorithm>
#include <vector>

#include "../operators.h"
#include "../tensors.h"
#include "../workspace.h"
#include "bundle.h"

namespace da2s_fast {
namespace {

using Ints = std::vector<int64_t>;

// Slots of norms that belong to something that runs.
std::vector<bool> active_norms(const Plan& plan) {
  std::vector<bool> active(plan.norm_count, false);
  std::fill_n(active.begin(), plan.preprocess_norms(), true);
  for (const Edge& edge : plan.edges)
    for (const Candidate& candidate : edge.candidates) {
      if (candidate.norm >= 0) active[candidate.norm] = true;
      for (const Layer& layer : candidate.layers) active[layer.norm] = true;
    }
  return active;
}

// running = (1 - momentum) * running + momentum * factor * found.
template <class T>
void update(const Tensor& running, const T* found, int64_t channels, double momentum,
            double factor) {
  STD_TORCH_CHECK(running.numel() == channels, "running statistics have ", running.numel(),
                  " channels, not ", channels);
  const auto write = [&](auto* to) {
    using Element = std::remove_reference_t<decltype(*to)>;
    for (int64_t c = 0; c < channels; ++c)
      to[c] = static_cast<Element>((1 - momentum) * to[c] +
                                   momentum * factor * static_cast<double>(found[c]));
  };
  if (running.scalar_type() == ScalarType::Double) return write(data<double>(running));
  if (running.scalar_type() == ScalarType::Float) return write(data<float>(running));
  // Half precision: through single precision and back.
  const Tensor wide = torch::stable::to(running, ScalarType::Float);
  update(wide, found, channels, momentum, factor);
  Tensor target = running;
  torch::stable::copy_(target, wide);
}

// A negative momentum stands for the plain average over all batches, as None does in PyTorch.
void cell_update_running(Tensor statistics, std::vector<Tensor> running,
                         std::vector<Tensor> tracked, Ints frozen, Ints code, Ints counts,
                         double momentum) {
  const Plan plan(code);
  std::vector<bool> wanted = active_norms(plan);
  for (const int64_t slot : frozen) wanted.at(slot) = false;
  STD_TORCH_CHECK(momentum >= 0 || !tracked.empty(), "an average needs the number of batches");
  const auto run = [&](const auto* found) {
    for (int64_t slot = 0; slot < plan.norm_count; ++slot) {
      if (!wanted[slot]) continue;
      const int64_t channels = plan.norm_channels(slot);
      const auto* mean = found + 2 * plan.norm_offset(slot);
      const double count = static_cast<double>(counts.at(std::min(slot, plan.preprocess_norms())));
      double share = momentum;
      if (!tracked.empty()) {
        const int64_t batches = ++*data<int64_t>(tracked.at(slot));
        if (momentum < 0) share = 1.0 / static_cast<double>(batches);
      }
      update(running.at(2 * slot), mean, channels, share, 1);
      update(running.at(2 * slot + 1), mean + channels, channels, share, count / (count - 1));
    }
  };
  if (statistics.scalar_type() == ScalarType::Double) return run(data<double>(statistics));
  run(data<float>(statistics));
}

int64_t cell_saved_size(Ints code, int64_t batch, Ints sizes, bool save, int64_t element) {
  Ints channels;
  std::vector<Size> found;
  for (size_t i = 0; i + 2 < sizes.size(); i += 3) {
    channels.push_back(sizes[i]);
    found.push_back({sizes[i + 1], sizes[i + 2]});
  }
  const Plan plan(code, channels);
  if (element == sizeof(double)) return CellPass<double>::saved_size(plan, batch, found, save);
  return CellPass<float>::saved_size(plan, batch, found, save);
}

}  // namespace

void register_cell_running(torch::stable::detail::StableLibrary& library) {
  library.impl("cell_update_running", TORCH_BOX(&cell_update_running));
}

void register_without_tensors(torch::stable::detail::StableLibrary& library) {
  library.impl("cell_saved_size", TORCH_BOX(&cell_saved_size));
  library.impl("workspace_bytes", TORCH_BOX(&workspace_bytes));
  library.impl("release_workspaces", TORCH_BOX(&release_workspaces));
}

}  // namespace da2s_fast

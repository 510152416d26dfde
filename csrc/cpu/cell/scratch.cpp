// Memory of the threads that go through the blocks of a batch.
#include <algorithm>
#include <cstring>

#include "bundle.h"

namespace da2s_fast {
namespace {

// A block's inputs inside their borders should fit into a part of the second cache.
constexpr int64_t kBlockBytes = 1 << 18;

}  // namespace

template <class T>
int64_t CellPass<T>::block_groups() const {
  const int64_t bytes = padded(before_) * static_cast<int64_t>(sizeof(T));
  return std::max<int64_t>(1, kBlockBytes / bytes);
}

template <class T>
Scratch<T> CellPass<T>::make_scratch(Loop loop) const {
  const int64_t block = std::min(block_groups(), images_.groups);
  const bool backward = loop == Loop::backward || loop == Loop::preprocess_back;
  const bool preprocess = loop == Loop::preprocess || loop == Loop::preprocess_back;
  const auto left = [](const Bundle<T>& bundle) { return !bundle.edges.empty(); };
  const bool nodes =
      !(after_ == before_) && std::any_of(bundles_.begin() + plan_.inputs, bundles_.end(), left);
  int64_t wide = 0, lanes = state_lanes();
  if (preprocess)
    for (const PackedLayer<T>& layer : preprocess_) {
      wide = std::max(wide, layer.padded());
      lanes = std::max(lanes, layer.in_lanes());
    }
  const auto lay_out = [&](Arena arena, Scratch<T>& scratch) {
    scratch.input = arena.take<T>(std::max(block * padded(before_), wide));
    if (nodes) scratch.node_input = arena.take<T>(block * padded(after_));
    scratch.filled = arena.take<int64_t>(4);
    scratch.inner = arena.take<T>(padded(after_));
    if (backward) {
      scratch.padded = arena.take<T>(std::max(padded(before_), wide));
      scratch.inner_padded = arena.take<T>(padded(after_));
    }
    const size_t bordered = arena.used();
    scratch.middle = arena.take<T>(std::max(z_elements(), before_.pixels() * state_lanes()));
    scratch.lanes = arena.take<double>(
        std::max({int64_t{2}, plan_.operations, static_cast<int64_t>(plan_.edges.size())}) * lanes);
    scratch.scale = arena.take<T>(lanes);
    if (backward) {
      scratch.dz = arena.take<T>(std::max(z_elements(), before_.pixels() * state_lanes()));
      scratch.inner_gradient = arena.take<T>(std::max(z_elements(), wide));
      scratch.pool_gradients = arena.take<T>(2 * z_elements());
      scratch.bypass = arena.take<T>(after_.pixels() * rest_lanes());
      scratch.bypass_gradient = arena.take<T>(after_.pixels() * rest_lanes());
    }
    return std::pair(bordered, arena.used());
  };
  Scratch<T> scratch{};
  const auto [bordered, used] = lay_out(Arena(), scratch);
  scratch.memory = std::make_unique<Workspace>(used);
  std::memset(scratch.memory->data(), 0, bordered);
  lay_out(Arena(scratch.memory->data()), scratch);
  return scratch;
}

template <class T>
Scratch<T> CellPass<T>::take_scratch(Loop loop) const {
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    if (!free_scratch_.empty() && (loop == Loop::forward || loop == Loop::backward)) {
      Scratch<T> scratch = std::move(free_scratch_.back());
      free_scratch_.pop_back();
      return scratch;
    }
  }
  return make_scratch(loop);
}

// Inputs differ in their borders: what their preprocessing leaves is of no use to anybody.
template <class T>
void CellPass<T>::give_back(Loop loop, Scratch<T> scratch) const {
  if (loop != Loop::forward && loop != Loop::backward) return;
  const std::lock_guard<std::mutex> lock(mutex_);
  free_scratch_.push_back(std::move(scratch));
}

#define DA2S_INSTANTIATE(T)                                  \
  template int64_t CellPass<T>::block_groups() const;        \
  template Scratch<T> CellPass<T>::take_scratch(Loop) const; \
  template void CellPass<T>::give_back(Loop, Scratch<T>) const;
DA2S_INSTANTIATE(float)
DA2S_INSTANTIATE(double)

}  // namespace da2s_fast

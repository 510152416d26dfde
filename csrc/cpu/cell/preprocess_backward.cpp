// From the gradient of an input state to that of the input.
#include <cstring>

#include "backward.h"

namespace da2s_fast {

template <class T>
void Backward<T>::preprocess_back(int64_t input) {
  const Outer* outer = wanted_.inputs[input];
  if (plan_.preprocess[input].empty()) {
    if (!outer) return;
    this->for_blocks(Loop::backward, [&](const GroupBlock& block, const Scratch<T>& scratch) {
      for (int64_t group = block.begin; group < block.end; ++group) {
        const Grid<T> g = gradient(input, group);
        const Grid<T> copy{scratch.dz, g.row, g.pixel};  // g may lie where it is to be written
        std::copy_n(g.data, this->elements(input), copy.data);
        this->export_images(copy, group, 0, plan_.channels, *outer);
      }
    });
    return;
  }
  const int64_t slot = plan_.preprocess[input][0].norm;
  sum_state(input, slot);
  const PackedLayer<T>& layer = this->preprocess_[slot];
  const Size size = layer.in_size();
  const int64_t height = in_.inputs[input].size.height, channels = layer.layer().in_channels;
  this->for_blocks(Loop::preprocess_back, [&](const GroupBlock& block, const Scratch<T>& scratch) {
    clear_weights(block, layer.sums());
    for (int64_t group = block.begin; group < block.end; ++group) {
      DA2S_SIMD_CALL(norm_gradient<T>, gradient(input, group), this->state(input, group).data,
                     this->before_.pixels(), this->state_lanes(), state_sums_.view(zeros_),
                     scratch.dz);
      clear_missing(scratch.dz, this->elements(input), group);
      const Grid<T> x = layer.inside(scratch.input);
      const Grid<T> dx = layer.dense(outer ? scratch.inner_gradient : nullptr);
      for (int64_t y = 0; y < height; y += size.height) {
        this->import_images(in_.inputs[input].rows(y, size.height), group, true, 0, channels, x);
        layer.backward(x, scratch.dz + y * this->before_.width * this->state_lanes(),
                       layer_scratch(scratch, false, nullptr), dx, false, weight_sums(block, 0));
        if (!outer) continue;
        DA2S_SIMD_CALL(mask<T>, x, dx, size, layer.in_lanes(), false, dx);
        this->export_images(dx, group, 0, channels, outer->rows(y, size.height));
      }
    }
  });
  if (wanted_.weights) fold_layer(layer, 0);
}

template <class T>
void Backward<T>::sum_state(int64_t input, int64_t slot) {
  const Size size = this->before_;
  this->for_blocks(Loop::backward, [&](const GroupBlock& block, const Scratch<T>& scratch) {
    for (int64_t group = block.begin; group < block.end; ++group) {
      const Grid<T> g = gradient(input, group);
      add_gradient(state_sums_.gradient, g, size, block, group, scratch);
      add_product(state_sums_.product, g, this->state(input, group), nullptr, size, block, group,
                  scratch);
    }
  });
  set_coefficients(state_sums_, state_sums_.gradient, -1, 1, size);
  state_sums_.constant = in_.frozen[slot];
  const T* rstd = this->rstd(slot);
  std::copy_n(rstd, this->state_lanes(), state_sums_.scale);
  std::fill_n(zeros_, this->state_lanes(), T{0});
}

template void Backward<float>::preprocess_back(int64_t);
template void Backward<double>::preprocess_back(int64_t);

}  // namespace da2s_fast

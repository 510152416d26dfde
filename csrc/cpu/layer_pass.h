// A single layer over a batch, on the cell's kernels and in its layout: what the passes of
// separable_conv and conv_norm share. Groups of images are moved into scratch memory of the thread,
// inside a border of zeros, and gradients of their inputs out of it; what lies as a group does
// anyway is read and written in place.
#pragma once

#include <cstring>
#include <memory>
#include <utility>
#include <vector>

#include "cell/layer.h"
#include "cell/side.h"

namespace da2s_fast {

template <class T>
class LayerPass {
 protected:
  // Memory of one thread, for a group of images.
  struct Scratch {
    std::unique_ptr<Workspace> memory;
    T* input;           // inside a border of zeros
    T* padded;          // see PackedLayer::Scratch
    T* middle;          // the depthwise result of a separable layer
    T* output;          // what the layer makes of a group, or the gradient of that
    T* input_gradient;  // backward only
    // With a norm behind the layer:
    double* lanes;  // 2 for each of the output
    T* gradient;    // of the norm's output; backward only
  };

  // `relu`: x goes through ReLU first. `norm`: a norm follows.
  LayerPass(const Layer& layer, Size size, const ImageTensor<const T>& x, bool relu, bool norm,
            Images images, bool backward)
      : backward_(backward),
        images_(images),
        layer_(layer, size, images.per_group, layer.border()),
        in_{size, layer.in_channels, layer_.in_lanes()},
        out_{layer_.out_size(), layer.out_channels, layer_.out_lanes()},
        x_(x),
        relu_(relu),
        norm_(norm) {}

  static int64_t vector() { return DA2S_SIMD_CALL(vector_bytes) / static_cast<int64_t>(sizeof(T)); }

  // Calls work(chunk, group, scratch) for all groups.
  template <class Work>
  void for_groups(Work work) const {
    for_each_block(
        images_, 1, false, [&] { return make_scratch(); }, [](Scratch) {},
        [&](const GroupBlock& block, const Scratch& scratch) {
          work(block.chunk, block.begin, scratch);
        });
  }

  Grid<const T> fill_input(int64_t group, const Scratch& scratch) const {
    const Grid<T> x = layer_.inside(scratch.input);
    in_.take_in(x_, images_, group, relu_, x);
    return x;
  }

  // From the gradient dz of what the layer makes of a group, whose input lies in scratch as x: dx,
  // and the weights' sums of its chunk. Either is left out where it has no memory.
  void go_back(Grid<const T> x, const T* dz, int64_t chunk, int64_t group, const Scratch& scratch,
               const ImageTensor<T>& dx, std::vector<double>& sums) const {
    T* place = dx.data ? in_.in_place(dx, images_, group) : nullptr;
    const Grid<T> found = in_.grid(dx.data && !place ? scratch.input_gradient : place);
    layer_.backward(x, dz, {scratch.middle, scratch.padded}, found, false,
                    sums.empty() ? nullptr : &sums[chunk * layer_.sums()]);
    if (!found.data) return;
    if (relu_) DA2S_SIMD_CALL(mask<T>, x, found, in_.size, in_.lanes, false, found);
    if (!place) in_.take_out<T>(found, images_, group, dx);
  }

  bool backward_;
  Images images_;
  PackedLayer<T> layer_;
  Side in_, out_;

 private:
  Scratch make_scratch() const {
    Scratch scratch{};
    const auto lay_out = [&](Arena arena) {
      scratch.input = arena.take<T>(layer_.padded());
      if (backward_) scratch.padded = arena.take<T>(layer_.padded());
      const size_t zeros = arena.used();
      if (layer_.layer().separable) scratch.middle = arena.take<T>(out_.size.pixels() * in_.lanes);
      scratch.output = arena.take<T>(out_.elements());
      if (backward_) scratch.input_gradient = arena.take<T>(in_.elements());
      if (norm_) scratch.lanes = arena.take<double>(2 * out_.lanes);
      if (norm_ && backward_) scratch.gradient = arena.take<T>(out_.elements());
      return std::pair(zeros, arena.used());
    };
    const auto [zeros, used] = lay_out(Arena());
    scratch.memory = std::make_unique<Workspace>(used);
    std::memset(scratch.memory->data(), 0, zeros);
    lay_out(Arena(scratch.memory->data()));
    return scratch;
  }

  ImageTensor<const T> x_;
  bool relu_, norm_;
};

}  // namespace da2s_fast

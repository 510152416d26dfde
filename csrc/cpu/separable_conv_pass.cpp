#include <cstring>
#include <memory>

#include "separable_conv.h"

namespace da2s_fast {
namespace {

int64_t round_up(int64_t count, int64_t step) { return (count + step - 1) / step * step; }

// Images of a group. Lanes are filled up to whole vectors, so any number would do: the one with the
// fewest lanes in all, which for a small batch need not be the one that leaves none empty.
int64_t images_per_group(const Layer& layer, int64_t batch, int64_t vector) {
  const auto lanes = [&](int64_t images) {
    return round_up(batch, images) / images *
           (round_up(layer.in_channels * images, vector) +
            round_up(layer.out_channels * images, vector));
  };
  int64_t best = 1;
  for (int64_t images = 2; images <= vector; images *= 2)
    if (lanes(images) < lanes(best)) best = images;
  return best;
}

// Memory of one thread.
template <class T>
struct Scratch {
  std::unique_ptr<Workspace> memory;
  T* input;           // ReLU(x) of a group inside a border of zeros
  T* padded;          // see PackedLayer::Scratch
  T* middle;          // the depthwise result
  T* output;          // of a group, or its gradient
  T* input_gradient;  // of a group
};

template <class T>
class Pass {
 public:
  Pass(const SeparableConv<T>& conv, bool backward)
      : conv_(conv),
        backward_(backward),
        images_(conv.batch,
                images_per_group(conv.layer, conv.batch,
                                 DA2S_SIMD_CALL(vector_bytes) / static_cast<int64_t>(sizeof(T)))),
        layer_(conv.layer, conv.size, images_.per_group, conv.layer.border()),
        in_{conv.size, conv.layer.in_channels, layer_.in_lanes()},
        out_{layer_.out_size(), conv.layer.out_channels, layer_.out_lanes()} {
    Arena count;
    layer_.lay_out(backward, count);
    weights_ = std::make_unique<Workspace>(count.used());
    Arena arena(weights_->data());
    layer_.lay_out(backward, arena);
    layer_.pack(conv.weights, backward);
  }

  void forward(const ImageTensor<T>& z) const {
    for_groups([&](int64_t, int64_t group, const Scratch<T>& scratch) {
      T* place = out_.in_place(z, images_, group);
      T* to = place ? place : scratch.output;
      layer_.forward(fill_input(group, scratch), scratch.middle, to);
      if (!place) out_.take_out<T>(out_.grid(to), images_, group, z);
    });
  }

  void backward(const ImageTensor<const T>& dz, const ImageTensor<T>& dx, T* gradients) const {
    std::vector<double> sums(gradients ? images_.chunks * layer_.sums() : 0);
    for_groups([&](int64_t chunk, int64_t group, const Scratch<T>& scratch) {
      const Grid<const T> x = fill_input(group, scratch);
      const T* from = out_.in_place(dz, images_, group);
      if (!from) out_.take_in(dz, images_, group, false, out_.grid(scratch.output));
      T* place = dx.data ? in_.in_place(dx, images_, group) : nullptr;
      T* to = dx.data && !place ? scratch.input_gradient : place;
      const Grid<T> gradient = in_.grid(to);
      layer_.backward(x, from ? from : scratch.output, {scratch.middle, scratch.padded}, gradient,
                      false, gradients ? &sums[chunk * layer_.sums()] : nullptr);
      if (!to) return;
      DA2S_SIMD_CALL(mask<T>, x, gradient, in_.size, in_.lanes, false, gradient);
      if (!place) in_.take_out<T>(gradient, images_, group, dx);
    });
    if (gradients) layer_.fold(sums.data(), layer_.sums(), images_.chunks, gradients);
  }

 private:
  // Calls work(chunk, group, scratch) for all groups.
  template <class Work>
  void for_groups(Work work) const {
    for_each_block(
        images_, 1, [&] { return make_scratch(); }, [](Scratch<T>) {},
        [&](const GroupBlock& block, const Scratch<T>& scratch) {
          work(block.chunk, block.begin, scratch);
        });
  }

  Scratch<T> make_scratch() const {
    Scratch<T> scratch{};
    const auto lay_out = [&](Arena arena) {
      scratch.input = arena.take<T>(layer_.padded());
      if (backward_) scratch.padded = arena.take<T>(layer_.padded());
      const size_t zeros = arena.used();
      scratch.middle = arena.take<T>(out_.size.pixels() * in_.lanes);
      scratch.output = arena.take<T>(out_.elements());
      if (backward_) scratch.input_gradient = arena.take<T>(in_.elements());
      return std::pair(zeros, arena.used());
    };
    const auto [zeros, used] = lay_out(Arena());
    scratch.memory = std::make_unique<Workspace>(used);
    std::memset(scratch.memory->data(), 0, zeros);
    lay_out(Arena(scratch.memory->data()));
    return scratch;
  }

  Grid<const T> fill_input(int64_t group, const Scratch<T>& scratch) const {
    const Grid<T> x = layer_.inside(scratch.input);
    in_.take_in(conv_.x, images_, group, true, x);
    return x;
  }

  const SeparableConv<T>& conv_;
  bool backward_;
  Images images_;
  PackedLayer<T> layer_;
  Side in_, out_;
  std::unique_ptr<Workspace> weights_;
};

}  // namespace

template <class T>
void separable_conv_forward(const SeparableConv<T>& conv, const ImageTensor<T>& z) {
  Pass<T>(conv, false).forward(z);
}

template <class T>
void separable_conv_backward(const SeparableConv<T>& conv, const ImageTensor<const T>& dz,
                             const ImageTensor<T>& dx, T* weights) {
  Pass<T>(conv, true).backward(dz, dx, weights);
}

#define DA2S_INSTANTIATE(T)                                                                   \
  template void separable_conv_forward(const SeparableConv<T>&, const ImageTensor<T>&);       \
  template void separable_conv_backward(const SeparableConv<T>&, const ImageTensor<const T>&, \
                                        const ImageTensor<T>&, T*);
DA2S_INSTANTIATE(float)
DA2S_INSTANTIATE(double)

}  // namespace da2s_fast

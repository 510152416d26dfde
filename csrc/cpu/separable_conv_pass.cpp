#include <memory>
#include <vector>

#include "layer_pass.h"
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

template <class T>
class Pass : LayerPass<T> {
  using Base = LayerPass<T>;
  using typename Base::Scratch;

 public:
  Pass(const SeparableConv<T>& conv, bool backward)
      : Base(conv.layer, conv.size, conv.x, true, false,
             {conv.batch, images_per_group(conv.layer, conv.batch, Base::vector())}, backward) {
    Arena count;
    layer_.lay_out(backward, count);
    weights_ = std::make_unique<Workspace>(count.used());
    Arena arena(weights_->data());
    layer_.lay_out(backward, arena);
    layer_.pack(conv.weights, backward);
  }

  void forward(const ImageTensor<T>& z) const {
    for_groups([&](int64_t, int64_t group, const Scratch& scratch) {
      T* place = out_.in_place(z, images_, group);
      T* to = place ? place : scratch.output;
      layer_.forward(fill_input(group, scratch), scratch.middle, to);
      if (!place) out_.template take_out<T>(out_.grid(to), images_, group, z);
    });
  }

  void backward(const ImageTensor<const T>& dz, const ImageTensor<T>& dx, T* gradients) const {
    std::vector<double> sums(gradients ? images_.chunks * layer_.sums() : 0);
    for_groups([&](int64_t chunk, int64_t group, const Scratch& scratch) {
      const Grid<const T> x = fill_input(group, scratch);
      const T* from = out_.in_place(dz, images_, group);
      if (!from) out_.take_in(dz, images_, group, false, out_.grid(scratch.output));
      go_back(x, from ? from : scratch.output, chunk, group, scratch, dx, sums);
    });
    if (gradients) layer_.fold(sums.data(), layer_.sums(), images_.chunks, gradients);
  }

 private:
  using Base::fill_input, Base::for_groups, Base::go_back;
  using Base::images_, Base::layer_, Base::out_;

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

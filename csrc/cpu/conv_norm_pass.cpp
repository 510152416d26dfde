#include <cmath>
#include <memory>
#include <vector>

#include "cell/sums.h"
#include "conv_norm.h"
#include "layer_pass.h"

namespace da2s_fast {
namespace {

// Multiply-adds for a number up to which it costs less to compute it again than to keep it.
constexpr int64_t kCheap = 100;

// Numbers for every lane of the output.
template <class T>
struct Lanes {
  T *mean, *scale, *shift, *slope;
};

template <class T>
class Pass : LayerPass<T> {
  using Base = LayerPass<T>;
  using typename Base::Scratch;

 public:
  Pass(const ConvNorm<T>& conv, bool backward)
      : Base(conv.layer, conv.size, conv.x, conv.relu, true,
             {conv.batch, conv.layer.out_channels, Base::vector()}, backward),
        conv_(conv) {
    Arena count;
    lay_out(count);
    memory_ = std::make_unique<Workspace>(count.used());
    Arena arena(memory_->data());
    lay_out(arena);
    layer_.pack(conv.weights, backward);
  }

  void forward(const ImageTensor<T>& output, T* statistics) {
    for_groups([&](int64_t chunk, int64_t group, const Scratch& scratch) {
      T* place = out_.in_place(output, images_, group);
      T* z = place ? place : scratch.output;
      moments_.add_while(images_, chunk, group, z, out_.size.pixels(), false, scratch.lanes,
                         [&](const ProductMoments<T>* where) {
                           return layer_.forward(fill_input(group, scratch), nullptr, z, nullptr,
                                                 where);
                         });
    });
    const int64_t channels = out_.channels;
    moments_.finish(images_, out_.size.pixels(), statistics, statistics + channels);
    set_norm(statistics);
    for (int64_t c = 0; c < channels; ++c)
      fill(lanes_.shift, c, conv_.shift ? static_cast<double>(conv_.shift[c]) : 0);
    for_groups([&](int64_t, int64_t group, const Scratch& scratch) {
      T* place = out_.in_place(output, images_, group);
      T* z = place ? place : features(group, scratch, scratch.output);
      DA2S_SIMD_CALL(affine<T>, out_.grid(z), out_.size, out_.lanes, lanes_.scale, lanes_.mean,
                     lanes_.shift, out_.grid(z));
      if (!place) out_.template take_out<T>(out_.grid(z), images_, group, output);
    });
  }

  void backward(const ImageTensor<const T>& gradient, const T* statistics,
                const ConvNormGradients<T>& wanted) {
    set_norm(statistics);
    sum_gradients(gradient);
    set_coefficients(statistics, wanted);
    if (!wanted.x.data && !wanted.weight) return;
    std::vector<double> sums(wanted.weight ? images_.chunks * layer_.sums() : 0);
    const NormGradient<T> norm{lanes_.scale, lanes_.mean, lanes_.shift, lanes_.slope};
    for_groups([&](int64_t chunk, int64_t group, const Scratch& scratch) {
      const Grid<const T> x = fill_input(group, scratch);
      T* z = features_of(group, scratch);
      if (!kept_) layer_.forward(x, nullptr, z);
      DA2S_SIMD_CALL(norm_gradient<T>, gradient_of(gradient, group, scratch), z, out_.size.pixels(),
                     out_.lanes, norm, z);
      clear_missing(z, group);
      go_back(x, z, chunk, group, scratch, wanted.x, sums);
    });
    if (wanted.weight) layer_.fold(sums.data(), layer_.sums(), images_.chunks, wanted.weight);
  }

 private:
  using Base::backward_, Base::images_, Base::layer_, Base::out_;
  using Base::fill_input, Base::for_groups, Base::go_back;

  void lay_out(Arena& arena) {
    layer_.lay_out(backward_, arena);
    for (T** numbers : {&lanes_.mean, &lanes_.scale, &lanes_.shift, &lanes_.slope})
      *numbers = arena.take<T>(out_.lanes);
    if (backward_) {
      sums_ = ChannelSums(out_.channels, images_, arena);
      products_ = ChannelSums(out_.channels, images_, arena);
      if (conv_.layer.in_channels * conv_.layer.taps() > kCheap)
        kept_ = arena.take<T>(images_.groups * out_.elements());
    } else {
      moments_ = Moments<T>(out_.channels, images_, arena);
    }
  }

  // Where backward has features.
  T* features_of(int64_t group, const Scratch& scratch) const {
    return kept_ ? kept_ + group * out_.elements() : scratch.output;
  }

  // What the convolution makes of a group; its input stays in scratch.
  T* features(int64_t group, const Scratch& scratch, T* z) const {
    layer_.forward(fill_input(group, scratch), nullptr, z);
    return z;
  }

  Grid<const T> gradient_of(const ImageTensor<const T>& gradient, int64_t group,
                            const Scratch& scratch) const {
    if (const T* place = out_.in_place(gradient, images_, group)) return out_.grid(place);
    out_.take_in(gradient, images_, group, false, out_.grid(scratch.gradient));
    return out_.grid(scratch.gradient);
  }

  void fill(T* lanes, int64_t channel, double value) const {
    std::fill_n(lanes + channel * images_.per_group, images_.per_group, static_cast<T>(value));
  }

  double rstd(const T* statistics, int64_t channel) const {
    return 1 / std::sqrt(static_cast<double>(statistics[out_.channels + channel]) + conv_.eps);
  }

  void set_norm(const T* statistics) {
    for (int64_t c = 0; c < out_.channels; ++c) {
      fill(lanes_.mean, c, statistics[c]);
      fill(lanes_.scale, c, (conv_.scale ? conv_.scale[c] : 1) * rstd(statistics, c));
    }
  }

  // Sums of G and of G * (z - mean).
  void sum_gradients(const ImageTensor<const T>& gradient) const {
    sums_.clear(images_.chunks);
    products_.clear(images_.chunks);
    for_groups([&](int64_t chunk, int64_t group, const Scratch& scratch) {
      const T* z = features(group, scratch, features_of(group, scratch));
      const Grid<const T> g = gradient_of(gradient, group, scratch);
      double *sums = scratch.lanes, *products = scratch.lanes + out_.lanes;
      std::fill_n(scratch.lanes, 2 * out_.lanes, 0.0);
      DA2S_SIMD_CALL(lane_sums<T>, g, out_.size.pixels(), out_.lanes, sums);
      const Factor<T> factor{out_.grid(z), lanes_.mean, products};
      DA2S_SIMD_CALL(lane_products<T>, g, &factor, 1, out_.size, out_.lanes);
      const int64_t valid = images_.valid(group);
      fold_lanes(sums, out_.channels, images_.per_group, valid, sums_.of(chunk));
      fold_lanes(products, out_.channels, images_.per_group, valid, products_.of(chunk));
    });
  }

  // The norm's own gradients, and with what numbers the output's becomes that of its input
  // (docs/engine.md, "Backward of a norm").
  void set_coefficients(const T* statistics, const ConvNormGradients<T>& wanted) {
    const double values = static_cast<double>(images_.batch * out_.size.pixels());
    for (int64_t c = 0; c < out_.channels; ++c) {
      const double sum = sums_.total(c, images_.chunks);
      const double product = products_.total(c, images_.chunks), r = rstd(statistics, c);
      if (wanted.shift) wanted.shift[c] = static_cast<T>(sum);
      if (wanted.scale) wanted.scale[c] = static_cast<T>(r * product);
      fill(lanes_.shift, c, sum / values);
      fill(lanes_.slope, c, r * r * product / values);
    }
  }

  // Images that fill up the last group have no part in the gradients of weights.
  void clear_missing(T* lanes, int64_t group) const {
    const int64_t images = images_.per_group, valid = images_.valid(group);
    if (valid == images) return;
    for (int64_t i = 0; i < out_.elements(); i += images)
      std::fill(lanes + i + valid, lanes + i + images, T{0});
  }

  const ConvNorm<T>& conv_;
  std::unique_ptr<Workspace> memory_;
  Lanes<T> lanes_{};
  Moments<T> moments_;           // forward
  ChannelSums sums_, products_;  // backward
  T* kept_ = nullptr;            // features of all groups, in backward if they are not cheap
};

}  // namespace

template <class T>
void conv_norm_forward(const ConvNorm<T>& conv, const ImageTensor<T>& output, T* statistics) {
  Pass<T>(conv, false).forward(output, statistics);
}

template <class T>
void conv_norm_backward(const ConvNorm<T>& conv, const ImageTensor<const T>& gradient,
                        const T* statistics, const ConvNormGradients<T>& wanted) {
  Pass<T>(conv, true).backward(gradient, statistics, wanted);
}

#define DA2S_INSTANTIATE(T)                                                                   \
  template void conv_norm_forward(const ConvNorm<T>&, const ImageTensor<T>&, T*);             \
  template void conv_norm_backward(const ConvNorm<T>&, const ImageTensor<const T>&, const T*, \
                                   const ConvNormGradients<T>&);
DA2S_INSTANTIATE(float)
DA2S_INSTANTIATE(double)

}  // namespace da2s_fast

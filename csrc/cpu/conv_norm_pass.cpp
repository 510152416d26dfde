#include <cmath>
#include <cstring>
#include <memory>

#include "cell/sums.h"
#include "conv_norm.h"

namespace da2s_fast {
namespace {

// Multiply-adds for a number up to which it costs less to compute it again than to keep it.
constexpr int64_t kCheap = 100;

// Memory of one thread.
template <class T>
struct Scratch {
  std::unique_ptr<Workspace> memory;
  T* input;     // of a group inside a border of zeros
  T* padded;    // see PackedLayer::Scratch
  T* features;  // what the convolution makes of a group, or the gradient of that
  T* gradient;  // of the output
  T* input_gradient;
  double* lanes;  // 2 for each
};

// Numbers for every lane of the output.
template <class T>
struct Lanes {
  T *mean, *scale, *shift, *slope;
};

template <class T>
class Pass {
 public:
  Pass(const ConvNorm<T>& conv, bool backward)
      : conv_(conv),
        backward_(backward),
        images_(conv.batch, conv.layer.out_channels,
                DA2S_SIMD_CALL(vector_bytes) / static_cast<int64_t>(sizeof(T))),
        layer_(conv.layer, conv.size, images_.per_group, conv.layer.border()),
        in_{conv.size, conv.layer.in_channels, layer_.in_lanes()},
        out_{layer_.out_size(), conv.layer.out_channels, layer_.out_lanes()} {
    Arena count;
    lay_out(count);
    memory_ = std::make_unique<Workspace>(count.used());
    Arena arena(memory_->data());
    lay_out(arena);
    layer_.pack(conv.weights, backward);
  }

  void forward(const ImageTensor<T>& output, T* statistics) {
    for_groups([&](int64_t chunk, int64_t group, const Scratch<T>& scratch) {
      T* place = out_.in_place(output, images_, group);
      const T* z = features(group, scratch, place ? place : scratch.features);
      moments_.add(images_, chunk, group, z, out_.size.pixels(), scratch.lanes);
    });
    const int64_t channels = out_.channels;
    moments_.finish(images_, out_.size.pixels(), statistics, statistics + channels);
    set_norm(statistics);
    for (int64_t c = 0; c < channels; ++c)
      fill(lanes_.shift, c, conv_.shift ? static_cast<double>(conv_.shift[c]) : 0);
    for_groups([&](int64_t, int64_t group, const Scratch<T>& scratch) {
      T* place = out_.in_place(output, images_, group);
      T* z = place ? place : features(group, scratch, scratch.features);
      DA2S_SIMD_CALL(affine<T>, out_.grid(z), out_.size, out_.lanes, lanes_.scale, lanes_.mean,
                     lanes_.shift, out_.grid(z));
      if (!place) out_.take_out<T>(out_.grid(z), images_, group, output);
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
    for_groups([&](int64_t chunk, int64_t group, const Scratch<T>& scratch) {
      const Grid<const T> x = fill_input(group, scratch);
      T* z = features_of(group, scratch);
      if (!kept_) layer_.forward(x, nullptr, z);
      DA2S_SIMD_CALL(norm_gradient<T>, gradient_of(gradient, group, scratch), z, out_.size.pixels(),
                     out_.lanes, norm, z);
      clear_missing(z, group);
      T* place = wanted.x.data ? in_.in_place(wanted.x, images_, group) : nullptr;
      const Grid<T> found = in_.grid(wanted.x.data && !place ? scratch.input_gradient : place);
      layer_.backward(x, z, {nullptr, scratch.padded}, found, false,
                      wanted.weight ? &sums[chunk * layer_.sums()] : nullptr);
      if (!found.data) return;
      if (conv_.relu) DA2S_SIMD_CALL(mask<T>, x, found, in_.size, in_.lanes, false, found);
      if (!place) in_.take_out<T>(found, images_, group, wanted.x);
    });
    if (wanted.weight) layer_.fold(sums.data(), layer_.sums(), images_.chunks, wanted.weight);
  }

 private:
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
      scratch.features = arena.take<T>(out_.elements());
      scratch.lanes = arena.take<double>(2 * out_.lanes);
      if (backward_) {
        scratch.gradient = arena.take<T>(out_.elements());
        scratch.input_gradient = arena.take<T>(in_.elements());
      }
      return std::pair(zeros, arena.used());
    };
    const auto [zeros, used] = lay_out(Arena());
    scratch.memory = std::make_unique<Workspace>(used);
    std::memset(scratch.memory->data(), 0, zeros);
    lay_out(Arena(scratch.memory->data()));
    return scratch;
  }

  // Where backward has features.
  T* features_of(int64_t group, const Scratch<T>& scratch) const {
    return kept_ ? kept_ + group * out_.elements() : scratch.features;
  }

  // What the convolution makes of a group; its input stays in scratch.
  T* features(int64_t group, const Scratch<T>& scratch, T* z) const {
    layer_.forward(fill_input(group, scratch), nullptr, z);
    return z;
  }

  Grid<const T> fill_input(int64_t group, const Scratch<T>& scratch) const {
    const Grid<T> x = layer_.inside(scratch.input);
    in_.take_in(conv_.x, images_, group, conv_.relu, x);
    return x;
  }

  Grid<const T> gradient_of(const ImageTensor<const T>& gradient, int64_t group,
                            const Scratch<T>& scratch) const {
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
    for_groups([&](int64_t chunk, int64_t group, const Scratch<T>& scratch) {
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
  bool backward_;
  Images images_;
  PackedLayer<T> layer_;
  Side in_, out_;
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

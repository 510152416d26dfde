// The backward pass of a cell: states in reverse, for every slice of a bundle the stages of
// da2s_fast/ops/cell/bundle_backward.py. A node's gradient is complete when the bundles of all
// later states are done. A state's own holds what comes back to ReLU, of one layer after the other,
// until the last slice takes it through ReLU and adds the rest.
#pragma once

#include <algorithm>
#include <cmath>
#include <vector>

#include "pass.h"

namespace da2s_fast {

// What a norm's gradient needs of the sums over the batch, a number for every lane.
template <class T>
struct NormSums {
  ChannelSums gradient, product;  // sum g, sum g (z - mean)
  T* scale = nullptr;
  T* shift = nullptr;
  T* slope = nullptr;
  bool constant = false;  // the statistics are: shift and slope vanish

  NormGradient<T> view(const T* mean) const {
    return {scale, mean, constant ? nullptr : shift, slope};
  }
};

template <class T>
struct CandidateSums {
  NormSums<T> last, first;       // first: of a second layer's input
  T* inner = nullptr;            // its gradient, all groups
  std::vector<int64_t> weights;  // where every layer's sums begin
};

template <class T>
struct EdgeSums {
  std::vector<CandidateSums<T>> candidates;
  ChannelSums bypass;
};

template <class T>
class Backward : public CellPass<T> {
 public:
  Backward(const CellArguments<T>& arguments, const Outer& gradient, const T* statistics,
           const CellGradients<T>& wanted)
      : CellPass<T>(arguments), outer_(gradient), statistics_(statistics), wanted_(wanted) {
    for (int64_t s = 0; s < plan_.states(); ++s) {
      sums_.emplace_back();
      for (const EdgeRun<T>& edge : this->bundles_[s].edges)
        sums_.back().push_back({std::vector<CandidateSums<T>>(edge.candidates.size()), {}});
    }
  }

  void run(const T* saved);

 private:
  using CellPass<T>::plan_;
  using CellPass<T>::images_;
  using CellPass<T>::in_;
  using typename CellPass<T>::Loop;

  bool wanted_state(int64_t s) const {
    if (s >= plan_.inputs) return true;
    return wanted_.inputs[s] || (wanted_.weights && !plan_.preprocess[s].empty()) ||
           (wanted_.weights && !this->bundles_[s].edges.empty());
  }

  // The states of the inputs, computed again.
  void restore_inputs();

  // Where the gradient of an input that is its own state can grow: in the memory of the tensor that
  // will hold it, if that is as large.
  T* in_place(int64_t s) const;

  NormSums<T> norm_sums(int64_t channels, Arena& arena);
  void lay_out(Arena& saved, Arena& workspace);
  int64_t lay_out_sums(const Bundle<T>& bundle, Slice& slice, Arena& arena);

  Grid<T> gradient(int64_t s, int64_t group) const {
    Grid<T> grid = this->state(s, 0);
    grid.data = gradients_[s] + group * this->elements(s);
    return grid;
  }

  // The part of a node's gradient that went through its edges' candidates. They read it dozens of
  // times: beside channels that bypass them it would lie scattered.
  Grid<T> mixed_gradient(int64_t s, int64_t group) const {
    if (!mixed_gradients_[s]) return gradient(s, group);
    return this->z_grid(mixed_gradients_[s] + group * this->z_elements());
  }

  // Where a group's sums per lane are added, zeros the first time: the chunk's own, or numbers
  // that finish_sums folds into them.
  double* begin_sums(const ChannelSums& sums, const GroupBlock& block, int64_t group,
                     double* lanes) const {
    double* channels = sums.of(block.chunk);
    if (group == images_.first(block.chunk)) std::fill_n(channels, sums.channels, 0.0);
    if (images_.per_group == 1) return channels;
    std::fill_n(lanes, sums.channels * images_.per_group, 0.0);
    return lanes;
  }
  void finish_sums(const ChannelSums& sums, const GroupBlock& block, int64_t group,
                   const double* lanes) const {
    if (images_.per_group > 1)
      fold_lanes(lanes, sums.channels, images_.per_group, images_.valid(group),
                 sums.of(block.chunk));
  }
  // Sums of one group's gradient, and of its product with one tensor.
  void add_gradient(const ChannelSums& sums, Grid<const T> g, Size size, const GroupBlock& block,
                    int64_t group, const Scratch<T>& scratch) const;
  void add_product(const ChannelSums& sums, Grid<const T> g, Grid<const T> z, const T* mean,
                   Size size, const GroupBlock& block, int64_t group,
                   const Scratch<T>& scratch) const;

  // Zeros in the place of images that are not there: their gradient must not reach the weights.
  void clear_missing(T* data, int64_t numbers, int64_t group) const;

  double* weight_sums(const GroupBlock& block, int64_t begin) const {
    return wanted_.weights ? weight_sums_ + block.chunk * weights_per_chunk_ + begin : nullptr;
  }

  // Everything a chunk's first block has to clear in the weights' sums.
  void clear_weights(const GroupBlock& block, int64_t count) const {
    if (wanted_.weights && block.begin == images_.first(block.chunk))
      std::fill_n(weight_sums(block, 0), count, 0.0);
  }

  // The last stage of a slice, which may complete its state's gradient; then the first one of the
  // slice that follows, if any.
  struct At {
    const Bundle<T>* bundle;
    const Slice* slice;
  };
  void go_on(At done, At next);
  void complete_node(int64_t s, const GroupBlock& block, const Scratch<T>& scratch);

  // Every candidate's product with its node's gradient.
  void first_stage_back(const Bundle<T>& bundle, const Slice& slice, const GroupBlock& block,
                        const Scratch<T>& scratch);

  double rstd_of(int64_t slot, int64_t channel) const {
    const T* statistics = statistics_ + 2 * plan_.norm_offset(slot) + plan_.norm_channels(slot);
    return 1 / std::sqrt(static_cast<double>(statistics[channel]) + in_.eps);
  }

  // Scale, shift and slope of a norm's gradient that arrives times `factor`.
  void set_coefficients(NormSums<T>& sums, const ChannelSums& gradient, int64_t slot, double factor,
                        Size size);

  // The gradients of p and g, and what the second stage needs.
  void coefficients(const Bundle<T>& bundle, const Slice& slice);
  // What the bypasses of a state's edges add to the gradient of g.
  void bypass_coefficients(int64_t s);

  // Last layers: from the nodes down to ReLU, for separable convolutions to their inner norm.
  void second_stage_back(const Bundle<T>& bundle, const Slice& slice);

  Grid<T> pool_gradient(size_t pool, const Scratch<T>& scratch) const {
    return this->z_grid(scratch.pool_gradients + static_cast<int64_t>(pool) * this->z_elements());
  }

  typename PackedLayer<T>::Scratch layer_scratch(const Scratch<T>& scratch, bool second,
                                                 Ahead* ahead) const {
    return {scratch.middle, second ? scratch.inner_padded : scratch.padded, ahead};
  }

  // Candidates without layers, of one group: pools' gradients gather before they spread.
  void plain_back(const Bundle<T>& bundle, int64_t group, const Scratch<T>& scratch);
  void direct_back(const Bundle<T>& bundle, const Edge& edge, const CandidateSums<T>& sums,
                   int64_t group);

  void pool_back(const Bundle<T>& bundle, const Edge& edge, const CandidateRun<T>& run,
                 const CandidateSums<T>& sums, int64_t group, const Scratch<T>& scratch);

  // Through the last norm, into scratch.dz.
  void norm_back(Grid<const T> g, const CandidateRun<T>& run, const CandidateSums<T>& sums,
                 int64_t group, const Scratch<T>& scratch);

  void last_layers_back(const Bundle<T>& bundle, const Slice& slice, const GroupBlock& block,
                        const Scratch<T>& scratch);
  // A layer that reads the state, from scratch.dz.
  void layer_back(const Bundle<T>& bundle, const CandidateRun<T>& run, const CandidateSums<T>& sums,
                  const GroupBlock& block, int64_t group, const Scratch<T>& scratch, Ahead* ahead);

  // How often a layer's backward asks for memory per row, about.
  int64_t asks() const { return wanted_.weights ? 4 : 2; }

  // A separable convolution's second layer, and the sums of the norm before it.
  void inner_back(const Bundle<T>& bundle, const CandidateRun<T>& run, const CandidateSums<T>& sums,
                  const GroupBlock& block, int64_t group, const Scratch<T>& scratch, Ahead* ahead);
  void pools_back(const Bundle<T>& bundle, int64_t group, const Scratch<T>& scratch);

  // Whether a state's gradient begins with zeros: where there is no layer to write it first, and
  // where a pooled bypass adds.
  bool begins_with_zeros(const Bundle<T>& bundle) const {
    return !bundle.leader || (this->rest_lanes() && plan_.stride(bundle.source) > 1);
  }
  void bypass_back(const Bundle<T>& bundle, const GroupBlock& block, const Scratch<T>& scratch);

  // Separable convolutions from their inner norm down to ReLU. In the last slice all that has come
  // there goes through, and candidates without layers and the bypass are added.
  void third_stage_back(const Bundle<T>& bundle, const Slice& slice, const GroupBlock& block,
                        const Scratch<T>& scratch);
  void first_layers_back(const Bundle<T>& bundle, const Slice& slice, const GroupBlock& block,
                         const Scratch<T>& scratch);

  // Which layers' weights a stage computes gradients of: the last ones in the second, first ones of
  // separable convolutions in the third. Both stages use the same memory for the sums.
  static bool in_third_stage(const CandidateRun<T>& run, size_t layer) {
    return layer + 1 < run.layers.size();
  }
  void fold_weights(const Bundle<T>& bundle, const Slice& slice, bool third_stage);

  void fold_layer(const PackedLayer<T>& layer, int64_t begin);

  // From an input's state to the input itself.
  void preprocess_back(int64_t input);

  // The sums of a preprocessing's norm. The state is the normalized tensor itself: seen from there
  // the mean is 0 and the deviation 1.
  void sum_state(int64_t input, int64_t slot);

  const Outer& outer_;
  const T* statistics_;
  const CellGradients<T>& wanted_;
  std::vector<std::vector<EdgeSums<T>>> sums_;  // by source state, as the bundles' edges
  std::vector<T*> gradients_;                   // of the states, all groups
  std::vector<T*> mixed_gradients_;             // of the nodes, where channels bypass candidates
  std::vector<ChannelSums> node_sums_;          // sum of a node's gradient
  NormSums<T> state_sums_;
  T* zeros_ = nullptr;
  double* weight_sums_ = nullptr;
  int64_t weights_per_chunk_ = 0;
};

}  // namespace da2s_fast

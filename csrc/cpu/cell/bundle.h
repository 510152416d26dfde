// A pass over a cell: what forward and backward share, and the forward stages of a bundle (all
// edges that leave a state, see da2s_fast/ops/cell/bundle.py).
#pragma once

#include <algorithm>
#include <cstdint>
#include <memory>
#include <mutex>
#include <utility>
#include <vector>

#include "../scalar.h"
#include "layer.h"
#include "sums.h"

namespace da2s_fast {

enum class OuterType { float32, float64, bfloat16, float16 };
template <class Stored>
constexpr OuterType kOuterType = OuterType::float32;
template <>
inline constexpr OuterType kOuterType<double> = OuterType::float64;
template <>
inline constexpr OuterType kOuterType<BFloat16> = OuterType::bfloat16;
template <>
inline constexpr OuterType kOuterType<Float16> = OuterType::float16;

// A tensor (N, C, H, W) of PyTorch's.
struct Outer {
  void* data;
  OuterType type;
  int64_t image;  // distance of images in elements
  ImageStrides at;
  int64_t channels;
  Size size;

  // `count` of its rows.
  Outer rows(int64_t first, int64_t count) const {
    const int64_t bytes = type == OuterType::float64 ? 8 : type == OuterType::float32 ? 4 : 2;
    Outer part = *this;
    part.data = static_cast<char*>(data) + first * at.row * bytes;
    part.size.height = count;
    return part;
  }
};

template <class T>
struct CellArguments {
  const Plan& plan;
  int64_t batch;
  std::vector<Outer> inputs;
  std::vector<const T*> weights;
  std::vector<double> p, g;  // (edges, operations), (edges,)
  std::vector<bool> frozen;  // norms that use running statistics
  double eps;
  bool save;

  double p_of(const Candidate& candidate) const {
    return p[candidate.row * plan.operations + candidate.column];
  }
};

// A candidate with its layers and where their features lie.
template <class T>
struct CandidateRun {
  const Candidate* candidate;
  std::vector<PackedLayer<T>> layers;
  std::vector<T*> features;         // of every layer, all groups
  std::vector<Moments<T>> moments;  // of them, in training
  const T* z = nullptr;  // what is mixed: the last features, a pool; null for direct ones
  T* scale = nullptr;    // what it is mixed with, a number for every lane (forward)
};

template <class T>
struct EdgeRun {
  const Edge* edge;
  std::vector<CandidateRun<T>> candidates;
};

// Candidates of a bundle whose features are in memory at the same time: all of them where they are
// kept for backward, else so few that they need no more than what a cell holds anyway. The slices
// of a bundle follow each other, forward and backward. One layer, two layers, none: candidates of
// an edge are in this order, in which everything is summed however the bundle is cut.
struct Slice {
  struct Part {
    size_t edge, begin, end;  // candidates of an edge
  };
  std::vector<Part> parts;
  bool first = true, last = true;  // of the bundle; the last one has all candidates without layers
  bool once = false, twice = false;  // whether there are candidates with one layer, with two
  int64_t weights[2] = {};  // sums for a chunk's gradients in backward's second and third stage
};

// One layer's work on one group.
struct Step {
  size_t edge, candidate;
  int64_t group;
};

template <class T>
struct PoolRun {
  Kind kind;
  T* z;
  Moments<T> moments;
};

template <class T>
struct Bundle {
  int64_t source;
  std::vector<EdgeRun<T>> edges;
  std::vector<PoolRun<T>> pools;
  std::vector<Slice> slices;  // at least one
  const Candidate* leader;    // the first one with layers, if any
  bool streaming = false;     // features are written past the caches
};

// Memory of one thread. What has a border has zeros there, always.
template <class T>
struct Scratch {
  std::unique_ptr<Workspace> memory;
  T* input;         // ReLU(x) of a block inside its border
  T* node_input;    // the same for nodes, where their size is another
  int64_t* filled;  // of either, whose states they are (0: nobody's, 1: the first's), and of which
                    // block, by its first group
  T* inner;         // ReLU(normalized features) of a group inside its border
  T* padded;        // see PackedLayer::Scratch, for first layers
  T* inner_padded;  // for second layers
  T* middle;
  T* dz;
  T* inner_gradient;
  T* pool_gradients;  // of a group
  T* bypass;          // a group's pooled bypass, and its gradient
  T* bypass_gradient;
  double* lanes;  // for every lane 2, one per candidate of an edge or one per edge of a bundle
  T* scale;       // 1 for every lane
};

template <class T>
class CellPass {
 public:
  explicit CellPass(const CellArguments<T>& arguments);

  // Numbers that live as long as the backward pass may come: nodes that bundles leave and, if asked
  // to save, states of inputs and what bundles compute.
  static int64_t saved_size(const Plan& plan, int64_t batch, const std::vector<Size>& sizes,
                            bool save);

 protected:
  // Lays out what is saved and what lives during the call; null arenas count.
  void lay_out(Arena& saved, Arena& workspace, bool backward);

  int64_t mixed_lanes() const { return plan_.mixed() * images_.per_group; }
  int64_t state_lanes() const { return plan_.channels * images_.per_group; }
  int64_t rest_lanes() const { return state_lanes() - mixed_lanes(); }
  Size size_of(int64_t state) const { return state < plan_.inputs ? before_ : after_; }
  int64_t elements(int64_t state) const { return size_of(state).pixels() * state_lanes(); }
  int64_t z_elements() const { return after_.pixels() * mixed_lanes(); }
  Grid<T> state(int64_t index, int64_t group) const {
    return {states_[index] + group * elements(index), size_of(index).width * state_lanes(),
            state_lanes()};
  }
  Grid<T> z_grid(T* z) const { return {z, after_.width * mixed_lanes(), mixed_lanes()}; }
  Grid<const T> z_grid(const T* z) const {
    return {z, after_.width * mixed_lanes(), mixed_lanes()};
  }
  // The same to read, also where an input is not kept: then it is converted into scratch.middle.
  Grid<const T> state_of(int64_t index, int64_t group, const Scratch<T>& scratch) const;
  // An input that is its own state need not be kept. Of more than one edge it is read so often that
  // a copy pays.
  bool is_kept(int64_t input) const {
    return in_.save || plan_.nodes > 1 || plan_.partial > 1 || !plan_.preprocess[input].empty();
  }
  // What a candidate mixes, of one group: features, a pool, or pixels of the state.
  Grid<const T> mixed_of(const Bundle<T>& bundle, const EdgeRun<T>& edge,
                         const CandidateRun<T>& run, int64_t group,
                         const Scratch<T>& scratch) const;
  const T* mean(int64_t slot) const { return mean_ + lane_offset(slot); }
  const T* rstd(int64_t slot) const { return rstd_ + lane_offset(slot); }
  int64_t lane_offset(int64_t slot) const { return plan_.norm_offset(slot) * images_.per_group; }

  // Fills mean and rstd of a norm, a value for every lane, from its statistics.
  void expand_norm(int64_t slot, const T* statistics);

  int64_t block_groups() const;
  // What a loop over the blocks does, which says how much memory it takes. Preprocessing has wider
  // inputs than all else.
  enum class Loop { forward, backward, preprocess, preprocess_back };
  template <class Work>
  void for_blocks(Loop loop, Work work) const {
    reversed_ = !reversed_;
    for_each_block(
        images_, block_groups(), reversed_, [&] { return take_scratch(loop); },
        [&](Scratch<T> scratch) { give_back(loop, std::move(scratch)); }, work);
  }

  // Every candidate of a slice with at least so many layers, on every group of a block.
  std::vector<Step> steps(const Bundle<T>& bundle, const Slice& slice, const GroupBlock& block,
                          size_t layers) const;

  // Channels of a tensor from or into a group's grid.
  void import_images(const Outer& input, int64_t group, bool relu, int64_t channel,
                     int64_t channels, Grid<T> to) const;
  void export_images(Grid<const T> from, int64_t group, int64_t channel, int64_t channels,
                     const Outer& output) const;
  // Channels of a node: [mixed, bypass], channel j * (C/K) + c, moves to c * K + j, or back.
  void shuffle(Grid<T> pixels, Size size, bool back, T* scratch) const;
  // ReLU of a block's states, into scratch.input.
  void fill_input(const Bundle<T>& bundle, const GroupBlock& block,
                  const Scratch<T>& scratch) const;
  T* input_of(const Bundle<T>& bundle, const GroupBlock& block, int64_t group,
              const Scratch<T>& scratch) const;
  int64_t padded(Size size) const {
    return (size.height + 2 * border_) * (size.width + 2 * border_) * mixed_lanes();
  }
  Grid<T> inside(T* padded, Size size) const {
    return Grid<T>{padded, (size.width + 2 * border_) * mixed_lanes(), mixed_lanes()}.at(border_,
                                                                                         border_);
  }
  // A second layer's input: the first one's features, normalized, through ReLU.
  void fill_inner(const CandidateRun<T>& run, int64_t group, const Scratch<T>& scratch) const;
  // The bypass of a state's group, max-pooled into memory given at stride 2.
  Grid<const T> bypass_of(const Bundle<T>& bundle, int64_t group, T* pooled) const;

  // What a step reads after a layer's rows, `asks` times, have been computed: up to two features.
  Ahead ahead(const T* first, const T* second, int64_t asks) const {
    const int64_t bytes = z_elements() * static_cast<int64_t>(sizeof(T));
    Ahead made;
    const T* both[] = {first, second};
    for (int i = 0; i < 2; ++i) {
      if (both[i] == nullptr) continue;
      made.at[i] = reinterpret_cast<const char*>(both[i]);
      made.end[i] = made.at[i] + bytes;
    }
    const int64_t rows = asks * std::max<int64_t>(1, after_.height);
    made.step = (bytes / rows + 63) / 64 * 64;
    return made;
  }

  // The rows of an input that its preprocessing takes at a time.
  Size strip(const Layer& layer, Size size) const;
  // Features of an input before their norm, in the place of the state that they become.
  void preprocess_features(int64_t input, int64_t group, const Scratch<T>& scratch) const;
  // The state: these features normalized, or the input itself.
  void finish_input(int64_t input, int64_t group) const;

  // A layer of a candidate on one group; adds to its moments if asked.
  void layer_forward(const CandidateRun<T>& run, size_t layer, Grid<const T> in, T* z,
                     const GroupBlock& block, int64_t group, const Scratch<T>& scratch,
                     Ahead* ahead, bool moments, bool streaming) const;
  // The two forward stages of a slice; they add to moments if asked.
  void first_stage(const Bundle<T>& bundle, const Slice& slice, const GroupBlock& block,
                   const Scratch<T>& scratch, bool moments) const;
  void second_stage(const Bundle<T>& bundle, const Slice& slice, const GroupBlock& block,
                    const Scratch<T>& scratch, bool moments) const;

  // Puts the weights into the order that the layers read them in.
  void pack_weights(bool backward);

  const CellArguments<T>& in_;
  const Plan& plan_;
  Images images_;
  Size before_, after_;
  int64_t border_;
  std::vector<Bundle<T>> bundles_;          // by source state
  std::vector<PackedLayer<T>> preprocess_;  // by norm slot, for a strip of rows
  std::vector<T*> states_;
  T* mean_ = nullptr;
  T* rstd_ = nullptr;

 private:
  Bundle<T> make_bundle(int64_t source) const;
  // Into slices.
  void cut(Bundle<T>& bundle) const;
  void lay_out_features(Bundle<T>& bundle, const Slice& slice, bool backward, Arena& features,
                        Arena& workspace) const;
  void pools_forward(const Bundle<T>& bundle, const GroupBlock& block, const Scratch<T>& scratch,
                     bool moments) const;
  Scratch<T> make_scratch(Loop loop) const;
  Scratch<T> take_scratch(Loop loop) const;
  void give_back(Loop loop, Scratch<T> scratch) const;

  mutable bool reversed_ = true;  // the last loop
  mutable std::mutex mutex_;
  mutable std::vector<Scratch<T>> free_scratch_;  // of forward or backward loops, borders are zero
};

}  // namespace da2s_fast

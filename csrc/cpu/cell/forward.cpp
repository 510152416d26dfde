// The forward pass of a cell.
#include <cstring>

#include "pass.h"

namespace da2s_fast {
namespace {

template <class T>
class Forward : public CellPass<T> {
 public:
  Forward(const CellArguments<T>& arguments, const Outer& output, T* statistics)
      : CellPass<T>(arguments),
        output_(output),
        statistics_(statistics),
        first_edges_(plan_.states(), -1) {
    for (const Edge& edge : plan_.edges)
      if (!edge.candidates.empty() && first_edges_[edge.target] < 0)
        first_edges_[edge.target] = edge.row;
  }

  void run(T* saved) {
    Arena counted, count;
    lay_out(counted, count);
    const Workspace memory(count.used());
    Arena given(saved), arena(memory.data());
    lay_out(given, arena);
    for (int64_t i = 0; i < plan_.inputs; ++i)
      if (!plan_.preprocess[i].empty()) preprocess(i);
    for (int64_t s = 0; s < plan_.states(); ++s) {
      const Bundle<T>& bundle = this->bundles_[s];
      this->for_blocks(false, [&](const Block& block, const Scratch<T>& scratch) {
        if (s < plan_.inputs) input_state(s, block);
        if (s > 0) mix(this->bundles_[s - 1], block, scratch);
        if (s >= plan_.inputs) finish_node(s, block, scratch);
        if (!bundle.edges.empty()) this->first_stage(bundle, block, scratch, true);
      });
      finish_norms(bundle, 0);
      if (!bundle.twice) continue;
      this->for_blocks(false, [&](const Block& block, const Scratch<T>& scratch) {
        this->second_stage(bundle, block, scratch, true);
      });
      finish_norms(bundle, 1);
    }
  }

 private:
  using CellPass<T>::plan_;
  using CellPass<T>::images_;
  using CellPass<T>::in_;

  void lay_out(Arena& saved, Arena& workspace) {
    CellPass<T>::lay_out(saved, workspace, false);
    layers_.clear();
    moments_.clear();
    for (int64_t i = 0; i < plan_.inputs; ++i)
      for (const Layer& layer : plan_.preprocess[i]) {
        layers_.emplace_back(layer, in_.inputs[i].size, images_.per_group, layer.border());
        layers_.back().pack(in_.weights, false, workspace);
        moments_.emplace_back(plan_.channels, images_, workspace);
      }
  }

  // Features of an input, in the place of the state that they become.
  void preprocess(int64_t input) {
    const int64_t slot = plan_.preprocess[input][0].norm;
    const PackedLayer<T>& layer = layers_[slot];
    this->for_blocks(false, [&](const Block& block, const Scratch<T>& scratch) {
      for (int64_t group = block.begin; group < block.end; ++group) {
        const Grid<T> x = layer.inside(scratch.input);
        this->import_images(in_.inputs[input], group, true, 0, layer.layer().in_channels, x);
        T* z = this->state(input, group).data;
        layer.forward(x, scratch.middle, z);
        moments_[slot].add(images_, block.chunk, group, z, this->before_.pixels(), scratch.lanes);
      }
    });
    finish_norm(slot, moments_[slot], this->before_);
  }

  void input_state(int64_t s, const Block& block) {
    for (int64_t group = block.begin; group < block.end; ++group) {
      const Grid<T> state = this->state(s, group);
      if (plan_.preprocess[s].empty()) {
        this->import_images(in_.inputs[s], group, false, 0, plan_.channels, state);
        continue;
      }
      const int64_t slot = plan_.preprocess[s][0].norm;
      DA2S_SIMD_CALL(normalize<T>, state, this->before_, this->state_lanes(), this->rstd(slot),
                     this->mean(slot), false, state);
    }
  }

  // Nodes that no edge reaches are zero.
  void clear_lone_nodes(int64_t group) {
    for (int64_t node = plan_.inputs; node < plan_.states(); ++node)
      if (first_edges_[node] < 0)
        std::memset(this->state(node, group).data, 0, this->elements(node) * sizeof(T));
  }

  // Adds what the edges of a bundle bring to their nodes.
  void mix(const Bundle<T>& bundle, const Block& block, const Scratch<T>& scratch) {
    const int64_t mixed = this->mixed_lanes(), rest = this->rest_lanes();
    for (int64_t group = block.begin; group < block.end; ++group) {
      if (bundle.source == 0) clear_lone_nodes(group);
      if (bundle.edges.empty()) continue;
      Grid<const T> bypass{};
      if (rest) bypass = this->bypass_of(bundle, group, scratch);
      for (const EdgeRun<T>& edge : bundle.edges) {
        Grid<T> node = this->state(edge.edge->target, group);
        const double g = in_.g[edge.edge->row];
        // The first to reach a node writes there.
        const bool first = first_edges_[edge.edge->target] == edge.edge->row;
        for (const CandidateRun<T>& run : edge.candidates) {
          const int64_t slot = run.candidate->norm;
          const bool add = !first || &run != &edge.candidates.front();
          const double factor =
              run.candidate->kind == Kind::none ? 0 : g * in_.p_of(*run.candidate);
          const T weight = static_cast<T>(factor);
          for (int64_t lane = 0; lane < mixed; ++lane)
            scratch.scale[lane] = slot < 0 ? weight : weight * this->rstd(slot)[lane];
          DA2S_SIMD_CALL(mix<T>, this->mixed_of(bundle, edge, run, group), this->after_, mixed,
                         scratch.scale, slot < 0 ? nullptr : this->mean(slot), add, node);
        }
        if (!rest) continue;
        std::fill_n(scratch.scale, rest, static_cast<T>(g));
        node.data += mixed;
        DA2S_SIMD_CALL(mix<T>, bypass, this->after_, rest, scratch.scale, nullptr, !first, node);
      }
    }
  }

  void finish_node(int64_t s, const Block& block, const Scratch<T>& scratch) {
    const int64_t position = s - (plan_.states() - plan_.outputs);
    for (int64_t group = block.begin; group < block.end; ++group) {
      const Grid<T> node = this->state(s, group);
      if (plan_.partial > 1) this->shuffle(node, this->after_, false, scratch.scale);
      if (position >= 0)
        this->export_images(node, group, position * plan_.channels, plan_.channels, output_);
    }
  }

  void finish_norm(int64_t slot, const Moments<T>& moments, Size size) {
    T* mean = statistics_ + 2 * plan_.norm_offset(slot);
    if (!in_.frozen[slot])
      moments.finish(images_, size.pixels(), mean, mean + plan_.norm_channels(slot));
    this->expand_norm(slot, statistics_);
  }

  // Of first or second layers; pools are there after the first.
  void finish_norms(const Bundle<T>& bundle, size_t layer) {
    for (const EdgeRun<T>& edge : bundle.edges)
      for (const CandidateRun<T>& run : edge.candidates) {
        if (layer < run.layers.size())
          finish_norm(run.candidate->layers[layer].norm, run.moments[layer], this->after_);
        if (layer > 0 || !run.candidate->is_pool() || run.candidate->norm < 0) continue;
        for (const PoolRun<T>& pool : bundle.pools)
          if (pool.kind == run.candidate->kind)
            finish_norm(run.candidate->norm, pool.moments, this->after_);
      }
  }

  const Outer& output_;
  T* statistics_;
  std::vector<int64_t> first_edges_;    // into every state, by row; -1 without any
  std::vector<PackedLayer<T>> layers_;  // of the preprocessing, by norm slot
  std::vector<Moments<T>> moments_;
};

}  // namespace

template <class T>
void cell_forward(const CellArguments<T>& arguments, const Outer& output, T* statistics, T* saved) {
  Forward<T>(arguments, output, statistics).run(saved);
}

template void cell_forward(const CellArguments<float>&, const Outer&, float*, float*);
template void cell_forward(const CellArguments<double>&, const Outer&, double*, double*);

}  // namespace da2s_fast

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
    this->pack_weights(false);
    for (const Edge& edge : plan_.edges)
      std::fill_n(bypass_scales_ + edge.row * this->rest_lanes(), this->rest_lanes(),
                  static_cast<T>(in_.g[edge.row]));
    for (int64_t i = 0; i < plan_.inputs; ++i)
      if (!plan_.preprocess[i].empty()) preprocess(i);
    const Bundle<T>* mixing = nullptr;  // what has been computed but not mixed yet
    const Slice* mixed = nullptr;
    for (const Bundle<T>& bundle : this->bundles_)
      for (const Slice& slice : bundle.slices) {
        this->for_blocks(Loop::forward, [&](const GroupBlock& block, const Scratch<T>& scratch) {
          if (mixed) mix(*mixing, *mixed, block, scratch);
          if (slice.first) finish_state(bundle, block, scratch);
          this->first_stage(bundle, slice, block, scratch, true);
        });
        finish_norms(bundle, slice, 0);
        if (slice.twice) {
          this->for_blocks(Loop::forward, [&](const GroupBlock& block, const Scratch<T>& scratch) {
            this->second_stage(bundle, slice, block, scratch, true);
          });
          finish_norms(bundle, slice, 1);
        }
        set_scales(bundle, slice);
        mixing = &bundle;
        mixed = &slice;
      }
  }

 private:
  using CellPass<T>::plan_;
  using CellPass<T>::images_;
  using CellPass<T>::in_;
  using typename CellPass<T>::Loop;

  void lay_out(Arena& saved, Arena& workspace) {
    CellPass<T>::lay_out(saved, workspace, false);
    bypass_scales_ = workspace.template take<T>(plan_.edges.size() * this->rest_lanes());
    pooled_.assign(plan_.states(), nullptr);
    for (int64_t s = 0; s < plan_.inputs; ++s)
      if (plan_.reduction && this->rest_lanes())
        pooled_[s] =
            workspace.template take<T>(images_.groups * this->after_.pixels() * this->rest_lanes());
    moments_.clear();
    for (size_t i = 0; i < this->preprocess_.size(); ++i)
      moments_.emplace_back(plan_.channels, images_, workspace);
  }

  // Up to the barrier: an input's features and the sums of their norm.
  void preprocess(int64_t input) {
    const int64_t slot = plan_.preprocess[input][0].norm;
    this->for_blocks(Loop::preprocess, [&](const GroupBlock& block, const Scratch<T>& scratch) {
      for (int64_t group = block.begin; group < block.end; ++group) {
        this->preprocess_features(input, group, scratch);
        moments_[slot].add(images_, block.chunk, group, this->state(input, group).data,
                           this->before_.pixels(), scratch.lanes);
      }
    });
    finish_norm(slot, moments_[slot], this->before_);
  }

  // What the edges of a bundle leave, when all that enters it has been mixed.
  void finish_state(const Bundle<T>& bundle, const GroupBlock& block, const Scratch<T>& scratch) {
    const int64_t s = bundle.source;
    if (s >= plan_.inputs) return finish_node(s, block, scratch);
    if (this->is_kept(s))
      for (int64_t group = block.begin; group < block.end; ++group) this->finish_input(s, group);
    if (pooled_[s]) pool_bypass(bundle, block);
  }

  // Adds what the candidates of a slice mix into their nodes; the first to reach a node writes
  // there.
  void mix(const Bundle<T>& bundle, const Slice& slice, const GroupBlock& block,
           const Scratch<T>& scratch) {
    std::vector<Mixed<T>> mixed;
    for (const Slice::Part& part : slice.parts)
      for (int64_t group = block.begin; group < block.end; ++group) {
        const EdgeRun<T>& edge = bundle.edges[part.edge];
        mixed.clear();
        for (size_t k = part.begin; k < part.end; ++k) {
          const CandidateRun<T>& run = edge.candidates[k];
          const int64_t slot = run.candidate->norm;
          mixed.push_back({this->mixed_of(bundle, edge, run, group, scratch), run.scale,
                           slot < 0 ? nullptr : this->mean(slot)});
        }
        const bool first = part.begin == 0 && first_edges_[edge.edge->target] == edge.edge->row;
        DA2S_SIMD_CALL(mix<T>, mixed.data(), static_cast<int64_t>(mixed.size()), this->after_,
                       this->mixed_lanes(), !first, this->state(edge.edge->target, group));
      }
  }

  // The channels of a node that bypass the operations: one pass over all its edges.
  void mix_bypass(int64_t s, int64_t group) {
    std::vector<Mixed<T>> parts;
    for (const Edge& edge : plan_.edges) {
      if (edge.target != s || edge.candidates.empty()) continue;
      const int64_t rest = this->rest_lanes();
      Grid<T> bypass = this->state(edge.source, group);
      bypass.data += this->mixed_lanes();
      if (edge.stride > 1)
        bypass = {pooled_[edge.source] + group * this->after_.pixels() * rest,
                  this->after_.width * rest, rest};
      parts.push_back({bypass, bypass_scales_ + edge.row * rest, nullptr});
    }
    Grid<T> node = this->state(s, group);
    node.data += this->mixed_lanes();
    DA2S_SIMD_CALL(mix<T>, parts.data(), static_cast<int64_t>(parts.size()), this->after_,
                   this->rest_lanes(), false, node);
  }

  void finish_node(int64_t s, const GroupBlock& block, const Scratch<T>& scratch) {
    const int64_t position = s - (plan_.states() - plan_.outputs);
    for (int64_t group = block.begin; group < block.end; ++group) {
      const Grid<T> node = this->state(s, group);
      if (first_edges_[s] < 0)  // no edge reaches it
        std::memset(node.data, 0, this->elements(s) * sizeof(T));
      else if (this->rest_lanes())
        mix_bypass(s, group);
      if (plan_.partial > 1) this->shuffle(node, this->after_, false, scratch.scale);
      if (position >= 0)
        this->export_images(node, group, position * plan_.channels, plan_.channels, output_);
    }
  }

  // Keeps an input's bypass, max-pooled, for all nodes.
  void pool_bypass(const Bundle<T>& bundle, const GroupBlock& block) {
    for (int64_t group = block.begin; group < block.end; ++group)
      this->bypass_of(bundle, group,
                      pooled_[bundle.source] + group * this->after_.pixels() * this->rest_lanes());
  }

  // g p / deviation of every candidate of a slice.
  void set_scales(const Bundle<T>& bundle, const Slice& slice) {
    for (const Slice::Part& part : slice.parts)
      for (size_t k = part.begin; k < part.end; ++k) {
        const EdgeRun<T>& edge = bundle.edges[part.edge];
        const CandidateRun<T>& run = edge.candidates[k];
        const int64_t slot = run.candidate->norm;
        const double kept = run.candidate->kind == Kind::none ? 0 : 1;
        const T weight = static_cast<T>(kept * in_.g[edge.edge->row] * in_.p_of(*run.candidate));
        for (int64_t lane = 0; lane < this->mixed_lanes(); ++lane)
          run.scale[lane] = slot < 0 ? weight : weight * this->rstd(slot)[lane];
      }
  }

  void finish_norm(int64_t slot, const Moments<T>& moments, Size size) {
    T* mean = statistics_ + 2 * plan_.norm_offset(slot);
    if (!in_.frozen[slot])
      moments.finish(images_, size.pixels(), mean, mean + plan_.norm_channels(slot));
    this->expand_norm(slot, statistics_);
  }

  // Of first or second layers; pools are there after the first.
  void finish_norms(const Bundle<T>& bundle, const Slice& slice, size_t layer) {
    for (const Slice::Part& part : slice.parts)
      for (size_t k = part.begin; k < part.end; ++k) {
        const CandidateRun<T>& run = bundle.edges[part.edge].candidates[k];
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
  std::vector<int64_t> first_edges_;  // into every state, by row; -1 without any
  T* bypass_scales_ = nullptr;        // g of every edge, for every lane
  std::vector<T*> pooled_;            // bypasses of reduced inputs, by state
  std::vector<Moments<T>> moments_;   // of the preprocessing, by norm slot
};

}  // namespace

template <class T>
void cell_forward(const CellArguments<T>& arguments, const Outer& output, T* statistics, T* saved) {
  Forward<T>(arguments, output, statistics).run(saved);
}

template void cell_forward(const CellArguments<float>&, const Outer&, float*, float*);
template void cell_forward(const CellArguments<double>&, const Outer&, double*, double*);

}  // namespace da2s_fast

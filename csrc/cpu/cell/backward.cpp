// The order of the backward pass, and its sums over the batch: what lies between the stages.
#include "backward.h"

#include <cstring>

namespace da2s_fast {

template <class T>
void Backward<T>::run(const T* saved) {
  Arena counted, count;
  lay_out(counted, count);
  const Workspace memory(count.used());
  Arena given(const_cast<T*>(saved)), arena(memory.data());
  lay_out(given, arena);
  this->pack_weights(true);
  for (int64_t slot = 0; slot < plan_.norm_count; ++slot) this->expand_norm(slot, statistics_);
  if (!in_.save) restore_inputs();
  At done{};
  for (int64_t s = plan_.states() - 1; s >= 0; --s)
    for (const Slice& slice : this->bundles_[s].slices) {
      const At next{&this->bundles_[s], &slice};
      go_on(done, next);
      coefficients(*next.bundle, slice);
      if (wanted_state(s)) second_stage_back(*next.bundle, slice);
      done = next;
    }
  go_on(done, {});
  for (int64_t s = 0; s < plan_.states(); ++s) bypass_coefficients(s);
  for (int64_t i = 0; i < plan_.inputs; ++i)
    if (wanted_state(i)) preprocess_back(i);
}

template <class T>
void Backward<T>::restore_inputs() {
  for (int64_t input = 0; input < plan_.inputs; ++input) {
    if (!this->is_kept(input)) continue;
    this->for_blocks(Loop::preprocess, [&](const GroupBlock& block, const Scratch<T>& scratch) {
      for (int64_t group = block.begin; group < block.end; ++group) {
        if (!plan_.preprocess[input].empty()) this->preprocess_features(input, group, scratch);
        this->finish_input(input, group);
      }
    });
  }
}

template <class T>
NormSums<T> Backward<T>::norm_sums(int64_t channels, Arena& arena) {
  const int64_t lanes = channels * images_.per_group;
  NormSums<T> made;
  made.product = ChannelSums(channels, images_, arena);
  made.gradient = ChannelSums(channels, images_, arena);
  made.scale = arena.take<T>(lanes);
  made.shift = arena.take<T>(lanes);
  made.slope = arena.take<T>(lanes);
  return made;
}

template <class T>
void Backward<T>::lay_out(Arena& saved, Arena& workspace) {
  CellPass<T>::lay_out(saved, workspace, true);
  gradients_.clear();
  mixed_gradients_.clear();
  node_sums_.clear();
  for (int64_t s = 0; s < plan_.states(); ++s) {
    T* place = in_place(s);
    if (!place && wanted_state(s)) place = workspace.take<T>(images_.groups * this->elements(s));
    gradients_.push_back(place);
    const bool apart = s >= plan_.inputs && this->rest_lanes();
    mixed_gradients_.push_back(apart ? workspace.take<T>(images_.groups * this->z_elements())
                                     : nullptr);
    node_sums_.emplace_back(plan_.mixed(), images_, workspace);
  }
  int64_t most = 0;
  for (Bundle<T>& bundle : this->bundles_) {
    for (EdgeSums<T>& edge : sums_[bundle.source])
      edge.bypass = ChannelSums(plan_.channels - plan_.mixed(), images_, workspace);
    for (Slice& slice : bundle.slices)
      most = std::max(most, lay_out_sums(bundle, slice, workspace));
  }
  // Gradients at inner norms live from a bundle's second stage to its third: all bundles use the
  // same memory. What was computed again makes room for them: last features have been read by then.
  size_t used = workspace.used();
  for (size_t s = 0; s < sums_.size(); ++s) {
    Arena own = workspace;
    for (size_t e = 0; e < sums_[s].size(); ++e)
      for (size_t k = 0; k < sums_[s][e].candidates.size(); ++k)
        if (const auto& run = this->bundles_[s].edges[e].candidates[k]; run.layers.size() > 1)
          sums_[s][e].candidates[k].inner =
              in_.save ? own.take<T>(images_.groups * this->z_elements()) : run.features[1];
    used = std::max(used, own.used());
    if (kWatched) workspace = own;
  }
  workspace.template take<char>(used - workspace.used());
  for (const PackedLayer<T>& layer : this->preprocess_) most = std::max(most, layer.sums());
  state_sums_ = norm_sums(plan_.channels, workspace);
  zeros_ = workspace.template take<T>(this->state_lanes());
  weights_per_chunk_ = wanted_.weights ? most : 0;
  weight_sums_ = workspace.take<double>(images_.chunks * weights_per_chunk_);
}

template <class T>
T* Backward<T>::in_place(int64_t s) const {
  if (s >= plan_.inputs || !wanted_.inputs[s] || !plan_.preprocess[s].empty()) return nullptr;
  const Outer& outer = *wanted_.inputs[s];
  const bool same = outer.type == kOuterType<T> && images_.batch % images_.per_group == 0 &&
                    outer.image == plan_.channels * outer.size.pixels();
  return same ? static_cast<T*>(outer.data) : nullptr;
}

// Says how many sums for weights' gradients a chunk has.
template <class T>
int64_t Backward<T>::lay_out_sums(const Bundle<T>& bundle, Slice& slice, Arena& arena) {
  int64_t (&weights)[2] = slice.weights;
  weights[0] = weights[1] = 0;
  for (const auto& [e, begin, end] : slice.parts)
    for (size_t k = begin; k < end; ++k) {
      const CandidateRun<T>& run = bundle.edges[e].candidates[k];
      CandidateSums<T>& sums = sums_[bundle.source][e].candidates[k];
      sums.last = norm_sums(plan_.mixed(), arena);
      if (run.layers.size() > 1) sums.first = norm_sums(plan_.mixed(), arena);
      sums.weights.clear();
      for (size_t i = 0; i < run.layers.size(); ++i) {
        int64_t& count = weights[in_third_stage(run, i)];
        sums.weights.push_back(count);
        count += run.layers[i].sums();
      }
    }
  return std::max(weights[0], weights[1]);
}

template <class T>
void Backward<T>::clear_missing(T* data, int64_t numbers, int64_t group) const {
  const int64_t images = images_.per_group, valid = images_.valid(group);
  if (valid == images) return;
  for (int64_t i = 0; i < numbers; i += images)
    std::fill(data + i + valid, data + i + images, T{0});
}

template <class T>
void Backward<T>::go_on(At done, At next) {
  const bool ends = done.bundle && wanted_state(done.bundle->source);
  const bool completes = done.bundle && done.slice->last && done.bundle->source >= plan_.inputs;
  this->for_blocks(Loop::backward, [&](const GroupBlock& block, const Scratch<T>& scratch) {
    if (ends) third_stage_back(*done.bundle, *done.slice, block, scratch);
    if (completes) complete_node(done.bundle->source, block, scratch);
    if (!next.bundle) return;
    if (!in_.save) {
      this->first_stage(*next.bundle, *next.slice, block, scratch, false);
      this->second_stage(*next.bundle, *next.slice, block, scratch, false);
    }
    first_stage_back(*next.bundle, *next.slice, block, scratch);
  });
  if (ends) fold_weights(*done.bundle, *done.slice, true);
}

template <class T>
void Backward<T>::complete_node(int64_t s, const GroupBlock& block, const Scratch<T>& scratch) {
  const int64_t position = s - (plan_.states() - plan_.outputs);
  const bool last = this->bundles_[s].edges.empty();
  for (int64_t group = block.begin; group < block.end; ++group) {
    const Grid<T> g = gradient(s, group);
    if (position >= 0) {
      const Grid<T> to = last ? g : Grid<T>{scratch.dz, g.row, g.pixel};
      this->import_images(outer_, group, false, position * plan_.channels, plan_.channels, to);
      if (!last) DA2S_SIMD_CALL(add<T>, to, this->after_, this->state_lanes(), g);
    } else if (last) {
      std::memset(g.data, 0, this->elements(s) * sizeof(T));
    }
    if (plan_.partial > 1) this->shuffle(g, this->after_, true, scratch.scale);
    const Grid<T> mixed = mixed_gradient(s, group);
    if (this->rest_lanes())
      DA2S_SIMD_CALL(normalize<T>, g, this->after_, this->mixed_lanes(), nullptr, nullptr, false,
                     mixed);
    add_gradient(node_sums_[s], mixed, this->after_, block, group, scratch);
  }
}

template <class T>
void Backward<T>::first_stage_back(const Bundle<T>& bundle, const Slice& slice,
                                   const GroupBlock& block, const Scratch<T>& scratch) {
  std::vector<Factor<T>> factors;
  for (const auto& [e, begin, end] : slice.parts) {
    const EdgeRun<T>& edge = bundle.edges[e];
    const EdgeSums<T>& sums = sums_[bundle.source][e];
    for (int64_t group = block.begin; group < block.end; ++group) {
      factors.clear();
      for (size_t k = begin; k < end; ++k) {
        const CandidateRun<T>& run = edge.candidates[k];
        const int64_t slot = run.candidate->norm;
        factors.push_back({this->mixed_of(bundle, edge, run, group, scratch),
                           slot < 0 ? nullptr : this->mean(slot),
                           begin_sums(sums.candidates[k].last.product, block, group,
                                      scratch.lanes + (k - begin) * this->mixed_lanes())});
      }
      DA2S_SIMD_CALL(lane_products<T>, mixed_gradient(edge.edge->target, group), factors.data(),
                     static_cast<int64_t>(factors.size()), this->after_, this->mixed_lanes());
      for (size_t k = begin; k < end; ++k)
        finish_sums(sums.candidates[k].last.product, block, group, factors[k - begin].products);
      // Where the third stage comes, it multiplies while it adds up the bypass's gradient.
      if (end < edge.candidates.size() || !this->rest_lanes() || wanted_state(bundle.source))
        continue;
      Grid<T> g = gradient(edge.edge->target, group);
      g.data += this->mixed_lanes();
      add_product(sums.bypass, g, this->bypass_of(bundle, group, scratch.bypass), nullptr,
                  this->after_, block, group, scratch);
    }
  }
}

template <class T>
void Backward<T>::add_gradient(const ChannelSums& sums, Grid<const T> g, Size size,
                               const GroupBlock& block, int64_t group,
                               const Scratch<T>& scratch) const {
  double* into = begin_sums(sums, block, group, scratch.lanes);
  DA2S_SIMD_CALL(lane_sums<T>, g, size.pixels(), sums.channels * images_.per_group, into);
  finish_sums(sums, block, group, into);
}

template <class T>
void Backward<T>::add_product(const ChannelSums& sums, Grid<const T> g, Grid<const T> z,
                              const T* mean, Size size, const GroupBlock& block, int64_t group,
                              const Scratch<T>& scratch) const {
  double* into = begin_sums(sums, block, group, scratch.lanes);
  const Factor<T> factor{z, mean, into};
  DA2S_SIMD_CALL(lane_products<T>, g, &factor, 1, size, sums.channels * images_.per_group);
  finish_sums(sums, block, group, into);
}

template <class T>
void Backward<T>::set_coefficients(NormSums<T>& sums, const ChannelSums& gradient, int64_t slot,
                                   double factor, Size size) {
  const int64_t images = images_.per_group;
  const double values = static_cast<double>(images_.batch * size.pixels());
  sums.constant = slot >= 0 && in_.frozen[slot];
  for (int64_t c = 0; c < sums.product.channels; ++c) {
    const double rstd = slot < 0 ? 1 : rstd_of(slot, c);
    std::fill_n(sums.scale + c * images, images, static_cast<T>(factor * rstd));
    if (sums.constant) continue;
    const double shift = gradient.total(c, images_.chunks) / values;
    const double slope = rstd * rstd * sums.product.total(c, images_.chunks) / values;
    std::fill_n(sums.shift + c * images, images, static_cast<T>(shift));
    std::fill_n(sums.slope + c * images, images, static_cast<T>(slope));
  }
}

template <class T>
void Backward<T>::coefficients(const Bundle<T>& bundle, const Slice& slice) {
  for (const auto& [e, begin, end] : slice.parts) {
    const EdgeRun<T>& edge = bundle.edges[e];
    EdgeSums<T>& sums = sums_[bundle.source][e];
    const double g = in_.g[edge.edge->row];
    double& dg = wanted_.g[edge.edge->row];
    for (size_t k = begin; k < end; ++k) {
      const Candidate& candidate = *edge.candidates[k].candidate;
      NormSums<T>& last = sums.candidates[k].last;
      const double p = in_.p_of(candidate), kept = candidate.kind == Kind::none ? 0 : 1;
      double product = 0;
      for (int64_t c = 0; c < plan_.mixed(); ++c)
        product += kept * last.product.total(c, images_.chunks) *
                   (candidate.norm < 0 ? 1 : rstd_of(candidate.norm, c));
      wanted_.p[candidate.row * plan_.operations + candidate.column] = g * product;
      dg += p * product;
      set_coefficients(last, node_sums_[edge.edge->target], candidate.norm, kept * g * p,
                       this->after_);
      last.constant |= candidate.norm < 0;
    }
  }
}

template <class T>
void Backward<T>::bypass_coefficients(int64_t s) {
  for (size_t e = 0; e < sums_[s].size(); ++e) {
    const ChannelSums& sums = sums_[s][e].bypass;
    for (int64_t c = 0; c < sums.channels; ++c)
      wanted_.g[this->bundles_[s].edges[e].edge->row] += sums.total(c, images_.chunks);
  }
}

template <class T>
void Backward<T>::fold_weights(const Bundle<T>& bundle, const Slice& slice, bool third_stage) {
  if (!wanted_.weights) return;
  std::vector<std::pair<const PackedLayer<T>*, int64_t>> all;
  for (const auto& [e, begin, end] : slice.parts)
    for (size_t k = begin; k < end; ++k) {
      const CandidateRun<T>& run = bundle.edges[e].candidates[k];
      for (size_t i = 0; i < run.layers.size(); ++i)
        if (in_third_stage(run, i) == third_stage)
          all.emplace_back(&run.layers[i], sums_[bundle.source][e].candidates[k].weights[i]);
    }
  parallel_for(0, static_cast<int64_t>(all.size()), 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) fold_layer(*all[i].first, all[i].second);
  });
}

template <class T>
void Backward<T>::fold_layer(const PackedLayer<T>& layer, int64_t begin) {
  layer.fold(weight_sums_ + begin, weights_per_chunk_, images_.chunks,
             wanted_.weights + wanted_.offsets[layer.layer().weight]);
}

template <class T>
void cell_backward(const CellArguments<T>& arguments, const Outer& gradient, const T* statistics,
                   const T* saved, const CellGradients<T>& wanted) {
  Backward<T>(arguments, gradient, statistics, wanted).run(saved);
}

template void cell_backward(const CellArguments<float>&, const Outer&, const float*, const float*,
                            const CellGradients<float>&);
template void cell_backward(const CellArguments<double>&, const Outer&, const double*,
                            const double*, const CellGradients<double>&);

template void Backward<float>::fold_layer(const PackedLayer<float>&, int64_t);
template void Backward<double>::fold_layer(const PackedLayer<double>&, int64_t);
template void Backward<float>::set_coefficients(NormSums<float>&, const ChannelSums&, int64_t,
                                                double, Size);
template void Backward<double>::set_coefficients(NormSums<double>&, const ChannelSums&, int64_t,
                                                 double, Size);
template void Backward<float>::clear_missing(float*, int64_t, int64_t) const;
template void Backward<double>::clear_missing(double*, int64_t, int64_t) const;
template void Backward<float>::add_gradient(const ChannelSums&, Grid<const float>, Size,
                                            const GroupBlock&, int64_t,
                                            const Scratch<float>&) const;
template void Backward<double>::add_gradient(const ChannelSums&, Grid<const double>, Size,
                                             const GroupBlock&, int64_t,
                                             const Scratch<double>&) const;
template void Backward<float>::add_product(const ChannelSums&, Grid<const float>, Grid<const float>,
                                           const float*, Size, const GroupBlock&, int64_t,
                                           const Scratch<float>&) const;
template void Backward<double>::add_product(const ChannelSums&, Grid<const double>,
                                            Grid<const double>, const double*, Size,
                                            const GroupBlock&, int64_t,
                                            const Scratch<double>&) const;

}  // namespace da2s_fast

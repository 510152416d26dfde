// The backward stages of a bundle: from its nodes down to the state that its edges leave.
#include <cstring>

#include "backward.h"

namespace da2s_fast {

template <class T>
void Backward<T>::second_stage_back(int64_t s) {
  const Bundle<T>& bundle = this->bundles_[s];
  this->for_blocks(Loop::backward, [&](const GroupBlock& block, const Scratch<T>& scratch) {
    clear_weights(block, weight_counts_[s]);
    this->fill_input(bundle, block, scratch);
    begin_gradient(bundle, block);
    if (layers_back(bundle, block, scratch)) relu_back(bundle, block, scratch, false);
    plain_back(bundle, block, scratch);
    if (this->rest_lanes() && !bundle.edges.empty()) bypass_back(bundle, block, scratch);
  });
  if (!bundle.twice) return;
  for (size_t e = 0; e < bundle.edges.size(); ++e)
    for (size_t k = 0; k < bundle.edges[e].candidates.size(); ++k) {
      const CandidateRun<T>& run = bundle.edges[e].candidates[k];
      NormSums<T>& first = sums_[s][e].candidates[k].first;
      if (run.layers.size() > 1)
        set_coefficients(first, first.gradient, run.candidate->layers[0].norm, 1, this->after_);
    }
}

template <class T>
void Backward<T>::plain_back(const Bundle<T>& bundle, const GroupBlock& block,
                             const Scratch<T>& scratch) {
  std::memset(scratch.pool_gradients, 0,
              bundle.pools.size() * block.groups() * this->z_elements() * sizeof(T));
  for (size_t e = 0; e < bundle.edges.size(); ++e)
    for (size_t k = 0; k < bundle.edges[e].candidates.size(); ++k) {
      const CandidateRun<T>& run = bundle.edges[e].candidates[k];
      if (!run.layers.empty()) continue;
      const CandidateSums<T>& sums = sums_[bundle.source][e].candidates[k];
      for (int64_t group = block.begin; group < block.end; ++group) {
        if (run.candidate->is_direct())
          direct_back(bundle, *bundle.edges[e].edge, sums, group);
        else
          pool_back(bundle, *bundle.edges[e].edge, run, sums, block, group, scratch);
      }
    }
  pools_back(bundle, block, scratch);
}

template <class T>
void Backward<T>::direct_back(const Bundle<T>& bundle, const Edge& edge,
                              const CandidateSums<T>& sums, int64_t group) {
  Grid<T> to = gradient(bundle.source, group);
  to = {to.data, to.row * edge.stride, to.pixel * edge.stride};
  const Mixed<T> part{gradient(edge.target, group), sums.last.scale, nullptr};
  DA2S_SIMD_CALL(mix<T>, &part, 1, this->after_, this->mixed_lanes(), true, to);
}

template <class T>
void Backward<T>::pool_back(const Bundle<T>& bundle, const Edge& edge, const CandidateRun<T>& run,
                            const CandidateSums<T>& sums, const GroupBlock& block, int64_t group,
                            const Scratch<T>& scratch) {
  size_t pool = 0;
  while (bundle.pools[pool].kind != run.candidate->kind) ++pool;
  norm_back(gradient(edge.target, group), run, sums, group, scratch);
  DA2S_SIMD_CALL(add<T>, this->z_grid(scratch.dz), this->after_, this->mixed_lanes(),
                 this->z_grid(pool_gradient(pool, block, group, scratch)));
}

template <class T>
void Backward<T>::norm_back(Grid<const T> g, const CandidateRun<T>& run,
                            const CandidateSums<T>& sums, int64_t group,
                            const Scratch<T>& scratch) {
  const int64_t slot = run.candidate->norm;
  DA2S_SIMD_CALL(norm_gradient<T>, g, run.z + group * this->z_elements(), this->after_.pixels(),
                 this->mixed_lanes(), sums.last.view(slot < 0 ? nullptr : this->mean(slot)),
                 scratch.dz);
}

template <class T>
bool Backward<T>::layers_back(const Bundle<T>& bundle, const GroupBlock& block,
                              const Scratch<T>& scratch) {
  const Size size = this->size_of(bundle.source);
  const int64_t elements = this->z_elements();
  const std::vector<Step> all = this->steps(bundle, block, 1);
  std::vector<bool> begun(block.groups(), false);
  for (size_t i = 0; i < all.size(); ++i) {
    const auto& [e, k, group] = all[i];
    const CandidateRun<T>& run = bundle.edges[e].candidates[k];
    const CandidateSums<T>& sums = sums_[bundle.source][e].candidates[k];
    Ahead next;
    if (i + 1 < all.size()) {
      const CandidateRun<T>& after = bundle.edges[all[i + 1].edge].candidates[all[i + 1].candidate];
      const int64_t at = all[i + 1].group * elements;
      next = this->ahead(after.z + at, after.layers.size() > 1 ? after.features[0] + at : nullptr,
                         asks());
    }
    norm_back(gradient(bundle.edges[e].edge->target, group), run, sums, group, scratch);
    clear_missing(scratch.dz, elements, group);
    if (run.layers.size() > 1) {
      inner_back(run, sums, block, group, scratch, &next);
      continue;
    }
    run.layers[0].backward(this->inside(this->input_of(bundle, block, group, scratch), size),
                           scratch.dz, layer_scratch(scratch, false, &next),
                           relu_gradient(bundle, block, group, scratch), begun[block.index(group)],
                           weight_sums(block, sums.weights[0]));
    begun[block.index(group)] = true;
  }
  return begun[0];
}

template <class T>
void Backward<T>::inner_back(const CandidateRun<T>& run, const CandidateSums<T>& sums,
                             const GroupBlock& block, int64_t group, const Scratch<T>& scratch,
                             Ahead* ahead) {
  const int64_t elements = this->z_elements();
  T* inner = sums.inner + group * elements;
  const Grid<const T> z = this->z_grid(run.features[0] + group * elements);
  this->fill_inner(run, group, scratch);
  run.layers[1].backward(this->inside(scratch.inner, this->after_), scratch.dz,
                         layer_scratch(scratch, true, ahead), inner, false,
                         weight_sums(block, sums.weights[1]));
  const Grid<T> g = this->z_grid(inner);
  DA2S_SIMD_CALL(mask<T>, this->inside(scratch.inner, this->after_), g, this->after_,
                 this->mixed_lanes(), false, g);
  add_gradient(sums.first.gradient, g, this->after_, block, group, scratch);
  add_product(sums.first.product, g, z, this->mean(run.candidate->layers[0].norm), this->after_,
              block, group, scratch);
}

template <class T>
void Backward<T>::pools_back(const Bundle<T>& bundle, const GroupBlock& block,
                             const Scratch<T>& scratch) {
  const Size size = this->size_of(bundle.source);
  const int64_t stride = plan_.stride(bundle.source);
  for (size_t pool = 0; pool < bundle.pools.size(); ++pool)
    for (int64_t group = block.begin; group < block.end; ++group) {
      const Grid<T> g = this->z_grid(pool_gradient(pool, block, group, scratch));
      const Grid<T> dx = gradient(bundle.source, group);
      if (bundle.pools[pool].kind == Kind::max_pool)
        DA2S_SIMD_CALL(max_pool_gradient<T>, this->state(bundle.source, group), size, 3, stride, 1,
                       this->mixed_lanes(), g, this->after_, dx);
      else
        DA2S_SIMD_CALL(average_pool_gradient<T>, size, stride, this->mixed_lanes(), g, this->after_,
                       dx);
    }
}

template <class T>
void Backward<T>::begin_gradient(const Bundle<T>& bundle, const GroupBlock& block) {
  bool single = false;
  for (const EdgeRun<T>& edge : bundle.edges)
    for (const CandidateRun<T>& run : edge.candidates) single |= run.layers.size() == 1;
  const bool written = single && (!this->rest_lanes() || plan_.stride(bundle.source) == 1);
  if (!written)
    std::memset(gradient(bundle.source, block.begin).data, 0,
                block.groups() * this->elements(bundle.source) * sizeof(T));
}

template <class T>
void Backward<T>::relu_back(const Bundle<T>& bundle, const GroupBlock& block,
                            const Scratch<T>& scratch, bool add) {
  const Size size = this->size_of(bundle.source);
  const int64_t mixed = this->mixed_lanes();
  for (int64_t group = block.begin; group < block.end; ++group) {
    const Grid<T> to = gradient(bundle.source, group);
    const Grid<T> g{relu_gradient(bundle, block, group, scratch), size.width * mixed, mixed};
    DA2S_SIMD_CALL(mask<T>, this->inside(this->input_of(bundle, block, group, scratch), size), g,
                   size, mixed, add, to);
  }
}

template <class T>
void Backward<T>::bypass_back(const Bundle<T>& bundle, const GroupBlock& block,
                              const Scratch<T>& scratch) {
  const int64_t rest = this->rest_lanes();
  const bool pooled = plan_.stride(bundle.source) > 1;
  std::vector<Weighed<T>> parts;
  for (int64_t group = block.begin; group < block.end; ++group) {
    Grid<T> dx = gradient(bundle.source, group);
    dx.data += this->mixed_lanes();
    const Grid<T> pooled_dx{scratch.bypass_gradient, this->after_.width * rest, rest};
    const Grid<T> sum = pooled ? pooled_dx : dx;
    parts.clear();
    for (size_t e = 0; e < bundle.edges.size(); ++e) {
      const Edge& edge = *bundle.edges[e].edge;
      Grid<T> g = gradient(edge.target, group);
      g.data += this->mixed_lanes();
      parts.push_back({g, static_cast<T>(in_.g[edge.row]),
                       begin_sums(sums_[bundle.source][e].bypass, block, group,
                                  scratch.lanes + static_cast<int64_t>(e) * rest)});
    }
    DA2S_SIMD_CALL(weighed_gradient<T>, this->bypass_of(bundle, group, scratch.bypass),
                   parts.data(), static_cast<int64_t>(parts.size()), this->after_, rest, sum);
    for (size_t e = 0; e < parts.size(); ++e)
      finish_sums(sums_[bundle.source][e].bypass, block, group, parts[e].products);
    if (!pooled) continue;
    Grid<T> x = this->state(bundle.source, group);
    x.data += this->mixed_lanes();
    DA2S_SIMD_CALL(max_pool_gradient<T>, x, this->size_of(bundle.source), 2, 2, 0, rest, sum,
                   this->after_, dx);
  }
}

template <class T>
void Backward<T>::third_stage_back(const Bundle<T>& bundle, const GroupBlock& block,
                                   const Scratch<T>& scratch) {
  const Size size = this->size_of(bundle.source);
  const int64_t elements = this->z_elements();
  this->fill_input(bundle, block, scratch);
  const std::vector<Step> all = this->steps(bundle, block, 2);
  std::vector<bool> begun(block.groups(), false);
  const auto sums_of = [&](const Step& step) -> const CandidateSums<T>& {
    return sums_[bundle.source][step.edge].candidates[step.candidate];
  };
  for (size_t i = 0; i < all.size(); ++i) {
    const auto& [e, k, group] = all[i];
    const CandidateRun<T>& run = bundle.edges[e].candidates[k];
    const CandidateSums<T>& sums = sums_of(all[i]);
    Ahead next;
    if (i + 1 < all.size()) {
      const Step& step = all[i + 1];
      const CandidateRun<T>& after = bundle.edges[step.edge].candidates[step.candidate];
      next = this->ahead(sums_of(step).inner + step.group * elements,
                         after.features[0] + step.group * elements, asks());
    }
    DA2S_SIMD_CALL(norm_gradient<T>, this->z_grid(sums.inner + group * elements),
                   run.features[0] + group * elements, this->after_.pixels(), this->mixed_lanes(),
                   sums.first.view(this->mean(run.candidate->layers[0].norm)), scratch.dz);
    clear_missing(scratch.dz, elements, group);
    run.layers[0].backward(this->inside(this->input_of(bundle, block, group, scratch), size),
                           scratch.dz, layer_scratch(scratch, false, &next),
                           relu_gradient(bundle, block, group, scratch), begun[block.index(group)],
                           weight_sums(block, sums.weights[0]));
    begun[block.index(group)] = true;
  }
  relu_back(bundle, block, scratch, true);
}

template void Backward<float>::second_stage_back(int64_t);
template void Backward<double>::second_stage_back(int64_t);
template void Backward<float>::third_stage_back(const Bundle<float>&, const GroupBlock&,
                                                const Scratch<float>&);
template void Backward<double>::third_stage_back(const Bundle<double>&, const GroupBlock&,
                                                 const Scratch<double>&);

}  // namespace da2s_fast

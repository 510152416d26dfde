// The backward stages of a bundle: from its nodes down to the state that its edges leave.
#include <cstring>

#include "backward.h"

namespace da2s_fast {

template <class T>
void Backward<T>::second_stage_back(const Bundle<T>& bundle, const Slice& slice) {
  const bool zeros = slice.first && begins_with_zeros(bundle);
  if (!zeros && !slice.once && !slice.twice) return;
  this->for_blocks(Loop::backward, [&](const GroupBlock& block, const Scratch<T>& scratch) {
    if (zeros)
      std::memset(gradient(bundle.source, block.begin).data, 0,
                  block.groups() * this->elements(bundle.source) * sizeof(T));
    last_layers_back(bundle, slice, block, scratch);
  });
  fold_weights(bundle, slice, false);
  for (const auto& [e, begin, end] : slice.parts)
    for (size_t k = begin; k < end; ++k) {
      const CandidateRun<T>& run = bundle.edges[e].candidates[k];
      NormSums<T>& first = sums_[bundle.source][e].candidates[k].first;
      if (run.layers.size() > 1)
        set_coefficients(first, first.gradient, run.candidate->layers[0].norm, 1, this->after_);
    }
}

template <class T>
void Backward<T>::plain_back(const Bundle<T>& bundle, int64_t group, const Scratch<T>& scratch) {
  std::memset(scratch.pool_gradients, 0, bundle.pools.size() * this->z_elements() * sizeof(T));
  for (size_t e = 0; e < bundle.edges.size(); ++e)
    for (size_t k = 0; k < bundle.edges[e].candidates.size(); ++k) {
      const CandidateRun<T>& run = bundle.edges[e].candidates[k];
      const CandidateSums<T>& sums = sums_[bundle.source][e].candidates[k];
      if (run.candidate->is_pool())
        pool_back(bundle, *bundle.edges[e].edge, run, sums, group, scratch);
      else if (run.layers.empty())
        direct_back(bundle, *bundle.edges[e].edge, sums, group);
    }
  pools_back(bundle, group, scratch);
}

template <class T>
void Backward<T>::direct_back(const Bundle<T>& bundle, const Edge& edge,
                              const CandidateSums<T>& sums, int64_t group) {
  Grid<T> to = gradient(bundle.source, group);
  to = {to.data, to.row * edge.stride, to.pixel * edge.stride};
  const Mixed<T> part{mixed_gradient(edge.target, group), sums.last.scale, nullptr};
  DA2S_SIMD_CALL(mix<T>, &part, 1, this->after_, this->mixed_lanes(), true, to);
}

template <class T>
void Backward<T>::pool_back(const Bundle<T>& bundle, const Edge& edge, const CandidateRun<T>& run,
                            const CandidateSums<T>& sums, int64_t group,
                            const Scratch<T>& scratch) {
  size_t pool = 0;
  while (bundle.pools[pool].kind != run.candidate->kind) ++pool;
  norm_back(mixed_gradient(edge.target, group), run, sums, group, scratch);
  DA2S_SIMD_CALL(add<T>, this->z_grid(scratch.dz), this->after_, this->mixed_lanes(),
                 pool_gradient(pool, scratch));
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
void Backward<T>::last_layers_back(const Bundle<T>& bundle, const Slice& slice,
                                   const GroupBlock& block, const Scratch<T>& scratch) {
  const int64_t elements = this->z_elements();
  const std::vector<Step> all = this->steps(bundle, slice, block, 1);
  clear_weights(block, slice.weights[0]);
  if (slice.once) this->fill_input(bundle, block, scratch);
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
    norm_back(mixed_gradient(bundle.edges[e].edge->target, group), run, sums, group, scratch);
    clear_missing(scratch.dz, elements, group);
    if (run.layers.size() > 1)
      inner_back(bundle, run, sums, block, group, scratch, &next);
    else
      layer_back(bundle, run, sums, block, group, scratch, &next);
  }
}

template <class T>
void Backward<T>::layer_back(const Bundle<T>& bundle, const CandidateRun<T>& run,
                             const CandidateSums<T>& sums, const GroupBlock& block, int64_t group,
                             const Scratch<T>& scratch, Ahead* ahead) {
  const bool add = run.candidate != bundle.leader || begins_with_zeros(bundle);
  T* input = this->input_of(bundle, block, group, scratch);
  run.layers[0].backward(this->inside(input, this->size_of(bundle.source)), scratch.dz,
                         layer_scratch(scratch, false, ahead), gradient(bundle.source, group), add,
                         weight_sums(block, sums.weights[0]));
}

template <class T>
void Backward<T>::inner_back(const Bundle<T>& bundle, const CandidateRun<T>& run,
                             const CandidateSums<T>& sums, const GroupBlock& block, int64_t group,
                             const Scratch<T>& scratch, Ahead* ahead) {
  const int64_t elements = this->z_elements();
  const Grid<const T> z = this->z_grid(run.features[0] + group * elements);
  this->fill_inner(run, group, scratch);
  const Grid<const T> seen = this->inside(scratch.inner, this->after_);
  const Grid<T> g = this->z_grid(scratch.inner_gradient);
  run.layers[1].backward(seen, scratch.dz, layer_scratch(scratch, true, ahead), g, false,
                         weight_sums(block, sums.weights[1]));
  double* gradients = begin_sums(sums.first.gradient, block, group, scratch.lanes);
  double* products =
      begin_sums(sums.first.product, block, group, scratch.lanes + this->mixed_lanes());
  DA2S_SIMD_CALL(mask_and_sum<T>, seen, g, z, this->mean(run.candidate->layers[0].norm),
                 this->after_, this->mixed_lanes(), bundle.streaming,
                 this->z_grid(sums.inner + group * elements), gradients, products);
  finish_sums(sums.first.gradient, block, group, gradients);
  finish_sums(sums.first.product, block, group, products);
}

template <class T>
void Backward<T>::pools_back(const Bundle<T>& bundle, int64_t group, const Scratch<T>& scratch) {
  const Size size = this->size_of(bundle.source);
  const int64_t stride = plan_.stride(bundle.source);
  const Grid<T> dx = gradient(bundle.source, group);
  for (size_t pool = 0; pool < bundle.pools.size(); ++pool) {
    const Grid<T> g = pool_gradient(pool, scratch);
    if (bundle.pools[pool].kind == Kind::max_pool)
      DA2S_SIMD_CALL(max_pool_gradient<T>, this->state_of(bundle.source, group, scratch), size, 3,
                     stride, 1, this->mixed_lanes(), g, this->after_, dx);
    else
      DA2S_SIMD_CALL(average_pool_gradient<T>, size, stride, this->mixed_lanes(), g, this->after_,
                     dx);
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
void Backward<T>::third_stage_back(const Bundle<T>& bundle, const Slice& slice,
                                   const GroupBlock& block, const Scratch<T>& scratch) {
  if (bundle.edges.empty()) return;
  const bool masks = slice.last && bundle.leader;
  if (slice.twice || masks) this->fill_input(bundle, block, scratch);
  if (slice.twice) first_layers_back(bundle, slice, block, scratch);
  if (!slice.last) return;
  const Size size = this->size_of(bundle.source);
  for (int64_t group = block.begin; group < block.end; ++group) {
    const Grid<T> dx = gradient(bundle.source, group);
    if (masks)
      DA2S_SIMD_CALL(mask<T>, this->inside(this->input_of(bundle, block, group, scratch), size), dx,
                     size, this->mixed_lanes(), false, dx);
    plain_back(bundle, group, scratch);
  }
  if (this->rest_lanes()) bypass_back(bundle, block, scratch);
}

template <class T>
void Backward<T>::first_layers_back(const Bundle<T>& bundle, const Slice& slice,
                                    const GroupBlock& block, const Scratch<T>& scratch) {
  const int64_t elements = this->z_elements();
  const std::vector<Step> all = this->steps(bundle, slice, block, 2);
  const auto sums_of = [&](const Step& step) -> const CandidateSums<T>& {
    return sums_[bundle.source][step.edge].candidates[step.candidate];
  };
  clear_weights(block, slice.weights[1]);
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
    layer_back(bundle, run, sums, block, group, scratch, &next);
  }
}

#define DA2S_INSTANTIATE(T)                                                                      \
  template void Backward<T>::second_stage_back(const Bundle<T>&, const Slice&);                  \
  template void Backward<T>::third_stage_back(const Bundle<T>&, const Slice&, const GroupBlock&, \
                                              const Scratch<T>&);
DA2S_INSTANTIATE(float)
DA2S_INSTANTIATE(double)

}  // namespace da2s_fast

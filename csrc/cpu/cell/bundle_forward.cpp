// The forward stages of a bundle, and what backward, too, needs of them.
#include "bundle.h"

namespace da2s_fast {

template <class T>
T* CellPass<T>::input_of(const Bundle<T>& bundle, const GroupBlock& block, int64_t group,
                         const Scratch<T>& scratch) const {
  const Size size = size_of(bundle.source);
  return (size == before_ ? scratch.input : scratch.node_input) + block.index(group) * padded(size);
}

template <class T>
void CellPass<T>::fill_input(const Bundle<T>& bundle, const GroupBlock& block,
                             const Scratch<T>& scratch) const {
  const int64_t s = bundle.source;
  const Size size = size_of(s);
  int64_t* filled = scratch.filled + (size == before_ ? 0 : 2);
  if (filled[0] == s + 1 && filled[1] == block.begin) return;
  filled[0] = s + 1;
  filled[1] = block.begin;
  for (int64_t group = block.begin; group < block.end; ++group) {
    const Grid<T> to = inside(input_of(bundle, block, group, scratch), size);
    if (states_[s])
      DA2S_SIMD_CALL(normalize<T>, state(s, group), size, mixed_lanes(), nullptr, nullptr, true,
                     to);
    else
      import_images(in_.inputs[s], group, true, 0, plan_.mixed(), to);
  }
}

template <class T>
Grid<const T> CellPass<T>::state_of(int64_t index, int64_t group, const Scratch<T>& scratch) const {
  if (states_[index]) return state(index, group);
  const Grid<T> x{scratch.middle, size_of(index).width * state_lanes(), state_lanes()};
  import_images(in_.inputs[index], group, false, 0, plan_.channels, x);
  return x;
}

template <class T>
void CellPass<T>::fill_inner(const CandidateRun<T>& run, int64_t group,
                             const Scratch<T>& scratch) const {
  const int64_t slot = run.candidate->layers[0].norm;
  DA2S_SIMD_CALL(normalize<T>, z_grid(run.features[0] + group * z_elements()), after_,
                 mixed_lanes(), rstd(slot), mean(slot), true, inside(scratch.inner, after_));
}

template <class T>
Grid<const T> CellPass<T>::mixed_of(const Bundle<T>& bundle, const EdgeRun<T>& edge,
                                    const CandidateRun<T>& run, int64_t group,
                                    const Scratch<T>& scratch) const {
  if (run.z) return z_grid(run.z + group * z_elements());
  const Grid<const T> x = state_of(bundle.source, group, scratch);
  return {x.data, x.row * edge.edge->stride, x.pixel * edge.edge->stride};
}

template <class T>
Grid<const T> CellPass<T>::bypass_of(const Bundle<T>& bundle, int64_t group, T* pooled) const {
  Grid<T> rest = state(bundle.source, group);
  rest.data += mixed_lanes();
  if (plan_.stride(bundle.source) == 1) return rest;
  const Grid<T> to{pooled, after_.width * rest_lanes(), rest_lanes()};
  DA2S_SIMD_CALL(max_pool<T>, rest, size_of(bundle.source), 2, 2, 0, rest_lanes(), to, after_);
  return to;
}

template <class T>
void CellPass<T>::preprocess_features(int64_t input, int64_t group,
                                      const Scratch<T>& scratch) const {
  const PackedLayer<T>& layer = preprocess_[plan_.preprocess[input][0].norm];
  const Grid<T> x = layer.inside(scratch.input), to = state(input, group);
  const Outer& outer = in_.inputs[input];
  const int64_t rows = layer.in_size().height;
  for (int64_t y = 0; y < outer.size.height; y += rows) {
    import_images(outer.rows(y, rows), group, true, 0, layer.layer().in_channels, x);
    layer.forward(x, scratch.middle, to.at(y, 0).data);
  }
}

template <class T>
void CellPass<T>::finish_input(int64_t input, int64_t group) const {
  const Grid<T> x = state(input, group);
  if (plan_.preprocess[input].empty())
    return import_images(in_.inputs[input], group, false, 0, plan_.channels, x);
  const int64_t slot = plan_.preprocess[input][0].norm;
  DA2S_SIMD_CALL(normalize<T>, x, before_, state_lanes(), rstd(slot), mean(slot), false, x);
}

template <class T>
void CellPass<T>::pools_forward(const Bundle<T>& bundle, const GroupBlock& block,
                                const Scratch<T>& scratch, bool moments) const {
  if (bundle.pools.empty()) return;
  const Size size = size_of(bundle.source);
  const int64_t stride = plan_.stride(bundle.source);
  for (int64_t group = block.begin; group < block.end; ++group) {
    const Grid<const T> x = state_of(bundle.source, group, scratch);
    for (const PoolRun<T>& pool : bundle.pools) {
      T* z = pool.z + group * z_elements();
      if (pool.kind == Kind::max_pool)
        DA2S_SIMD_CALL(max_pool<T>, x, size, 3, stride, 1, mixed_lanes(), z_grid(z), after_);
      else
        DA2S_SIMD_CALL(average_pool<T>, x, size, stride, mixed_lanes(), z_grid(z), after_);
      if (moments && plan_.pool_norm)
        pool.moments.add(images_, block.chunk, group, z, after_.pixels(), scratch.lanes);
    }
  }
}

template <class T>
void CellPass<T>::layer_forward(const CandidateRun<T>& run, size_t layer, Grid<const T> in, T* z,
                                const GroupBlock& block, int64_t group, const Scratch<T>& scratch,
                                Ahead* ahead, bool moments, bool streaming) const {
  const auto compute = [&](const ProductMoments<T>* where) {
    return run.layers[layer].forward(in, scratch.middle, z, ahead, where);
  };
  if (moments)
    run.moments[layer].add_while(images_, block.chunk, group, z, after_.pixels(), streaming,
                                 scratch.lanes, compute);
  else
    compute(nullptr);
}

template <class T>
void CellPass<T>::first_stage(const Bundle<T>& bundle, const Slice& slice, const GroupBlock& block,
                              const Scratch<T>& scratch, bool moments) const {
  if (slice.last) pools_forward(bundle, block, scratch, moments);
  const std::vector<Step> all = steps(bundle, slice, block, 1);
  if (!all.empty()) fill_input(bundle, block, scratch);
  const Size size = size_of(bundle.source);
  for (const auto& [e, k, group] : all) {
    const CandidateRun<T>& run = bundle.edges[e].candidates[k];
    T* z = run.features[0] + group * z_elements();
    const Grid<const T> in = inside(input_of(bundle, block, group, scratch), size);
    layer_forward(run, 0, in, z, block, group, scratch, nullptr, moments, bundle.streaming);
  }
}

template <class T>
std::vector<Step> CellPass<T>::steps(const Bundle<T>& bundle, const Slice& slice,
                                     const GroupBlock& block, size_t layers) const {
  std::vector<Step> all;
  for (const auto& [e, begin, end] : slice.parts)
    for (size_t k = begin; k < end; ++k)
      if (bundle.edges[e].candidates[k].layers.size() >= layers)
        for (int64_t group = block.begin; group < block.end; ++group) all.push_back({e, k, group});
  return all;
}

template <class T>
void CellPass<T>::second_stage(const Bundle<T>& bundle, const Slice& slice, const GroupBlock& block,
                               const Scratch<T>& scratch, bool moments) const {
  const std::vector<Step> all = steps(bundle, slice, block, 2);
  const auto run_of = [&](const Step& step) -> const CandidateRun<T>& {
    return bundle.edges[step.edge].candidates[step.candidate];
  };
  for (size_t i = 0; i < all.size(); ++i) {
    const CandidateRun<T>& run = run_of(all[i]);
    const int64_t group = all[i].group;
    T* z = run.features[1] + group * z_elements();
    Ahead next;
    if (i + 1 < all.size())
      next = ahead(run_of(all[i + 1]).features[0] + all[i + 1].group * z_elements(), nullptr, 2);
    fill_inner(run, group, scratch);
    layer_forward(run, 1, inside(scratch.inner, after_), z, block, group, scratch, &next, moments,
                  bundle.streaming);
  }
}

#define DA2S_INSTANTIATE(T)                                                                        \
  template T* CellPass<T>::input_of(const Bundle<T>&, const GroupBlock&, int64_t,                  \
                                    const Scratch<T>&) const;                                      \
  template void CellPass<T>::fill_input(const Bundle<T>&, const GroupBlock&, const Scratch<T>&)    \
      const;                                                                                       \
  template void CellPass<T>::fill_inner(const CandidateRun<T>&, int64_t, const Scratch<T>&) const; \
  template Grid<const T> CellPass<T>::mixed_of(const Bundle<T>&, const EdgeRun<T>&,                \
                                               const CandidateRun<T>&, int64_t, const Scratch<T>&) \
      const;                                                                                       \
  template Grid<const T> CellPass<T>::state_of(int64_t, int64_t, const Scratch<T>&) const;         \
  template Grid<const T> CellPass<T>::bypass_of(const Bundle<T>&, int64_t, T*) const;              \
  template void CellPass<T>::preprocess_features(int64_t, int64_t, const Scratch<T>&) const;       \
  template void CellPass<T>::finish_input(int64_t, int64_t) const;                                 \
  template void CellPass<T>::layer_forward(const CandidateRun<T>&, size_t, Grid<const T>, T*,      \
                                           const GroupBlock&, int64_t, const Scratch<T>&, Ahead*,  \
                                           bool, bool) const;                                      \
  template void CellPass<T>::first_stage(const Bundle<T>&, const Slice&, const GroupBlock&,        \
                                         const Scratch<T>&, bool) const;                           \
  template std::vector<Step> CellPass<T>::steps(const Bundle<T>&, const Slice&, const GroupBlock&, \
                                                size_t) const;                                     \
  template void CellPass<T>::second_stage(const Bundle<T>&, const Slice&, const GroupBlock&,       \
                                          const Scratch<T>&, bool) const;
DA2S_INSTANTIATE(float)
DA2S_INSTANTIATE(double)

}  // namespace da2s_fast

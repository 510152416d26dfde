// What the passes over a cell share: its bundles and where their tensors lie.
#include "bundle.h"

#include <algorithm>
#include <cmath>
#include <utility>

namespace da2s_fast {
namespace {

// What preprocessing takes of an input, with several times the channels, should fit into a part of
// the second cache.
constexpr int64_t kStripBytes = 1 << 18;
// Features of more bytes than that leave the caches before the next stage reads them.
constexpr size_t kCachedBytes = 1 << 24;
// Numbers of layers, in the order in which candidates come.
constexpr size_t kOrder[] = {1, 2, 0};

template <class T>
int64_t vector_lanes() {
  return DA2S_SIMD_CALL(vector_bytes) / static_cast<int64_t>(sizeof(T));
}

Size preprocessed(const Plan& plan, const std::vector<Size>& sizes) {
  const auto& layers = plan.preprocess.back();
  return layers.empty() ? sizes.back() : layers[0].out_size(sizes.back());
}

std::vector<Size> sizes_of(const std::vector<Outer>& inputs) {
  std::vector<Size> sizes;
  for (const Outer& input : inputs) sizes.push_back(input.size);
  return sizes;
}

}  // namespace

template <class T>
CellPass<T>::CellPass(const CellArguments<T>& arguments)
    : in_(arguments),
      plan_(arguments.plan),
      images_(arguments.batch, plan_.mixed(), vector_lanes<T>()),
      before_(preprocessed(plan_, sizes_of(arguments.inputs))),
      after_(plan_.reduction ? Size{(before_.height + 1) / 2, (before_.width + 1) / 2} : before_),
      border_(plan_.border()) {
  for (int64_t source = 0; source < plan_.states(); ++source)
    bundles_.push_back(make_bundle(source));
}

template <class T>
Bundle<T> CellPass<T>::make_bundle(int64_t source) const {
  Bundle<T> bundle{source, {}, {}, {}, nullptr};
  for (const Edge* edge : plan_.bundle(source)) {
    EdgeRun<T> run{edge, {}};
    for (const size_t layers : kOrder)
      for (const Candidate& candidate : edge->candidates)
        if (candidate.layers.size() == layers) run.candidates.push_back({&candidate, {}, {}, {}});
    for (CandidateRun<T>& made : run.candidates) {
      const Candidate& candidate = *made.candidate;
      Size size = size_of(source);
      for (const Layer& layer : candidate.layers) {
        made.layers.emplace_back(layer, size, images_.per_group, border_);
        size = layer.out_size(size);
      }
      const auto same = [&](const PoolRun<T>& pool) { return pool.kind == candidate.kind; };
      if (candidate.is_pool() && std::none_of(bundle.pools.begin(), bundle.pools.end(), same))
        bundle.pools.push_back({candidate.kind, nullptr, {}});
    }
    bundle.edges.push_back(std::move(run));
  }
  cut(bundle);
  return bundle;
}

template <class T>
void CellPass<T>::cut(Bundle<T>& bundle) const {
  const size_t most = in_.save ? SIZE_MAX : 2 * plan_.nodes;
  size_t features = 0, pools = bundle.pools.size();
  bundle.slices.emplace_back();
  for (const size_t layers : kOrder)
    for (size_t e = 0; e < bundle.edges.size(); ++e)
      for (size_t k = 0; k < bundle.edges[e].candidates.size(); ++k) {
        const Candidate& candidate = *bundle.edges[e].candidates[k].candidate;
        if (candidate.layers.size() != layers) continue;
        if (layers > 0 && !bundle.leader) bundle.leader = &candidate;
        // All edges share the pools, which come with the first candidate without layers.
        const size_t more = layers > 0 ? layers : std::exchange(pools, 0);
        if (features > 0 && features + more > most) {
          bundle.slices.back().last = false;
          bundle.slices.emplace_back().first = false;
          features = 0;
        }
        features += more;
        Slice& slice = bundle.slices.back();
        slice.once |= layers == 1;
        slice.twice |= layers == 2;
        const auto same = [&](const Slice::Part& part) { return part.edge == e; };
        auto part = std::find_if(slice.parts.begin(), slice.parts.end(), same);
        if (part == slice.parts.end()) part = slice.parts.insert(part, {e, k, k});
        ++part->end;
      }
}

template <class T>
void CellPass<T>::lay_out(Arena& saved, Arena& workspace, bool backward) {
  states_.clear();
  for (int64_t s = 0; s < plan_.states(); ++s) {
    const bool input = s < plan_.inputs;
    // Nobody reads the last node again.
    const bool read = input || !bundles_[s].edges.empty();
    const bool kept = input ? is_kept(s) : read || !backward;
    Arena& arena = read && (in_.save || !input) ? saved : workspace;
    states_.push_back(kept ? arena.template take<T>(images_.groups * elements(s)) : nullptr);
  }
  preprocess_.clear();
  for (int64_t i = 0; i < plan_.inputs; ++i)
    for (const Layer& layer : plan_.preprocess[i]) {
      preprocess_.emplace_back(layer, strip(layer, in_.inputs[i].size), images_.per_group,
                               layer.border());
      preprocess_.back().lay_out(backward, workspace);
    }
  const int64_t numbers = plan_.norm_offset(plan_.norm_count) * images_.per_group;
  mean_ = workspace.take<T>(numbers);
  rstd_ = workspace.take<T>(numbers);
  for (Bundle<T>& bundle : bundles_)
    for (EdgeRun<T>& edge : bundle.edges)
      for (CandidateRun<T>& run : edge.candidates) {
        for (PackedLayer<T>& layer : run.layers) layer.lay_out(backward, workspace);
        if (!backward) run.scale = workspace.take<T>(mixed_lanes());
      }
  size_t used = workspace.used();
  for (Bundle<T>& bundle : bundles_)
    for (const Slice& slice : bundle.slices) {
      Arena own = workspace;
      lay_out_features(bundle, slice, backward, in_.save ? saved : own, own);
      used = std::max(used, own.used());
      if (kWatched) workspace = own;
    }
  workspace.template take<char>(used - workspace.used());
}

// Without saving, all slices use the same memory, one after the other: features and moments take
// turns, so that they lie at the same places in all of them, and a stage that still reads one
// slice's while it writes another's overwrites a group's only after it was read.
template <class T>
void CellPass<T>::lay_out_features(Bundle<T>& bundle, const Slice& slice, bool backward,
                                   Arena& features, Arena& workspace) const {
  const size_t before = features.used();
  const auto take = [&] { return features.template take<T>(images_.groups * z_elements()); };
  const auto moments = [&] {
    return backward ? Moments<T>() : Moments<T>(plan_.mixed(), images_, workspace);
  };
  if (slice.last)
    for (PoolRun<T>& pool : bundle.pools) {
      pool.z = take();
      pool.moments = moments();
    }
  for (const Slice::Part& part : slice.parts)
    for (size_t k = part.begin; k < part.end; ++k) {
      CandidateRun<T>& run = bundle.edges[part.edge].candidates[k];
      run.features.clear();
      run.moments.clear();
      for (size_t i = 0; i < run.layers.size(); ++i) {
        run.features.push_back(take());
        run.moments.push_back(moments());
      }
      if (!run.features.empty()) run.z = run.features.back();
      for (const PoolRun<T>& pool : bundle.pools)
        if (pool.kind == run.candidate->kind) run.z = pool.z;
    }
  bundle.streaming = in_.save && features.used() - before > kCachedBytes;
}

template <class T>
int64_t CellPass<T>::saved_size(const Plan& plan, int64_t batch, const std::vector<Size>& sizes,
                                bool save) {
  CellArguments<T> arguments{plan, batch, {}, {}, {}, {}, {}, 0, save};
  for (const Size& size : sizes) arguments.inputs.push_back({nullptr, {}, 0, {}, 0, size});
  CellPass<T> pass(arguments);
  Arena saved, workspace;
  pass.lay_out(saved, workspace, true);
  return static_cast<int64_t>(saved.used() / sizeof(T));
}

template <class T>
void CellPass<T>::pack_weights(bool backward) {
  std::vector<PackedLayer<T>*> layers;
  for (PackedLayer<T>& layer : preprocess_) layers.push_back(&layer);
  for (Bundle<T>& bundle : bundles_)
    for (EdgeRun<T>& edge : bundle.edges)
      for (CandidateRun<T>& run : edge.candidates)
        for (PackedLayer<T>& layer : run.layers) layers.push_back(&layer);
  parallel_for(0, static_cast<int64_t>(layers.size()), 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) layers[i]->pack(in_.weights, backward);
  });
}

template <class T>
void CellPass<T>::expand_norm(int64_t slot, const T* statistics) {
  const int64_t channels = plan_.norm_channels(slot), images = images_.per_group;
  const T* from = statistics + 2 * plan_.norm_offset(slot);
  for (int64_t c = 0; c < channels; ++c) {
    const double variance = from[channels + c];
    const T rstd = static_cast<T>(1 / std::sqrt(variance + in_.eps));
    std::fill_n(mean_ + lane_offset(slot) + c * images, images, from[c]);
    std::fill_n(rstd_ + lane_offset(slot) + c * images, images, rstd);
  }
}

template <class T>
Size CellPass<T>::strip(const Layer& layer, Size size) const {
  if (layer.taps() > 1 || layer.stride > 1) return size;
  const int64_t pixel = layer.in_channels * images_.per_group * static_cast<int64_t>(sizeof(T));
  while (size.height % 2 == 0 && size.pixels() * pixel > kStripBytes) size.height /= 2;
  return size;
}

template class CellPass<float>;
template class CellPass<double>;

}  // namespace da2s_fast

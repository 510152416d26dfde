#include "bundle.h"

#include <algorithm>
#include <cmath>
#include <cstring>

namespace da2s_fast {
namespace {

// A block's tensors of one kind should fit into a part of the second cache, and so should what
// preprocessing takes of an input, which has several times the channels.
constexpr int64_t kBlockBytes = 1 << 17, kStripBytes = 1 << 18;

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

// Moves the channels of every pixel, `Bytes` each.
template <int64_t Bytes, class T>
void shuffle_pixels(const Plan& plan, Grid<T> pixels, Size size, bool back, T* scratch) {
  const int64_t partial = plan.partial, mixed = plan.mixed(), bytes = plan.channels * Bytes;
  char* copy = reinterpret_cast<char*>(scratch);
  for (int64_t i = 0; i < size.pixels(); ++i) {
    char* pixel = reinterpret_cast<char*>(pixels.data + i * pixels.pixel);
    std::memcpy(copy, pixel, bytes);
    for (int64_t j = 0; j < partial; ++j)
      for (int64_t c = 0; c < mixed; ++c) {
        const int64_t grouped = (j * mixed + c) * Bytes;
        const int64_t shuffled = (c * partial + j) * Bytes;
        std::memcpy(pixel + (back ? grouped : shuffled), copy + (back ? shuffled : grouped), Bytes);
      }
  }
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
  for (int64_t source = 0; source < plan_.states(); ++source) {
    Bundle<T> bundle{source, {}, {}};
    for (const Edge* edge : plan_.bundle(source)) {
      EdgeRun<T> run{edge, {}};
      for (const Candidate& candidate : edge->candidates) {
        run.candidates.push_back({&candidate, {}, {}, {}});
        Size size = size_of(source);
        for (const Layer& layer : candidate.layers) {
          run.candidates.back().layers.emplace_back(layer, size, images_.per_group, border_);
          size = layer.out_size(size);
        }
        bundle.twice |= candidate.layers.size() > 1;
        const auto same = [&](const PoolRun<T>& pool) { return pool.kind == candidate.kind; };
        if (candidate.is_pool() && std::none_of(bundle.pools.begin(), bundle.pools.end(), same))
          bundle.pools.push_back({candidate.kind, nullptr, {}});
      }
      bundle.edges.push_back(std::move(run));
    }
    bundles_.push_back(std::move(bundle));
  }
}

template <class T>
void CellPass<T>::lay_out(Arena& saved, Arena& workspace, bool backward) {
  states_.clear();
  for (int64_t s = 0; s < plan_.states(); ++s) {
    const bool input = s < plan_.inputs;
    // Nobody reads the last node again.
    const bool read = input || !bundles_[s].edges.empty();
    Arena& arena = read && (in_.save || !input) ? saved : workspace;
    states_.push_back(backward && !read ? nullptr
                                        : arena.template take<T>(images_.groups * elements(s)));
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
  for (Bundle<T>& bundle : bundles_) {
    // Without saving, all bundles use the same memory, one after the other: features and moments
    // take turns, so that they lie at the same places in all of them, and a stage that still reads
    // one bundle's while it writes another's overwrites a group's only after it was read.
    Arena own = workspace;
    Arena& features = in_.save ? saved : own;
    const auto take = [&] { return features.template take<T>(images_.groups * z_elements()); };
    const auto moments = [&] {
      return backward ? Moments<T>() : Moments<T>(plan_.mixed(), images_, own);
    };
    for (PoolRun<T>& pool : bundle.pools) {
      pool.z = take();
      pool.moments = moments();
    }
    for (EdgeRun<T>& edge : bundle.edges)
      for (CandidateRun<T>& run : edge.candidates) {
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
    used = std::max(used, own.used());
    if (kWatched) workspace = own;
  }
  workspace.template take<char>(used - workspace.used());
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
int64_t CellPass<T>::block_groups() const {
  const int64_t bytes = before_.pixels() * mixed_lanes() * static_cast<int64_t>(sizeof(T));
  return std::max<int64_t>(1, kBlockBytes / bytes);
}

template <class T>
Scratch<T> CellPass<T>::make_scratch(Loop loop) const {
  const int64_t block = std::min(block_groups(), images_.groups);
  const bool backward = loop == Loop::backward || loop == Loop::preprocess_back;
  const bool preprocess = loop == Loop::preprocess || loop == Loop::preprocess_back;
  int64_t wide = 0, lanes = state_lanes();
  if (preprocess)
    for (const PackedLayer<T>& layer : preprocess_) {
      wide = std::max(wide, layer.padded());
      lanes = std::max(lanes, layer.in_lanes());
    }
  const auto lay_out = [&](Arena arena, Scratch<T>& scratch) {
    scratch.input = arena.take<T>(std::max(block * padded(before_), wide));
    if (!(after_ == before_)) scratch.node_input = arena.take<T>(block * padded(after_));
    scratch.inner = arena.take<T>(padded(after_));
    if (backward) {
      scratch.padded = arena.take<T>(std::max(padded(before_), wide));
      scratch.inner_padded = arena.take<T>(padded(after_));
    }
    const size_t bordered = arena.used();
    scratch.middle = arena.take<T>(std::max(z_elements(), before_.pixels() * state_lanes()));
    scratch.lanes = arena.take<double>(
        std::max({int64_t{2}, plan_.operations, static_cast<int64_t>(plan_.edges.size())}) * lanes);
    scratch.scale = arena.take<T>(lanes);
    if (backward) {
      scratch.dz = arena.take<T>(std::max(z_elements(), before_.pixels() * state_lanes()));
      scratch.inner_gradient = arena.take<T>(std::max(z_elements(), wide));
      scratch.relu_gradient = arena.take<T>(block * before_.pixels() * mixed_lanes());
      scratch.pool_gradients = arena.take<T>(2 * block * z_elements());
      scratch.bypass = arena.take<T>(after_.pixels() * rest_lanes());
      scratch.bypass_gradient = arena.take<T>(after_.pixels() * rest_lanes());
    }
    return std::pair(bordered, arena.used());
  };
  Scratch<T> scratch{};
  const auto [bordered, used] = lay_out(Arena(), scratch);
  scratch.memory = std::make_unique<Workspace>(used);
  std::memset(scratch.memory->data(), 0, bordered);
  lay_out(Arena(scratch.memory->data()), scratch);
  return scratch;
}

template <class T>
Scratch<T> CellPass<T>::take_scratch(Loop loop) const {
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    if (!free_scratch_.empty() && (loop == Loop::forward || loop == Loop::backward)) {
      Scratch<T> scratch = std::move(free_scratch_.back());
      free_scratch_.pop_back();
      return scratch;
    }
  }
  return make_scratch(loop);
}

// Inputs differ in their borders: what their preprocessing leaves is of no use to anybody.
template <class T>
void CellPass<T>::give_back(Loop loop, Scratch<T> scratch) const {
  if (loop != Loop::forward && loop != Loop::backward) return;
  const std::lock_guard<std::mutex> lock(mutex_);
  free_scratch_.push_back(std::move(scratch));
}

template <class T>
void CellPass<T>::import_images(const Outer& input, int64_t group, bool relu, int64_t channel,
                                int64_t channels, Grid<T> to) const {
  const int64_t images = images_.per_group, valid = images_.valid(group);
  const int64_t first = group * images * input.image + channel * input.at.channel;
  const auto run = [&](const auto* data) {
    DA2S_SIMD_CALL(import_group, data + first, input.at, input.image, valid, images, channels,
                   input.size, relu, to);
  };
  if constexpr (sizeof(T) == sizeof(double)) {
    run(static_cast<const double*>(input.data));
  } else if (input.type == OuterType::float32) {
    run(static_cast<const float*>(input.data));
  } else if (input.type == OuterType::bfloat16) {
    run(static_cast<const BFloat16*>(input.data));
  } else {
    run(static_cast<const Float16*>(input.data));
  }
}

template <class T>
void CellPass<T>::export_images(Grid<const T> from, int64_t group, int64_t channel,
                                int64_t channels, const Outer& output) const {
  const int64_t images = images_.per_group, valid = images_.valid(group);
  const int64_t first = group * images * output.image + channel * output.at.channel;
  const auto run = [&](auto* data) {
    DA2S_SIMD_CALL(export_group, from, output.at, output.image, valid, images, channels,
                   output.size, data + first);
  };
  if constexpr (sizeof(T) == sizeof(double)) {
    run(static_cast<double*>(output.data));
  } else if (output.type == OuterType::float32) {
    run(static_cast<float*>(output.data));
  } else if (output.type == OuterType::bfloat16) {
    run(static_cast<BFloat16*>(output.data));
  } else {
    run(static_cast<Float16*>(output.data));
  }
}

template <class T>
void CellPass<T>::shuffle(Grid<T> pixels, Size size, bool back, T* scratch) const {
  switch (images_.per_group * static_cast<int64_t>(sizeof(T))) {
    case 8:
      return shuffle_pixels<8>(plan_, pixels, size, back, scratch);
    case 16:
      return shuffle_pixels<16>(plan_, pixels, size, back, scratch);
    case 32:
      return shuffle_pixels<32>(plan_, pixels, size, back, scratch);
    case 64:
      return shuffle_pixels<64>(plan_, pixels, size, back, scratch);
    default:
      return shuffle_pixels<sizeof(T)>(plan_, pixels, size, back, scratch);
  }
}

template <class T>
T* CellPass<T>::input_of(const Bundle<T>& bundle, const GroupBlock& block, int64_t group,
                         const Scratch<T>& scratch) const {
  const Size size = size_of(bundle.source);
  return (size == before_ ? scratch.input : scratch.node_input) + block.index(group) * padded(size);
}

template <class T>
void CellPass<T>::fill_input(const Bundle<T>& bundle, const GroupBlock& block,
                             const Scratch<T>& scratch) const {
  if (bundle.edges.empty()) return;  // the state is not kept
  const Size size = size_of(bundle.source);
  for (int64_t group = block.begin; group < block.end; ++group)
    DA2S_SIMD_CALL(normalize<T>, state(bundle.source, group), size, mixed_lanes(), nullptr, nullptr,
                   true, inside(input_of(bundle, block, group, scratch), size));
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
                                    const CandidateRun<T>& run, int64_t group) const {
  if (run.z) return z_grid(run.z + group * z_elements());
  const Grid<T> x = state(bundle.source, group);
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
Size CellPass<T>::strip(const Layer& layer, Size size) const {
  if (layer.taps() > 1 || layer.stride > 1) return size;
  const int64_t pixel = layer.in_channels * images_.per_group * static_cast<int64_t>(sizeof(T));
  while (size.height % 2 == 0 && size.pixels() * pixel > kStripBytes) size.height /= 2;
  return size;
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
void CellPass<T>::first_stage(const Bundle<T>& bundle, const GroupBlock& block,
                              const Scratch<T>& scratch, bool moments) const {
  const Size size = size_of(bundle.source);
  const int64_t stride = plan_.stride(bundle.source);
  const auto add = [&](const Moments<T>& sums, int64_t group, const T* z) {
    if (moments) sums.add(images_, block.chunk, group, z, after_.pixels(), scratch.lanes);
  };
  for (const PoolRun<T>& pool : bundle.pools)
    for (int64_t group = block.begin; group < block.end; ++group) {
      T* z = pool.z + group * z_elements();
      if (pool.kind == Kind::max_pool)
        DA2S_SIMD_CALL(max_pool<T>, state(bundle.source, group), size, 3, stride, 1, mixed_lanes(),
                       z_grid(z), after_);
      else
        DA2S_SIMD_CALL(average_pool<T>, state(bundle.source, group), size, stride, mixed_lanes(),
                       z_grid(z), after_);
      if (plan_.pool_norm) add(pool.moments, group, z);
    }
  fill_input(bundle, block, scratch);
  for (const EdgeRun<T>& edge : bundle.edges)
    for (const CandidateRun<T>& run : edge.candidates) {
      if (run.layers.empty()) continue;
      for (int64_t group = block.begin; group < block.end; ++group) {
        T* z = run.features[0] + group * z_elements();
        run.layers[0].forward(inside(input_of(bundle, block, group, scratch), size), scratch.middle,
                              z);
        add(run.moments[0], group, z);
      }
    }
}

template <class T>
std::vector<Step> CellPass<T>::steps(const Bundle<T>& bundle, const GroupBlock& block,
                                     size_t layers) const {
  std::vector<Step> all;
  for (size_t e = 0; e < bundle.edges.size(); ++e)
    for (size_t k = 0; k < bundle.edges[e].candidates.size(); ++k)
      if (bundle.edges[e].candidates[k].layers.size() >= layers)
        for (int64_t group = block.begin; group < block.end; ++group) all.push_back({e, k, group});
  return all;
}

template <class T>
void CellPass<T>::second_stage(const Bundle<T>& bundle, const GroupBlock& block,
                               const Scratch<T>& scratch, bool moments) const {
  const std::vector<Step> all = steps(bundle, block, 2);
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
    run.layers[1].forward(inside(scratch.inner, after_), scratch.middle, z, &next);
    if (moments) run.moments[1].add(images_, block.chunk, group, z, after_.pixels(), scratch.lanes);
  }
}

template class CellPass<float>;
template class CellPass<double>;

}  // namespace da2s_fast

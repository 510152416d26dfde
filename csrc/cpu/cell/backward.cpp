// The backward pass of a cell: states in reverse, for every bundle the stages of
// da2s_fast/ops/cell/bundle_backward.py. A node's gradient is complete when the bundles of all
// later states are done.
#include <cmath>
#include <cstring>

#include "pass.h"

namespace da2s_fast {
namespace {

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

  void run(const T* saved) {
    Arena counted, count;
    lay_out(counted, count);
    const Workspace memory(count.used());
    Arena given(const_cast<T*>(saved)), arena(memory.data());
    lay_out(given, arena);
    for (int64_t slot = 0; slot < plan_.norm_count; ++slot) this->expand_norm(slot, statistics_);
    for (int64_t s = plan_.states() - 1; s >= 0; --s) {
      complete(s);
      if (s == 0) break;
      coefficients(s - 1);
      if (wanted_state(s - 1)) second_stage_back(s - 1);
    }
    for (int64_t i = 0; i < plan_.inputs; ++i)
      if (wanted_state(i)) preprocess_back(i);
  }

 private:
  using CellPass<T>::plan_;
  using CellPass<T>::images_;
  using CellPass<T>::in_;

  bool wanted_state(int64_t s) const {
    if (s >= plan_.inputs) return true;
    return wanted_.inputs[s] || (wanted_.weights && !plan_.preprocess[s].empty()) ||
           (wanted_.weights && !this->bundles_[s].edges.empty());
  }

  NormSums<T> norm_sums(int64_t channels, Arena& arena) {
    const int64_t lanes = channels * images_.per_group;
    NormSums<T> made;
    made.product = ChannelSums(channels, images_, arena);
    made.gradient = ChannelSums(channels, images_, arena);
    made.scale = arena.take<T>(lanes);
    made.shift = arena.take<T>(lanes);
    made.slope = arena.take<T>(lanes);
    return made;
  }

  void lay_out(Arena& saved, Arena& workspace) {
    CellPass<T>::lay_out(saved, workspace, true);
    gradients_.clear();
    node_sums_.clear();
    for (int64_t s = 0; s < plan_.states(); ++s) {
      gradients_.push_back(wanted_state(s) ? workspace.take<T>(images_.groups * this->elements(s))
                                           : nullptr);
      node_sums_.emplace_back(plan_.mixed(), images_, workspace);
    }
    size_t used = workspace.used();
    int64_t most = 0;
    for (size_t s = 0; s < sums_.size(); ++s) {
      Arena own = workspace;  // bundle after bundle uses the same memory
      int64_t weights = 0;
      for (size_t e = 0; e < sums_[s].size(); ++e) {
        sums_[s][e].bypass = ChannelSums(plan_.channels - plan_.mixed(), images_, own);
        for (size_t k = 0; k < sums_[s][e].candidates.size(); ++k) {
          const CandidateRun<T>& run = this->bundles_[s].edges[e].candidates[k];
          CandidateSums<T>& sums = sums_[s][e].candidates[k];
          sums.last = norm_sums(plan_.mixed(), own);
          if (run.layers.size() > 1) {
            sums.first = norm_sums(plan_.mixed(), own);
            sums.inner = own.take<T>(images_.groups * this->z_elements());
          }
          sums.weights.clear();
          for (const PackedLayer<T>& layer : run.layers) {
            sums.weights.push_back(weights);
            weights += layer.sums();
          }
        }
      }
      most = std::max(most, weights);
      used = std::max(used, own.used());
    }
    workspace.template take<char>(used - workspace.used());
    layers_.clear();
    for (int64_t i = 0; i < plan_.inputs; ++i)
      for (const Layer& layer : plan_.preprocess[i]) {
        layers_.emplace_back(layer, in_.inputs[i].size, images_.per_group, layer.border());
        layers_.back().pack(in_.weights, true, workspace);
        most = std::max(most, layers_.back().sums());
      }
    state_sums_ = norm_sums(plan_.channels, workspace);
    zeros_ = workspace.template take<T>(this->state_lanes());
    weights_per_chunk_ = wanted_.weights ? most : 0;
    weight_sums_ = workspace.take<double>(images_.chunks * weights_per_chunk_);
  }

  Grid<T> gradient(int64_t s, int64_t group) const {
    Grid<T> grid = this->state(s, 0);
    grid.data = gradients_[s] + group * this->elements(s);
    return grid;
  }

  // Sums for one group into a chunk's, per channel: add(lanes) adds per lane.
  template <class Add>
  void add_sums(const ChannelSums& sums, const Block& block, int64_t group,
                const Scratch<T>& scratch, Add add) const {
    double* channels = sums.of(block.chunk);
    if (group == images_.first(block.chunk)) std::fill_n(channels, sums.channels, 0.0);
    if (images_.per_group == 1) return add(channels);
    std::fill_n(scratch.lanes, sums.channels * images_.per_group, 0.0);
    add(scratch.lanes);
    fold_lanes(scratch.lanes, sums.channels, images_.per_group, images_.valid(group), channels);
  }

  // Zeros in the place of images that are not there: their gradient must not reach the weights.
  void clear_missing(T* data, int64_t numbers, int64_t group) const {
    const int64_t images = images_.per_group, valid = images_.valid(group);
    if (valid == images) return;
    for (int64_t i = 0; i < numbers; i += images)
      std::fill(data + i + valid, data + i + images, T{0});
  }

  double* weight_sums(const Block& block, int64_t begin) const {
    return wanted_.weights ? weight_sums_ + block.chunk * weights_per_chunk_ + begin : nullptr;
  }

  // Everything a chunk's first block has to clear in the weights' sums.
  void clear_weights(const Block& block, int64_t count) const {
    if (wanted_.weights && block.begin == images_.first(block.chunk))
      std::fill_n(weight_sums(block, 0), count, 0.0);
  }

  int64_t weight_count(int64_t s) const {
    int64_t count = 0;
    for (const EdgeRun<T>& edge : this->bundles_[s].edges)
      for (const CandidateRun<T>& run : edge.candidates)
        for (const PackedLayer<T>& layer : run.layers) count += layer.sums();
    return count;
  }

  // Finishes the gradient of a state, then takes the sums for the bundle before it.
  void complete(int64_t s) {
    const Bundle<T>& bundle = this->bundles_[s];
    this->for_blocks(true, [&](const Block& block, const Scratch<T>& scratch) {
      if (bundle.twice && wanted_state(s)) third_stage_back(bundle, block, scratch);
      if (s >= plan_.inputs) complete_node(s, block, scratch);
      if (s == 0) return;
      const Bundle<T>& before = this->bundles_[s - 1];
      if (!in_.save) {
        this->first_stage(before, block, scratch, false);
        this->second_stage(before, block, scratch, false);
      }
      first_stage_back(before, block, scratch);
    });
    if (wanted_.weights && wanted_state(s)) fold_weights(s);
  }

  void complete_node(int64_t s, const Block& block, const Scratch<T>& scratch) {
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
      add_sums(node_sums_[s], block, group, scratch, [&](double* sums) {
        DA2S_SIMD_CALL(lane_sums<T>, g, this->after_.pixels(), this->mixed_lanes(), sums);
      });
    }
  }

  // Every candidate's product with its node's gradient.
  void first_stage_back(const Bundle<T>& bundle, const Block& block, const Scratch<T>& scratch) {
    for (int64_t group = block.begin; group < block.end; ++group) {
      Grid<const T> bypass{};
      if (this->rest_lanes() && !bundle.edges.empty())
        bypass = this->bypass_of(bundle, group, scratch);
      for (size_t e = 0; e < bundle.edges.size(); ++e) {
        const EdgeRun<T>& edge = bundle.edges[e];
        const EdgeSums<T>& sums = sums_[bundle.source][e];
        Grid<T> g = gradient(edge.edge->target, group);
        for (size_t k = 0; k < edge.candidates.size(); ++k) {
          const CandidateRun<T>& run = edge.candidates[k];
          const int64_t slot = run.candidate->norm;
          add_sums(sums.candidates[k].last.product, block, group, scratch, [&](double* into) {
            DA2S_SIMD_CALL(lane_products<T>, g, this->mixed_of(bundle, edge, run, group),
                           this->after_, this->mixed_lanes(), slot < 0 ? nullptr : this->mean(slot),
                           into);
          });
        }
        if (!this->rest_lanes()) continue;
        g.data += this->mixed_lanes();
        add_sums(sums.bypass, block, group, scratch, [&](double* into) {
          DA2S_SIMD_CALL(lane_products<T>, g, bypass, this->after_, this->rest_lanes(), nullptr,
                         into);
        });
      }
    }
  }

  double rstd_of(int64_t slot, int64_t channel) const {
    const T* statistics = statistics_ + 2 * plan_.norm_offset(slot) + plan_.norm_channels(slot);
    return 1 / std::sqrt(static_cast<double>(statistics[channel]) + in_.eps);
  }

  // Scale, shift and slope of a norm's gradient that arrives times `factor`.
  void set_coefficients(NormSums<T>& sums, const ChannelSums& gradient, int64_t slot, double factor,
                        Size size) {
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

  // The gradients of p and g, and what the second stage needs.
  void coefficients(int64_t s) {
    const Bundle<T>& bundle = this->bundles_[s];
    for (size_t e = 0; e < bundle.edges.size(); ++e) {
      const EdgeRun<T>& edge = bundle.edges[e];
      EdgeSums<T>& sums = sums_[s][e];
      const double g = in_.g[edge.edge->row];
      double& dg = wanted_.g[edge.edge->row];
      for (size_t k = 0; k < edge.candidates.size(); ++k) {
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
      for (int64_t c = 0; c < sums.bypass.channels; ++c) dg += sums.bypass.total(c, images_.chunks);
    }
  }

  // From the nodes down to x, for separable convolutions down to their inner norm.
  void second_stage_back(int64_t s) {
    const Bundle<T>& bundle = this->bundles_[s];
    const int64_t weights = weight_count(s);
    this->for_blocks(true, [&](const Block& block, const Scratch<T>& scratch) {
      clear_weights(block, weights);
      std::memset(gradient(s, block.begin).data, 0, block.groups() * this->elements(s) * sizeof(T));
      clear_block(bundle, block, scratch);
      for (size_t e = 0; e < bundle.edges.size(); ++e)
        for (const CandidateRun<T>& run : bundle.edges[e].candidates)
          if (run.layers.empty()) plain_back(bundle, e, run, block, scratch);
      layers_back(bundle, block, scratch);
      pools_back(bundle, block, scratch);
      relu_back(bundle, block, scratch);
      if (this->rest_lanes()) bypass_back(bundle, block, scratch);
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

  // Prepares a block's input and the gradient behind ReLU, which candidates add to.
  void clear_block(const Bundle<T>& bundle, const Block& block, const Scratch<T>& scratch) {
    const int64_t pixels = this->size_of(bundle.source).pixels();
    this->fill_input(bundle, block, scratch);
    std::memset(scratch.relu_gradient, 0,
                block.groups() * pixels * this->mixed_lanes() * sizeof(T));
    std::memset(scratch.pool_gradients, 0,
                bundle.pools.size() * block.groups() * this->z_elements() * sizeof(T));
  }

  T* relu_gradient(const Bundle<T>& bundle, const Block& block, int64_t group,
                   const Scratch<T>& scratch) const {
    return scratch.relu_gradient +
           block.index(group) * this->size_of(bundle.source).pixels() * this->mixed_lanes();
  }

  T* pool_gradient(size_t pool, const Block& block, int64_t group,
                   const Scratch<T>& scratch) const {
    return scratch.pool_gradients +
           (static_cast<int64_t>(pool) * block.groups() + block.index(group)) * this->z_elements();
  }

  typename PackedLayer<T>::Scratch layer_scratch(const Scratch<T>& scratch, bool second,
                                                 Ahead* ahead) const {
    return {scratch.middle, scratch.gradient, second ? scratch.inner_spread : scratch.spread,
            ahead};
  }

  // A candidate without layers.
  void plain_back(const Bundle<T>& bundle, size_t e, const CandidateRun<T>& run, const Block& block,
                  const Scratch<T>& scratch) {
    const Edge& edge = *bundle.edges[e].edge;
    const Candidate& candidate = *run.candidate;
    const size_t k = static_cast<size_t>(&run - bundle.edges[e].candidates.data());
    const CandidateSums<T>& sums = sums_[bundle.source][e].candidates[k];
    const int64_t mixed = this->mixed_lanes();
    for (int64_t group = block.begin; group < block.end; ++group) {
      const Grid<T> g = gradient(edge.target, group);
      if (candidate.is_direct()) {
        Grid<T> to = gradient(bundle.source, group);
        to = {to.data, to.row * edge.stride, to.pixel * edge.stride};
        DA2S_SIMD_CALL(mix<T>, g, this->after_, mixed, sums.last.scale, nullptr, to);
        continue;
      }
      size_t pool = 0;
      while (bundle.pools[pool].kind != candidate.kind) ++pool;
      norm_back(g, run, sums, group, scratch);
      DA2S_SIMD_CALL(add<T>, this->z_grid(scratch.dz), this->after_, mixed,
                     this->z_grid(pool_gradient(pool, block, group, scratch)));
    }
  }

  // Through the last norm, into scratch.dz.
  void norm_back(Grid<const T> g, const CandidateRun<T>& run, const CandidateSums<T>& sums,
                 int64_t group, const Scratch<T>& scratch) {
    const int64_t slot = run.candidate->norm;
    DA2S_SIMD_CALL(norm_gradient<T>, g, run.z + group * this->z_elements(), this->after_.pixels(),
                   this->mixed_lanes(), sums.last.view(slot < 0 ? nullptr : this->mean(slot)),
                   scratch.dz);
  }

  // The last layers of all candidates.
  void layers_back(const Bundle<T>& bundle, const Block& block, const Scratch<T>& scratch) {
    const Size size = this->size_of(bundle.source);
    const int64_t elements = this->z_elements();
    const std::vector<Step> all = this->steps(bundle, block, 1);
    for (size_t i = 0; i < all.size(); ++i) {
      const auto& [e, k, group] = all[i];
      const CandidateRun<T>& run = bundle.edges[e].candidates[k];
      const CandidateSums<T>& sums = sums_[bundle.source][e].candidates[k];
      Ahead next;
      if (i + 1 < all.size()) {
        const CandidateRun<T>& after =
            bundle.edges[all[i + 1].edge].candidates[all[i + 1].candidate];
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
                             relu_gradient(bundle, block, group, scratch), true,
                             weight_sums(block, sums.weights[0]));
    }
  }

  // How often a layer's backward asks for memory per row, about.
  int64_t asks() const { return wanted_.weights ? 4 : 2; }

  // A separable convolution's second layer, and the sums of the norm before it.
  void inner_back(const CandidateRun<T>& run, const CandidateSums<T>& sums, const Block& block,
                  int64_t group, const Scratch<T>& scratch, Ahead* ahead) {
    const int64_t elements = this->z_elements(), pixels = this->after_.pixels();
    T* inner = sums.inner + group * elements;
    const Grid<const T> z = this->z_grid(run.features[0] + group * elements);
    this->fill_inner(run, group, scratch);
    run.layers[1].backward(this->inside(scratch.inner, this->after_), scratch.dz,
                           layer_scratch(scratch, true, ahead), inner, false,
                           weight_sums(block, sums.weights[1]));
    const Grid<T> g = this->z_grid(inner);
    DA2S_SIMD_CALL(mask<T>, this->inside(scratch.inner, this->after_), this->after_,
                   this->mixed_lanes(), g);
    add_sums(sums.first.gradient, block, group, scratch, [&](double* into) {
      DA2S_SIMD_CALL(lane_sums<T>, g, pixels, this->mixed_lanes(), into);
    });
    add_sums(sums.first.product, block, group, scratch, [&](double* into) {
      DA2S_SIMD_CALL(lane_products<T>, g, z, this->after_, this->mixed_lanes(),
                     this->mean(run.candidate->layers[0].norm), into);
    });
  }

  void pools_back(const Bundle<T>& bundle, const Block& block, const Scratch<T>& scratch) {
    const Size size = this->size_of(bundle.source);
    const int64_t stride = plan_.stride(bundle.source);
    for (size_t pool = 0; pool < bundle.pools.size(); ++pool)
      for (int64_t group = block.begin; group < block.end; ++group) {
        const Grid<T> g = this->z_grid(pool_gradient(pool, block, group, scratch));
        const Grid<T> dx = gradient(bundle.source, group);
        if (bundle.pools[pool].kind == Kind::max_pool)
          DA2S_SIMD_CALL(max_pool_gradient<T>, this->state(bundle.source, group), size, 3, stride,
                         1, this->mixed_lanes(), g, this->after_, dx);
        else
          DA2S_SIMD_CALL(average_pool_gradient<T>, size, stride, this->mixed_lanes(), g,
                         this->after_, dx);
      }
  }

  // Adds what was gathered behind ReLU.
  void relu_back(const Bundle<T>& bundle, const Block& block, const Scratch<T>& scratch) {
    const Size size = this->size_of(bundle.source);
    const int64_t mixed = this->mixed_lanes();
    for (int64_t group = block.begin; group < block.end; ++group) {
      const Grid<T> g{relu_gradient(bundle, block, group, scratch), size.width * mixed, mixed};
      DA2S_SIMD_CALL(mask<T>, this->inside(this->input_of(bundle, block, group, scratch), size),
                     size, mixed, g);
      DA2S_SIMD_CALL(add<T>, g, size, mixed, gradient(bundle.source, group));
    }
  }

  void bypass_back(const Bundle<T>& bundle, const Block& block, const Scratch<T>& scratch) {
    const int64_t rest = this->rest_lanes();
    const bool pooled = plan_.stride(bundle.source) > 1;
    for (int64_t group = block.begin; group < block.end; ++group) {
      Grid<T> dx = gradient(bundle.source, group);
      dx.data += this->mixed_lanes();
      Grid<T> sum = dx;
      if (pooled) {
        sum = {scratch.bypass_gradient, this->after_.width * rest, rest};
        std::memset(sum.data, 0, this->after_.pixels() * rest * sizeof(T));
      }
      for (const EdgeRun<T>& edge : bundle.edges) {
        Grid<T> g = gradient(edge.edge->target, group);
        g.data += this->mixed_lanes();
        std::fill_n(scratch.scale, rest, static_cast<T>(in_.g[edge.edge->row]));
        DA2S_SIMD_CALL(mix<T>, g, this->after_, rest, scratch.scale, nullptr, sum);
      }
      if (!pooled) continue;
      Grid<T> x = this->state(bundle.source, group);
      x.data += this->mixed_lanes();
      DA2S_SIMD_CALL(max_pool_gradient<T>, x, this->size_of(bundle.source), 2, 2, 0, rest, sum,
                     this->after_, dx);
    }
  }

  // Separable convolutions from their inner norm down to x.
  void third_stage_back(const Bundle<T>& bundle, const Block& block, const Scratch<T>& scratch) {
    const Size size = this->size_of(bundle.source);
    const int64_t elements = this->z_elements();
    clear_block(bundle, block, scratch);
    const std::vector<Step> all = this->steps(bundle, block, 2);
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
                             relu_gradient(bundle, block, group, scratch), true,
                             weight_sums(block, sums.weights[0]));
    }
    relu_back(bundle, block, scratch);
  }

  void fold_weights(int64_t s) {
    const Bundle<T>& bundle = this->bundles_[s];
    std::vector<std::pair<const PackedLayer<T>*, int64_t>> all;
    for (size_t e = 0; e < bundle.edges.size(); ++e)
      for (size_t k = 0; k < bundle.edges[e].candidates.size(); ++k) {
        const CandidateRun<T>& run = bundle.edges[e].candidates[k];
        for (size_t i = 0; i < run.layers.size(); ++i)
          all.emplace_back(&run.layers[i], sums_[s][e].candidates[k].weights[i]);
      }
    parallel_for(0, static_cast<int64_t>(all.size()), 1, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) fold_layer(*all[i].first, all[i].second);
    });
  }

  void fold_layer(const PackedLayer<T>& layer, int64_t begin) {
    layer.fold(weight_sums_ + begin, weights_per_chunk_, images_.chunks,
               wanted_.weights + wanted_.offsets[layer.layer().weight]);
  }

  // From an input's state to the input itself.
  void preprocess_back(int64_t input) {
    const Outer* outer = wanted_.inputs[input];
    if (plan_.preprocess[input].empty()) {
      if (!outer) return;
      this->for_blocks(true, [&](const Block& block, const Scratch<T>&) {
        for (int64_t group = block.begin; group < block.end; ++group)
          this->export_images(gradient(input, group), group, 0, plan_.channels, *outer);
      });
      return;
    }
    const int64_t slot = plan_.preprocess[input][0].norm;
    sum_state(input, slot);
    const PackedLayer<T>& layer = layers_[slot];
    const Size size = layer.in_size();
    const int64_t channels = layer.layer().in_channels;
    this->for_blocks(true, [&](const Block& block, const Scratch<T>& scratch) {
      clear_weights(block, layer.sums());
      for (int64_t group = block.begin; group < block.end; ++group) {
        DA2S_SIMD_CALL(norm_gradient<T>, gradient(input, group), this->state(input, group).data,
                       this->before_.pixels(), this->state_lanes(), state_sums_.view(zeros_),
                       scratch.dz);
        clear_missing(scratch.dz, this->elements(input), group);
        const Grid<T> x = layer.inside(scratch.input);
        this->import_images(in_.inputs[input], group, true, 0, channels, x);
        T* dx = outer ? scratch.inner_gradient : nullptr;
        layer.backward(x, scratch.dz, layer_scratch(scratch, false, nullptr), dx, false,
                       weight_sums(block, 0));
        if (!dx) continue;
        const Grid<T> found{dx, size.width * layer.in_lanes(), layer.in_lanes()};
        DA2S_SIMD_CALL(mask<T>, x, size, layer.in_lanes(), found);
        this->export_images(found, group, 0, channels, *outer);
      }
    });
    if (wanted_.weights) fold_layer(layer, 0);
  }

  // The sums of a preprocessing's norm. The state is the normalized tensor itself: seen from there
  // the mean is 0 and the deviation 1.
  void sum_state(int64_t input, int64_t slot) {
    const Size size = this->before_;
    this->for_blocks(true, [&](const Block& block, const Scratch<T>& scratch) {
      for (int64_t group = block.begin; group < block.end; ++group) {
        const Grid<T> g = gradient(input, group);
        add_sums(state_sums_.gradient, block, group, scratch, [&](double* into) {
          DA2S_SIMD_CALL(lane_sums<T>, g, size.pixels(), this->state_lanes(), into);
        });
        add_sums(state_sums_.product, block, group, scratch, [&](double* into) {
          DA2S_SIMD_CALL(lane_products<T>, g, this->state(input, group), size, this->state_lanes(),
                         nullptr, into);
        });
      }
    });
    set_coefficients(state_sums_, state_sums_.gradient, -1, 1, size);
    state_sums_.constant = in_.frozen[slot];
    const T* rstd = this->rstd(slot);
    std::copy_n(rstd, this->state_lanes(), state_sums_.scale);
    std::fill_n(zeros_, this->state_lanes(), T{0});
  }

  const Outer& outer_;
  const T* statistics_;
  const CellGradients<T>& wanted_;
  std::vector<std::vector<EdgeSums<T>>> sums_;  // by source state, as the bundles' edges
  std::vector<T*> gradients_;                   // of the states, all groups
  std::vector<ChannelSums> node_sums_;          // sum of a node's gradient
  std::vector<PackedLayer<T>> layers_;          // of the preprocessing, by norm slot
  NormSums<T> state_sums_;
  T* zeros_ = nullptr;
  double* weight_sums_ = nullptr;
  int64_t weights_per_chunk_ = 0;
};

}  // namespace

template <class T>
void cell_backward(const CellArguments<T>& arguments, const Outer& gradient, const T* statistics,
                   const T* saved, const CellGradients<T>& wanted) {
  Backward<T>(arguments, gradient, statistics, wanted).run(saved);
}

template void cell_backward(const CellArguments<float>&, const Outer&, const float*, const float*,
                            const CellGradients<float>&);
template void cell_backward(const CellArguments<double>&, const Outer&, const double*,
                            const double*, const CellGradients<double>&);

}  // namespace da2s_fast

// What a cell computes, as data: the C++ side of da2s_fast/ops/cell/plan.py, which says more.
#pragma once

#include <cstdint>
#include <vector>

#include "kernels.h"

namespace da2s_fast {

// ReLU, then a depthwise and a pointwise convolution, or a dense one; always before a norm.
struct Layer {
  bool separable;
  int64_t kernel, dilation, stride;
  // A dense layer with two weights computes half of the channels each, the second from pixels one
  // row and one column further (FactorizedReduce).
  bool halves;
  int64_t in_channels, out_channels;
  int64_t weight;  // position of the first of its weights
  int64_t norm;    // slot

  int64_t weights() const { return separable || halves ? 2 : 1; }
  int64_t padding() const { return halves ? 0 : dilation * (kernel - 1) / 2; }
  // Cells outside the image that the taps reach, on any side.
  int64_t border() const { return halves ? 1 : padding(); }
  // Of the depthwise or the dense convolution, and of the product over channels alone.
  int64_t taps() const { return halves ? 2 : kernel * kernel; }
  int64_t taps_of_product() const { return separable ? 1 : taps(); }
  Size out_size(Size in) const {
    return {(in.height - 1) / stride + 1, (in.width - 1) / stride + 1};
  }
};

enum class Kind { none, skip, max_pool, average_pool, layers };

// An operation of an edge that takes part.
struct Candidate {
  int64_t row, column;  // in p
  Kind kind;
  std::vector<Layer> layers;
  int64_t norm;  // slot of the last norm, -1 without one

  bool is_pool() const { return kind == Kind::max_pool || kind == Kind::average_pool; }
  bool is_direct() const { return kind == Kind::none || kind == Kind::skip; }
};

struct Edge {
  int64_t row, source, target, stride;
  std::vector<Candidate> candidates;  // without any the edge is left out
};

struct Plan {
  // Reads the numbers that CellPlan.encode wrote. in_channels are those of the input tensors, or
  // empty where no layer is going to run.
  explicit Plan(const std::vector<int64_t>& code, const std::vector<int64_t>& in_channels = {});

  int64_t channels, partial, nodes, outputs, inputs, operations;
  bool reduction, pool_norm;
  std::vector<std::vector<Layer>> preprocess;  // one layer or none for every input
  std::vector<Edge> edges;
  int64_t weight_count, norm_count;

  int64_t mixed() const { return channels / partial; }
  int64_t states() const { return inputs + nodes; }
  // Channels of a norm.
  int64_t norm_channels(int64_t slot) const;
  // Where a norm's statistics begin, in channels; for norm_count the sum over all.
  int64_t norm_offset(int64_t slot) const;
  int64_t preprocess_norms() const;
  int64_t stride(int64_t state) const { return reduction && state < inputs ? 2 : 1; }
  // Edges that leave the state and take part.
  std::vector<const Edge*> bundle(int64_t state) const;
  // How far the layers of a bundle reach outside the image.
  int64_t border() const;
};

}  // namespace da2s_fast

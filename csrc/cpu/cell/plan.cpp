#include "plan.h"

#include <algorithm>
#include <stdexcept>
#include <string>

namespace da2s_fast {
namespace {

// The numbers of operations, as plan.py has them.
enum Code : int64_t {
  kNone,
  kSkip,
  kMaxPool,
  kAveragePool,
  kSeparable3,
  kSeparable5,
  kSeparable7,
  kDilated3,
  kDilated5,
  kDense1,
  kDense3
};

enum Preprocess : int64_t { kIdentity, kConvolution, kReduce };

class Reader {
 public:
  explicit Reader(const std::vector<int64_t>& code) : code_(code) {}
  int64_t next() {
    if (at_ == code_.size()) throw std::invalid_argument("the plan of a cell is too short");
    return code_[at_++];
  }
  void finish() const {
    if (at_ != code_.size()) throw std::invalid_argument("the plan of a cell is too long");
  }

 private:
  const std::vector<int64_t>& code_;
  size_t at_ = 0;
};

// Builds layers and counts their weights and norms.
class Builder {
 public:
  explicit Builder(Plan& plan) : plan_(plan) {}

  Layer layer(Layer made) {
    made.weight = plan_.weight_count;
    made.norm = plan_.norm_count++;
    plan_.weight_count += made.weights();
    return made;
  }

  Layer separable(int64_t kernel, int64_t dilation, int64_t stride) {
    return layer({true, kernel, dilation, stride, false, plan_.mixed(), plan_.mixed(), 0, 0});
  }

  Layer dense(int64_t kernel, int64_t stride, int64_t in_channels, int64_t out_channels) {
    return layer({false, kernel, 1, stride, false, in_channels, out_channels, 0, 0});
  }

  Layer reduce(int64_t in_channels, int64_t out_channels) {
    return layer({false, 1, 1, 2, true, in_channels, out_channels, 0, 0});
  }

  Candidate candidate(const Edge& edge, int64_t column, int64_t code) {
    Candidate made{edge.row, column, Kind::layers, {}, -1};
    const auto twice = [&](int64_t kernel) {
      made.layers = {separable(kernel, 1, edge.stride)};
      made.layers.push_back(separable(kernel, 1, 1));
    };
    switch (code) {
      case kNone:
        made.kind = Kind::none;
        break;
      case kSkip:
        if (edge.stride == 1)
          made.kind = Kind::skip;
        else
          made.layers = {reduce(plan_.mixed(), plan_.mixed())};
        break;
      case kMaxPool:
      case kAveragePool:
        made.kind = code == kMaxPool ? Kind::max_pool : Kind::average_pool;
        if (plan_.pool_norm) made.norm = plan_.norm_count++;
        break;
      case kSeparable3:
      case kSeparable5:
      case kSeparable7:
        twice(3 + 2 * (code - kSeparable3));
        break;
      case kDilated3:
      case kDilated5:
        made.layers = {separable(3 + 2 * (code - kDilated3), 2, edge.stride)};
        break;
      case kDense1:
      case kDense3:
        made.layers = {dense(1 + 2 * (code - kDense1), edge.stride, plan_.mixed(), plan_.mixed())};
        break;
      default:
        throw std::invalid_argument("no operation of a cell has the number " +
                                    std::to_string(code));
    }
    if (!made.layers.empty()) made.norm = made.layers.back().norm;
    return made;
  }

 private:
  Plan& plan_;
};

}  // namespace

Plan::Plan(const std::vector<int64_t>& code, const std::vector<int64_t>& in_channels)
    : weight_count(0), norm_count(0) {
  Reader read(code);
  Builder build(*this);
  channels = read.next();
  partial = read.next();
  nodes = read.next();
  outputs = read.next();
  reduction = read.next() != 0;
  pool_norm = read.next() != 0;
  inputs = read.next();
  if (channels < 1 || partial < 1 || channels % partial || nodes < 1 || outputs < 1 ||
      outputs > nodes || inputs < 1 ||
      (!in_channels.empty() && inputs != static_cast<int64_t>(in_channels.size())))
    throw std::invalid_argument("the plan of a cell has numbers that do not fit");
  for (int64_t i = 0; i < inputs; ++i) {
    const int64_t given = in_channels.empty() ? channels : in_channels[i];
    const int64_t kind = read.next();
    preprocess.emplace_back();
    if (kind == kConvolution)
      preprocess.back() = {build.dense(1, 1, given, channels)};
    else if (kind == kReduce)
      preprocess.back() = {build.reduce(given, channels)};
    else if (kind != kIdentity || given != channels)
      throw std::invalid_argument("the plan of a cell does not fit its inputs' channels");
  }
  operations = read.next();
  std::vector<int64_t> codes;
  for (int64_t i = 0; i < operations; ++i) codes.push_back(read.next());
  for (int64_t target = inputs; target < states(); ++target)
    for (int64_t source = 0; source < target; ++source) {
      Edge edge{static_cast<int64_t>(edges.size()), source, target, stride(source), {}};
      const int64_t active = read.next();
      for (int64_t column = 0; column < operations; ++column) {
        Candidate made = build.candidate(edge, column, codes[column]);
        if (active >> column & 1) edge.candidates.push_back(std::move(made));
      }
      edges.push_back(std::move(edge));
    }
  read.finish();
}

int64_t Plan::preprocess_norms() const {
  return std::count_if(preprocess.begin(), preprocess.end(),
                       [](const auto& layers) { return !layers.empty(); });
}

int64_t Plan::norm_channels(int64_t slot) const {
  return slot < preprocess_norms() ? channels : mixed();
}

int64_t Plan::norm_offset(int64_t slot) const {
  const int64_t before = std::min(slot, preprocess_norms());
  return before * channels + (slot - before) * mixed();
}

std::vector<const Edge*> Plan::bundle(int64_t state) const {
  std::vector<const Edge*> found;
  for (const Edge& edge : edges)
    if (edge.source == state && !edge.candidates.empty()) found.push_back(&edge);
  return found;
}

int64_t Plan::border() const {
  int64_t most = 0;
  for (const Edge& edge : edges)
    for (const Candidate& candidate : edge.candidates)
      for (const Layer& layer : candidate.layers) most = std::max(most, layer.border());
  return most;
}

}  // namespace da2s_fast

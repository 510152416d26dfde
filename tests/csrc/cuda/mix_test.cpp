// The cell's `mix` of csrc/cuda against plain loops, its threads in shuffled orders.
// clang-format off
#include "shim.h"
// clang-format on

#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <string>
#include <vector>

#include "missing.h"
#include "nodes_call.h"

namespace da2s_fast::test {
namespace {

struct Candidate {
  int kind;
  bool norm = false;
  int stride = 1;  // of those that read a state
};

// What a node is made of.
struct Recipe {
  std::vector<Candidate> candidates;
  int shuffled = 1;                // K of partial channels
  std::vector<int> bypasses = {};  // strides
  int shares = 1;                  // programs for each chunk
  bool weighed = false;            // edges have weights
  bool channels_last = false;      // the output
  bool in_output = true;
};

// One node of three in the output. There are two states: one of the node's size, and one that is
// read with stride 2; then there is the node, and behind it something else.
template <int C>
struct Mixed : NodesCall {
  static constexpr int kNodes = 3;

  Mixed(const Recipe& recipe, const PixelChunks& extents)
      : NodesCall(C, extents,
                  {.states = (2 * extents.pixels() + extents.in_pixels() + 1) * C * recipe.shuffled,
                   .z = int64_t(recipe.candidates.size()) * extents.pixels() * C,
                   .weights = 0,
                   .norms = int64_t(recipe.candidates.size()),
                   .moments = 0,
                   .output = kNodes * extents.pixels() * C * recipe.shuffled}),
        recipe(recipe) {
    pitch = C * recipe.shuffled, weighed = recipe.weighed;
    for (const Candidate& own : recipe.candidates) add_candidate(own);
    candidates = mixed.size();
    for (const int stride : recipe.bypasses) {
      Row row = row_of(cell::kBypass);
      row[cell::kEdge] = mixed.size() % 2;
      read_state(row, stride);
      mixed.push_back(row);
    }
    const int64_t rows = mixed.size(), column = recipe.in_output ? pitch : -1;
    for (int64_t share = 0; share < recipe.shares; ++share)
      mixes.push_back({0, candidates, rows, node(), column, share, recipe.shares});
    const int64_t size = int64_t{height} * width, all = kNodes * pitch;
    if (recipe.channels_last)
      strides = {size * all, 1, width * all, all};
    else
      strides = {size * all, size, width, 1};
  }

  // Where the state of stride 2 and the node are.
  int64_t larger() const { return pixels * pitch; }
  int64_t node() const { return (pixels + in_pixels) * pitch; }

  void add_candidate(const Candidate& own) {
    const int64_t place = mixed.size() > 0 ? mixed.back()[cell::kOperation] + 1 : 0;
    Row row = row_of(own.kind);
    row[cell::kEdge] = place % 2, row[cell::kOperation] = place;
    row[cell::kCout] = C, row[cell::kColumn] = 0;
    row[cell::kStatistics] = own.norm ? place * 2 * C : -1;
    if (own.kind == cell::kSkip || own.kind == cell::kNothing)
      read_state(row, own.stride);
    else
      row[cell::kZ] = place * pixels * C;
    if (own.kind == cell::kDense) {  // FactorizedReduce: a row for each half of the channels
      row[cell::kCout] = C / 2;
      mixed.push_back(row);
      row[cell::kColumn] = C / 2;
    }
    mixed.push_back(row);
  }

  void read_state(Row& row, int stride) const {
    row[cell::kSource] = stride == 1 ? 0 : larger(), row[cell::kStride] = stride;
    row[cell::kHeight] = stride == 1 ? height : extents.in_height;
    row[cell::kWidth] = stride == 1 ? width : extents.in_width;
  }

  Mixed& run(unsigned seed) {
    before = written();
    std::vector<Task> tasks;
    for (int64_t share = 0; share < recipe.shares; ++share)
      tasks.push_back({cell::kWorkMix, share});
    NodesCall::run<C>(seed, tasks);
    return *this;
  }

  // A channel of a state's pixel that an output pixel reads, some rows and columns further; NaN
  // outside of the image, and whether it is inside.
  double from_state(const Row& row, int64_t p, int channel, int more, bool& inside) const {
    const int64_t image = p / width / height, stride = row[cell::kStride];
    const int64_t y = p / width % height * stride + more / 2, x = p % width * stride + more % 2;
    inside = y < row[cell::kHeight] && x < row[cell::kWidth];
    if (!inside) return NAN;
    const int64_t at = (image * row[cell::kHeight] + y) * row[cell::kWidth] + x;
    return states[row[cell::kSource] + at * pitch + channel];
  }

  Sum sum_of_candidates(int64_t pixel, int c) const {
    Sum sum;
    for (int64_t r = 0; r < candidates; ++r) {
      const Row& row = mixed[r];
      if (row[cell::kKind] == cell::kDense && c / (C / 2) != row[cell::kColumn] / (C / 2)) continue;
      const int64_t edge = row[cell::kEdge], norm = row[cell::kStatistics];
      double scale = p[edge * kOperations + row[cell::kOperation]] * (weighed ? g[edge] : 1.0);
      bool inside;
      double v = row[cell::kZ] >= 0 ? z[row[cell::kZ] + pixel * C + c]
                                    : from_state(row, pixel, c, 0, inside);
      if (row[cell::kKind] == cell::kNothing) v *= 0;
      if (norm >= 0) {
        scale /= std::sqrt(statistics[norm + C + c] + kEps);
        sum.add(-scale * statistics[norm + c]);
      }
      sum.add(scale * v);
    }
    return sum;
  }

  Sum sum_of_bypasses(int64_t pixel, int channel) const {
    Sum sum;
    for (size_t r = candidates; r < mixed.size(); ++r) {
      const Row& row = mixed[r];
      bool inside;
      double best = from_state(row, pixel, channel, 0, inside);
      for (int more = 1; more < 4 && row[cell::kStride] == 2; ++more) {
        const double v = from_state(row, pixel, channel, more, inside);
        if (inside && !(v <= best)) best = std::isnan(best) ? best : v;
      }
      sum.add(best * (weighed ? g[row[cell::kEdge]] : 1.0));
    }
    return sum;
  }

  void check() const {
    const int shuffled = recipe.shuffled;
    for (int64_t p = 0; p < pixels; ++p)
      for (int column = 0; column < pitch; ++column) {
        const int c = column / shuffled, part = column % shuffled;
        const Sum sum = part == 0 ? sum_of_candidates(p, c) : sum_of_bypasses(p, part * C + c);
        const float found = states[node() + p * pitch + column];
        if (std::isnan(sum.value))
          DA2S_CHECK(std::isnan(found));
        else if (std::isinf(sum.value))
          DA2S_CHECK(found == sum.value);
        else
          DA2S_CHECK_CLOSE(float, found, sum);
      }
    check_output();
    // Nothing else was written.
    const auto bytes = [](int64_t numbers) { return numbers * sizeof(float); };
    const std::string after = written();
    const int64_t behind = bytes(node() + pixels * pitch), outputs = bytes(output.size());
    DA2S_CHECK(after.compare(0, bytes(node()), before, 0, bytes(node())) == 0);
    const int64_t others = after.size() - outputs - behind;
    DA2S_CHECK(after.compare(behind, others, before, behind, others) == 0);
  }

  // The node's channels are there, and no others.
  void check_output() const {
    for (int64_t image = 0; image < extents.images; ++image)
      for (int64_t y = 0; y < height; ++y)
        for (int64_t x = 0; x < width; ++x)
          for (int64_t channel = 0; channel < kNodes * pitch; ++channel) {
            const float* found = output.data() + image * strides[0] + channel * strides[1] +
                                 y * strides[2] + x * strides[3];
            const int64_t pixel = (image * height + y) * width + x;
            const bool own = recipe.in_output && channel / pitch == 1;
            const uint32_t nothing = ~0u;
            const void* expected = &nothing;
            if (own) expected = states.data() + node() + pixel * pitch + channel % pitch;
            DA2S_CHECK(std::memcmp(found, expected, sizeof(float)) == 0);
          }
  }

  Recipe recipe;
  int64_t candidates;
  std::string before;
};

const std::vector<Candidate> kAll{
    {cell::kSeparable, true}, {cell::kMaximum, true}, {cell::kAverage},          {cell::kSkip},
    {cell::kNothing},         {cell::kDense, true},   {cell::kNothing, false, 2}};

// For each of the states' pixels and channels in turn, one of these.
template <class Call>
void make_special(Call& call, int64_t every) {
  const float infinity = std::numeric_limits<float>::infinity();
  const float specials[] = {NAN, infinity, -infinity};
  for (int64_t i = 0; i * every < call.node(); ++i) call.states[i * every] = specials[i % 3];
}

DA2S_TEST(cuda_mixed_candidates) {
  if (!shim::wanted()) return;
  // Shares of 14, 14 and 12 pixels of a chunk; the last chunk ends within the second.
  Mixed<8>({.candidates = kAll, .shares = 3, .weighed = true}, {2, 3, 9, 14, 40, 3, 0})
      .run(1)
      .check();
  // A share that there is nothing left for, and likewise a chunk.
  Mixed<4>({.candidates = kAll, .shares = 4, .channels_last = true}, {2, 1, 10, 7, 9, 2, 0, 1})
      .run(2)
      .check();
  Mixed<32>({.candidates = {{cell::kDense}, {cell::kSeparable}}}, {2, 2, 6, 5, 30, 2, 0})
      .run(3)
      .check();
}

DA2S_TEST(cuda_mixed_partial_channels) {
  if (!shim::wanted()) return;
  Mixed<4>({.candidates = kAll, .shuffled = 2, .bypasses = {1, 2}, .weighed = true},
           {2, 2, 9, 11, 17, 2, 0})
      .run(4)
      .check();
  // More pixels than a program sums at a time.
  Mixed<16>({.candidates = kAll, .shuffled = 4, .bypasses = {2, 1, 2}, .channels_last = true},
            {2, 2, 18, 20, 100, 3, 0})
      .run(5)
      .check();
}

DA2S_TEST(cuda_mixed_numbers_that_are_none) {
  if (!shim::wanted()) return;
  const std::vector<Candidate> candidates{
      {cell::kNothing}, {cell::kNothing, false, 2}, {cell::kSkip}, {cell::kSeparable, true}};
  Mixed<8> mixed({.candidates = candidates, .shuffled = 2, .bypasses = {2, 1}},
                 {2, 1, 9, 11, 17, 2, 0});
  make_special(mixed, 7);
  mixed.run(6).check();
  Mixed<8> nothing({.candidates = {candidates[0]}}, {2, 1, 9, 11, 17, 2, 0});
  make_special(nothing, 5);
  nothing.run(7).check();
}

DA2S_TEST(cuda_nodes_that_are_no_part_of_the_output) {
  if (!shim::wanted()) return;
  Mixed<8>({.candidates = kAll, .in_output = false}, {2, 1, 9, 11, 17, 2, 0}).run(8).check();
}

DA2S_TEST(cuda_every_missing_barrier_of_mixing_is_noticed) {
  if (!shim::wanted()) return;
  every_missing_barrier_is_noticed([](unsigned seed) {
    // A program of each chunk sums what fits at a time more than once.
    return Mixed<16>({.candidates = kAll, .shuffled = 4, .bypasses = {2}},
                     {2, 1, 22, 26, 143, 3, 0})
        .run(seed)
        .written();
  });
}

}  // namespace
}  // namespace da2s_fast::test

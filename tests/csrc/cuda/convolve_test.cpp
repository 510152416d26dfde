// The cell's layers and pools of csrc/cuda against plain loops, its threads in shuffled orders.
// clang-format off
#include "shim.h"
// clang-format on

#include <algorithm>
#include <cmath>
#include <string>
#include <vector>

#include "missing.h"
#include "nodes_call.h"

namespace da2s_fast::test {
namespace {

// What is behind an operation: a norm, one whose statistics are given, or none.
enum class Norm { own, frozen, none };

struct Operation {
  int kind;
  int kernel;
  int dilation;
  int padding;
  int column = 0;
  Norm norm = Norm::own;
};

constexpr int kMore = 4;  // channels of the input that no candidate sees

// A pack of operations. Behind their z there are the positions of maxima and the input of second
// layers; behind their norms two more for each of them, and the one in front of second layers.
template <int C, bool kSecond>
struct Layers : NodesCall {
  // centre: of the input.
  Layers(const std::vector<Operation>& operations, const PixelChunks& extents, double centre = 0)
      : NodesCall(C, extents,
                  {.states = kSecond ? 0 : extents.in_pixels() * (C + kMore),
                   .z = int64_t(operations.size() + 1) * extents.pixels() * C +
                        (kSecond ? extents.in_pixels() * C : 0),
                   .weights = int64_t(operations.size()) * (C + 49) * C,
                   .norms = 3 * int64_t(operations.size()) + 1,
                   .moments = int64_t(operations.size())}),
        operations(operations),
        rows(operations.size()) {
    pitch = kSecond ? C : C + kMore;
    int64_t pools = 0;
    for (int64_t r = 0; r < rows; ++r) {
      pools += is_pool(r);
      layers.push_back(row_for(r));
    }
    packs = {{0, rows, pools}};
    for (int64_t r = 0; r < rows; ++r)
      if (is_pool(r)) link(r);
    Buffer<float>& input = kSecond ? z : states;
    for (int64_t i = kSecond ? source() : 0; i < input.size(); ++i)
      input[i] += static_cast<float>(centre);
    if (kSecond)
      for (int c = 0; c < C; ++c) statistics[inner() + c] += static_cast<float>(centre);
    given.assign(statistics.data(), statistics.data() + statistics.size());
  }

  bool is_pool(int64_t r) const {
    return operations[r].kind == cell::kMaximum || operations[r].kind == cell::kAverage;
  }
  // Where the input of second layers is among z, and the norm in front of them.
  int64_t source() const { return (rows + 1) * pixels * C; }
  int64_t inner() const { return 3 * rows * 2 * C; }

  Row row_for(int64_t r) const {
    const Operation& own = operations[r];
    Row row = row_of(own.kind);
    row[cell::kSource] = kSecond ? source() : 0;
    row[cell::kHeight] = extents.in_height, row[cell::kWidth] = extents.in_width;
    row[cell::kStride] = extents.stride, row[cell::kKernel] = own.kernel;
    row[cell::kDilation] = own.dilation, row[cell::kPadding] = own.padding;
    row[cell::kCout] = own.kind == cell::kDense ? C / 2 : C, row[cell::kColumn] = own.column;
    row[cell::kSpatial] = r * (C + 49) * C, row[cell::kProduct] = row[cell::kSpatial] + 49 * C;
    // The halves of FactorizedReduce share their z and their norm.
    const int64_t place = own.column > 0 ? r - 1 : r;
    row[cell::kZ] = place * pixels * C, row[cell::kMoments] = place * chunks * 2 * C;
    row[cell::kPosition] = rows * pixels * C;
    row[cell::kStatistics] = own.norm == Norm::none ? -1 : place * 2 * C;
    row[cell::kFrozen] = own.norm == Norm::frozen;
    if (kSecond) row[cell::kInner] = inner();
    return row;
  }

  // Two more norms behind a pool, as other edges of its state have them, one of them frozen.
  void link(int64_t r) {
    for (int64_t which = 0; which < 2; ++which) {
      Row row = layers[r];
      row[cell::kStatistics] = (rows + 2 * r + which) * 2 * C;
      row[cell::kFrozen] = which == r % 2, row[cell::kInner] = -1;
      Row& before = which == 0 ? layers[r] : layers.back();
      before[cell::kInner] = layers.size();
      layers.push_back(row);
    }
  }

  Layers& run(unsigned seed) {
    NodesCall::run<C>(seed, {{kSecond ? cell::kWorkSecond : cell::kWorkFirst}});
    return *this;
  }

  // What a layer reads: behind ReLU and, in second layers, behind the norm.
  double input(int64_t image, int y, int x, int c, bool pool) const {
    const int64_t at = (image * extents.in_height + y) * extents.in_width + x;
    double v = kSecond ? z[source() + at * C + c] : states[at * pitch + c];
    if (kSecond) v = (v - given[inner() + c]) / std::sqrt(given[inner() + C + c] + kEps);
    return pool || v > 0 ? v : 0;
  }
  bool inside(int y, int x) const {
    return y >= 0 && y < extents.in_height && x >= 0 && x < extents.in_width;
  }

  Sum layer(int64_t r, int64_t image, int y, int x, int out) const {
    const Operation& own = operations[r];
    const float* spatial = weights.data() + layers[r][cell::kSpatial];
    const float* product = weights.data() + layers[r][cell::kProduct];
    Sum sum;
    for (int c = 0; c < C; ++c)
      for (int tap = 0; tap < own.kernel * own.kernel; ++tap) {
        const int from_y = y * extents.stride - own.padding + tap / own.kernel * own.dilation;
        const int from_x = x * extents.stride - own.padding + tap % own.kernel * own.dilation;
        if (!inside(from_y, from_x)) continue;
        const double w = own.kind == cell::kDense ? 1 : spatial[c * own.kernel * own.kernel + tap];
        sum.add(input(image, from_y, from_x, c, false) * w * product[out * C + c]);
      }
    return sum;
  }

  Sum pooled(int64_t r, int64_t image, int y, int x, int c, int& winner) const {
    const bool averages = operations[r].kind == cell::kAverage;
    double best = 0, total = 0;
    int count = 0;
    for (int tap = 0; tap < 9; ++tap) {
      const int from_y = y * extents.stride - 1 + tap / 3,
                from_x = x * extents.stride - 1 + tap % 3;
      if (!inside(from_y, from_x)) continue;
      const double v = input(image, from_y, from_x, c, true);
      if (count++ == 0 || v > best) best = v, winner = tap;
      total += v;
    }
    Sum sum;
    sum.add(averages ? total / count : best);
    return sum;
  }

  void check() const {
    const int64_t size = int64_t{height} * width;
    std::vector<float> expected = given;
    for (int64_t r = 0; r < rows; ++r) {
      const Operation& own = operations[r];
      const Row& row = layers[r];
      for (int out = 0; out < row[cell::kCout]; ++out) {
        const int c = out + own.column;
        for (int64_t p = 0; p < pixels; ++p) {
          const int y = static_cast<int>(p % size / width), x = static_cast<int>(p % width);
          int winner = -1;
          const Sum sum =
              is_pool(r) ? pooled(r, p / size, y, x, c, winner) : layer(r, p / size, y, x, out);
          DA2S_CHECK_CLOSE(float, z[row[cell::kZ] + p * C + c], sum);
          if (own.kind == cell::kMaximum) DA2S_CHECK(z[row[cell::kPosition] + p * C + c] == winner);
        }
        if (known) continue;
        for (int chunk = 0; chunk < chunks; ++chunk) check_moments(row, c, chunk);
        check_statistics(row, c, expected);
      }
    }
    // Of norms with given statistics, and of those that are nobody's, everything is as it was.
    for (int64_t i = 0; i < statistics.size(); ++i) DA2S_CHECK(statistics[i] == expected[i]);
  }

  // Mean and sum of squared differences of a channel's z from one pixel to another.
  void sums_of(const Row& row, int c, int64_t first, int64_t end, Sum& mean, Sum& squares) const {
    const float* own = z.data() + row[cell::kZ] + c;
    for (int64_t p = first; p < end; ++p) mean.add(own[p * C] / double(end - first));
    for (int64_t p = first; p < end; ++p) {
      const double off = own[p * C] - mean.value;
      squares.add(off * off);
    }
  }

  void check_moments(const Row& row, int c, int chunk) const {
    const int64_t first = std::min(pixels, int64_t{chunk} * extents.chunk_pixels);
    const int64_t end = std::min(pixels, first + extents.chunk_pixels);
    const double* found = moments.data() + row[cell::kMoments] + chunk * 2 * C + c;
    Sum mean, squares;
    sums_of(row, c, first, end, mean, squares);
    DA2S_CHECK_CLOSE(float, found[0], mean);
    DA2S_CHECK_CLOSE(float, found[C], squares);
  }

  // The norms behind a row are complete; what is found there is expected.
  void check_statistics(Row row, int c, std::vector<float>& expected) const {
    Sum mean, squares, variance;
    sums_of(row, c, 0, pixels, mean, squares);
    variance.add(squares.value / pixels);
    const bool pool = row[cell::kKind] == cell::kMaximum || row[cell::kKind] == cell::kAverage;
    while (true) {
      const int64_t at = row[cell::kStatistics] + c;
      if (row[cell::kStatistics] >= 0 && row[cell::kFrozen] == 0) {
        DA2S_CHECK_CLOSE(float, statistics[at], mean);
        DA2S_CHECK_CLOSE(float, statistics[at + C], variance);
        expected[at] = statistics[at], expected[at + C] = statistics[at + C];
      }
      if (!pool || row[cell::kInner] < 0) return;
      row = layers[row[cell::kInner]];
    }
  }

  std::vector<Operation> operations;
  int64_t rows;
  std::vector<float> given;  // statistics
};

const std::vector<Operation> kPools{{cell::kMaximum, 3, 1, 1}, {cell::kAverage, 3, 1, 1}};
const std::vector<Operation> kLayers{{cell::kSeparable, 3, 1, 1}, {cell::kSeparable, 5, 2, 4}};

std::vector<Operation> with_pools() {
  std::vector<Operation> all = kPools;
  all.insert(all.end(), kLayers.begin(), kLayers.end());
  return all;
}

DA2S_TEST(cuda_layers_and_pools_of_several_images) {
  if (shim::wanted()) Layers<8, false>(with_pools(), {1, 3, 5, 7, 40, 3, 2}).run(1).check();
}

DA2S_TEST(cuda_reductions) {
  if (!shim::wanted()) return;
  std::vector<Operation> all = with_pools();
  all.push_back({cell::kDense, 1, 1, 0, 0});
  all.push_back({cell::kDense, 1, 1, -1, 8});
  Layers<16, false>(all, {2, 1, 11, 13, 25, 2, 0}).run(2).check();
}

DA2S_TEST(cuda_second_layers) {
  if (!shim::wanted()) return;
  Layers<4, true>({{cell::kSeparable, 5, 1, 2}}, {1, 2, 9, 6, 54, 4, 1}).run(3).check();
}

// Less than two numbers per thread.
DA2S_TEST(cuda_smallest_tiles) {
  if (shim::wanted()) Layers<64, false>(kLayers, {2, 1, 3, 7, 8, 0, 0}).run(9).check();
}

DA2S_TEST(cuda_largest_windows) {
  if (!shim::wanted()) return;
  Layers<32, false>({{cell::kSeparable, 7, 1, 3}}, {1, 1, 3, 9, 27, 2, 0}).run(4).check();
}

DA2S_TEST(cuda_statistics_far_from_zero) {
  if (!shim::wanted()) return;
  // A chunk that nothing is left for; of several chunks, one with part of the pixels.
  Layers<4, false>(with_pools(), {1, 3, 5, 7, 32, 3, 0, 1}, 1000).run(5).check();
  Layers<4, true>({kLayers[0]}, {1, 3, 5, 7, 32, 3, 0, 1}, 1000).run(6).check();
}

DA2S_TEST(cuda_norms_that_are_given_or_not_there) {
  if (!shim::wanted()) return;
  std::vector<Operation> all = with_pools();
  for (size_t i = 0; i < all.size(); ++i) all[i].norm = i % 2 == 0 ? Norm::none : Norm::frozen;
  all.push_back({cell::kDense, 1, 1, 0, 0, Norm::frozen});
  all.push_back({cell::kDense, 1, 1, -1, 4, Norm::frozen});
  Layers<8, false>(all, {2, 1, 10, 13, 25, 2, 0}).run(7).check();
  Layers<8, true>({{cell::kSeparable, 3, 2, 2, 0, Norm::frozen}}, {1, 1, 5, 7, 16, 3, 0})
      .run(8)
      .check();
}

DA2S_TEST(cuda_layers_where_all_statistics_are_known) {
  if (!shim::wanted()) return;
  Layers<8, false> first(with_pools(), {1, 1, 5, 7, 20, 3, 0});
  Layers<8, true> second({kLayers[0]}, {1, 1, 5, 7, 20, 3, 0});
  first.known = second.known = true;
  first.run(9).check();
  second.run(10).check();
}

DA2S_TEST(cuda_results_do_not_depend_on_the_order_of_threads) {
  if (!shim::wanted()) return;
  const auto written = [](unsigned seed) {
    return Layers<8, false>(with_pools(), {1, 2, 5, 7, 64, 3, 1}).run(seed).written();
  };
  DA2S_CHECK(written(5) == written(6));
}

DA2S_TEST(cuda_every_missing_barrier_is_noticed) {
  if (!shim::wanted()) return;
  every_missing_barrier_is_noticed([](unsigned seed) {
    // Two tiles; packs that begin with pools or with layers, and a second layer; of that also two
    // chunks. Threads of several warps have the moments of four chunks, of two rows.
    return Layers<16, false>(with_pools(), {1, 1, 16, 32, 512, 3, 0}).run(seed).written() +
           Layers<16, false>(kLayers, {1, 1, 16, 32, 512, 3, 0}).run(seed).written() +
           Layers<16, true>({kLayers[0]}, {1, 1, 16, 32, 512, 3, 0}).run(seed).written() +
           Layers<16, true>({kLayers[0]}, {1, 1, 16, 32, 256, 3, 0}).run(seed).written() +
           Layers<16, false>(kLayers, {1, 1, 8, 32, 64, 3, 0}).run(seed).written();
  });
}

}  // namespace

// A launch with too little shared memory, for plant.cpp.
void cuda_overrun() {
  Layers<8, false> layers(kLayers, {1, 1, 5, 7, 40, 3, 0});
  layers.fewer_bytes = 4;
  layers.run(1);
}

}  // namespace da2s_fast::test

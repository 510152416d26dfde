// The cell's `candidate_sums` and `input_sums` of csrc/cuda against plain loops, their threads in
// shuffled orders.
// clang-format off
#include "shim.h"
// clang-format on

#include <cmath>
#include <limits>
#include <string>
#include <vector>

#include "missing.h"
#include "reach_call.h"

namespace da2s_fast::test {
namespace {

// Every kind of candidate that reads one state, a task each.
template <int C>
struct Candidates : ReachCall {
  static constexpr int kRows = 9;

  // parts: K of partial channels.
  explicit Candidates(const Extents& extents, int parts = 1)
      : ReachCall(C, extents,
                  {.states = extents.in_pixels() * C * parts,
                   .z = kRows * extents.pixels() * C,
                   .gradients = extents.pixels() * C * parts,
                   .weights = 0,
                   .norms = kRows,
                   .sums = kRows * 2 * extents.chunks() * C}) {
    pitch = C * parts;
    fill_gradients(0, gradients.size());
    add_row(cell::kSeparable, true);
    add_row(cell::kDense, true);
    add_row(cell::kMaximum, true);
    add_row(cell::kAverage, false);
    // FactorizedReduce: a row for each half of the channels.
    add_row(cell::kDense, true)[cell::kCout] = C / 2;
    Row& other = add_row(cell::kDense, true);
    other[cell::kColumn] = C / 2, other[cell::kCout] = C - C / 2;
    add_row(cell::kSkip, false);
    add_row(cell::kNothing, false);
    if (parts > 1) add_row(cell::kBypass, false);
  }

  Row& add_row(int64_t kind, bool has_norm) {
    const int64_t place = candidates.size();
    Row row = row_of(kind);
    row[cell::kCout] = C, row[cell::kColumn] = 0;
    row[cell::kStatistics] = has_norm ? place * 2 * C : -1;
    row[cell::kGradient] = 0, row[cell::kGradientPitch] = pitch;
    row[cell::kSums] = place * 2 * chunks * C;
    if (kind == cell::kSkip || kind == cell::kNothing || kind == cell::kBypass) {
      row[cell::kSource] = 0, row[cell::kStride] = extents.stride;
      row[cell::kHeight] = extents.in_height, row[cell::kWidth] = extents.in_width;
    } else {
      row[cell::kZ] = place * pixels * C;
    }
    candidates.push_back(row);
    return candidates.back();
  }

  // In some channels something that is no number: where a window begins, and where no window of
  // one pixel looks, in the first image and in the last.
  Candidates& with_strange_numbers() {
    const float nan = std::numeric_limits<float>::quiet_NaN();
    const float infinity = std::numeric_limits<float>::infinity();
    for (const int64_t image : {int64_t{0}, int64_t{extents.images - 1}})
      for (int c = 0; c < pitch; ++c) {
        const int64_t corner = image * extents.in_height * extents.in_width;
        float& first = states[corner * pitch + c];
        float& last = states[(corner + extents.in_width + 1) * pitch + c];
        if (c % 7 == 1) first = nan;
        if (c % 7 == 2) last = nan;
        if (c % 7 == 3) first = infinity;
        if (c % 7 == 4) last = infinity;
        if (c % 7 == 5) first = -infinity;
      }
    return *this;
  }

  Candidates& run(unsigned seed) {
    std::vector<Task> tasks;
    for (size_t row = 0; row < candidates.size(); ++row)
      tasks.push_back({cell::kWorkSums, static_cast<int64_t>(row)});
    ReachCall::run<C, 5>(seed, tasks);
    return *this;
  }

  // Channel c of the state's pixel that is a tap of an output; whether there is one.
  bool tap(int64_t pixel, int down, int right, int c, double& value) const {
    const int64_t y = pixel / width % height * extents.stride + down;
    const int64_t x = pixel % width * extents.stride + right;
    if (y >= extents.in_height || x >= extents.in_width) return false;
    const int64_t image = pixel / width / height;
    value = states[((image * extents.in_height + y) * extents.in_width + x) * pitch + c];
    return true;
  }

  // A candidate's value before its norm; what goes past the candidates.
  double value(const Row& row, int64_t pixel, int c) const {
    const int64_t kind = row[cell::kKind];
    if (kind != cell::kSkip && kind != cell::kNothing && kind != cell::kBypass)
      return z[row[cell::kZ] + pixel * C + c];
    double best = 0, v = 0;
    tap(pixel, 0, 0, c, best);
    if (kind == cell::kNothing) return 0 * best;
    for (int i = 1; i < 4 && kind == cell::kBypass && extents.stride == 2; ++i)
      if (tap(pixel, i / 2, i % 2, c, v) && !std::isnan(best))
        best = std::isnan(v) ? v : std::max(best, v);
    return best;
  }

  // What a chunk writes of a channel.
  void check_sums(const Row& row, int chunk, int c) const {
    const int64_t first = int64_t{chunk} * extents.chunk_images * height * width;
    const int64_t end = first + int64_t{extents.chunk_images} * height * width;
    const bool past = row[cell::kKind] == cell::kBypass;
    const int64_t norm = row[cell::kStatistics];
    Sum total, products;
    for (int64_t pixel = first; pixel < std::min(end, pixels); ++pixel)
      for (int channel = past ? C + c : c; channel < (past ? pitch : C); channel += C) {
        const double g = gradients[pixel * pitch + channel];
        if (!past) total.add(g);
        products.add(g * (value(row, pixel, channel) - (norm >= 0 ? statistics[norm + c] : 0)));
      }
    const double* found = sums.data() + row[cell::kSums] + chunk * 2 * C + c;
    DA2S_CHECK_CLOSE(float, found[0], total);
    if (std::isfinite(products.value))
      DA2S_CHECK_CLOSE(float, found[C], products);
    else
      DA2S_CHECK(found[C] == products.value ||
                 (std::isnan(found[C]) && std::isnan(products.value)));
  }

  // Everything that is written, and that all else is as it was.
  void check() const {
    for (const Row& row : candidates)
      for (int chunk = 0; chunk < chunks; ++chunk)
        for (int c = 0; c < C; ++c) {
          const int64_t column = c - row[cell::kColumn];
          const double* found = sums.data() + row[cell::kSums] + chunk * 2 * C + c;
          if (column >= 0 && column < row[cell::kCout]) {
            check_sums(row, chunk, c);
          } else {
            const uint64_t untouched = ~uint64_t{0};
            DA2S_CHECK(std::memcmp(found, &untouched, sizeof untouched) == 0);
            DA2S_CHECK(std::memcmp(found + C, &untouched, sizeof untouched) == 0);
          }
        }
  }
};

// Two inputs, a task each; a part of the second one's gradient was collected beside it.
template <int C>
struct Inputs : ReachCall {
  explicit Inputs(const Extents& extents, int parts = 1)
      : ReachCall(C, extents,
                  {.states = 2 * extents.in_pixels() * C * parts,
                   .z = 0,
                   .gradients = 3 * extents.in_pixels() * C * parts,
                   .weights = 0,
                   .norms = 0,
                   .sums = 2 * 2 * extents.chunks() * C * parts}) {
    pitch = C * parts;
    fill_gradients(0, gradients.size());
    for (int64_t place = 0; place < 2; ++place) {
      Row row = row_of(-1);
      row[cell::kHeight] = extents.in_height, row[cell::kWidth] = extents.in_width;
      row[cell::kSource] = row[cell::kGradient] = place * in_pixels * pitch;
      row[cell::kSums] = place * 2 * chunks * pitch;
      if (place == 1) row[cell::kInnerGradient] = 2 * in_pixels * pitch;
      candidates.push_back(row);
    }
    for (int64_t i = 0; i < gradients.size(); ++i) expected.push_back(gradients[i]);
    const int64_t numbers = in_pixels * pitch;
    for (int64_t i = 0; i < numbers; ++i) expected[numbers + i] += expected[2 * numbers + i];
  }

  Inputs& run(unsigned seed) {
    ReachCall::run<C, 5>(seed, {{cell::kWorkInput, 0}, {cell::kWorkInput, 1}});
    return *this;
  }

  void check() const {
    for (int64_t i = 0; i < gradients.size(); ++i) DA2S_CHECK(gradients[i] == expected[i]);
    const int64_t own = int64_t{extents.chunk_images} * extents.in_height * extents.in_width;
    for (const Row& row : candidates)
      for (int chunk = 0; chunk < chunks; ++chunk)
        for (int c = 0; c < pitch; ++c) {
          Sum total, products;
          for (int64_t p = chunk * own; p < std::min((chunk + 1) * own, in_pixels); ++p) {
            const double g = gradients[row[cell::kGradient] + p * pitch + c];
            total.add(g);
            products.add(g * states[row[cell::kSource] + p * pitch + c]);
          }
          const double* found = sums.data() + row[cell::kSums] + chunk * 2 * pitch + c;
          DA2S_CHECK_CLOSE(float, found[0], total);
          DA2S_CHECK_CLOSE(float, found[pitch], products);
        }
  }

  std::vector<float> expected;  // gradients, behind the launch
};

DA2S_TEST(cuda_sums_of_candidates) {
  if (!shim::wanted()) return;
  // Tiles of two images of which the chunk has one; several tiles of an image, cut off below and
  // at the right; chunks without images.
  Candidates<8>({1, 5, 5, 7, 3, 3, 1}).run(1).check();
  Candidates<16>({1, 1, 9, 20, 1, 2, 0}, 2).run(2).check();
  Candidates<4>({1, 3, 6, 3, 2, 3, 1, 2}, 4).run(3).check();
  Candidates<8>({2, 2, 9, 7, 1, 2, 0}, 2).run(4).check();
  Candidates<4>({2, 3, 6, 8, 2, 2, 1, 1}, 4).run(5).check();
  Candidates<64>({2, 1, 5, 17, 1, 0, 0}, 2).run(6).check();
  Candidates<32>({2, 1, 1, 1, 1, 0, 0}, 2).run(7).check();
}

DA2S_TEST(cuda_sums_of_what_is_no_number) {
  if (!shim::wanted()) return;
  Candidates<8>({1, 4, 5, 7, 1, 3, 0}, 2).with_strange_numbers().run(1).check();
  Candidates<4>({2, 4, 7, 9, 2, 1, 0}, 4).with_strange_numbers().run(2).check();
}

DA2S_TEST(cuda_sums_of_inputs) {
  if (!shim::wanted()) return;
  // Several tiles of a chunk; chunks of several images, of none, and one that is cut off.
  Inputs<32>({2, 2, 17, 9, 1, 2, 0}, 2).run(1).check();
  Inputs<8>({1, 5, 5, 7, 3, 3, 1, 2}).run(2).check();
  Inputs<4>({1, 3, 6, 3, 2, 3, 1}, 3).run(3).check();
}

DA2S_TEST(cuda_every_missing_barrier_of_sums_is_noticed) {
  if (!shim::wanted()) return;
  every_missing_barrier_is_noticed(
      [](unsigned seed) { return Inputs<64>({1, 1, 16, 20, 1, 0, 0}, 2).run(seed).written(); });
  every_missing_barrier_is_noticed(
      [](unsigned seed) { return Candidates<64>({1, 1, 16, 20, 1, 0, 0}, 2).run(seed).written(); });
}

}  // namespace
}  // namespace da2s_fast::test

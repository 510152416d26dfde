// What `reach_states` of csrc/cuda does with rows that have no layers, against plain loops, its
// threads in shuffled orders.
// clang-format off
#include "shim.h"
// clang-format on

#include <string>
#include <vector>

#include "missing.h"
#include "reach_call.h"

namespace da2s_fast::test {
namespace {

// Every kind of row that reads one state, one after the other.
template <int C>
struct Collect : ReachCall {
  // parts: K of partial channels. shuffled: the state's gradient has the order of channels before
  // the shuffle. weighed: edges have weights.
  explicit Collect(const Extents& extents, int parts = 1, bool shuffled = false,
                   bool weighed = true)
      : ReachCall(C, extents,
                  {.states = 0,
                   .z = 3 * extents.pixels() * C,
                   .gradients = (extents.pixels() + extents.in_pixels()) * C * parts,
                   .weights = 0,
                   .norms = 1,
                   .sums = 2 * extents.chunks() * C}),
        shuffled(shuffled ? parts : 1) {
    pitch = C * parts, this->weighed = weighed;
    fill_gradients(0, gradients.size());
    before.assign(gradients.data() + state(), gradients.data() + gradients.size());
    fill_sums(0, sums.size());
    for (int64_t i = 0; i < pixels * C; ++i)  // which tap won
      z[pixels * C + i] = static_cast<float>((i * 7 + i / 5) % 9);
    add_row(cell::kMaximum, 0, 0);
    add_row(cell::kAverage, 2 * pixels * C, -1);
    add_row(cell::kSkip, 0, -1);
    add_row(cell::kNothing, 0, -1);
    if (parts > 1 && extents.stride == 1) add_row(cell::kBypass, 0, -1);
    const int64_t length = layers.size();
    groups = {{0, length, -1, state(), this->shuffled}};
    need_pools();
  }

  void add_row(int64_t kind, int64_t outputs, int64_t norm) {
    Row row = row_of(kind);
    row[cell::kStride] = extents.stride;
    row[cell::kHeight] = extents.in_height, row[cell::kWidth] = extents.in_width;
    row[cell::kZ] = outputs, row[cell::kPosition] = pixels * C, row[cell::kStatistics] = norm;
    row[cell::kEdge] = 1, row[cell::kOperation] = layers.size(), row[cell::kSums] = 0;
    row[cell::kGradient] = 0, row[cell::kGradientPitch] = pitch;
    layers.push_back(row);
  }

  // Where the state's gradient is.
  int64_t state() const { return pixels * pitch; }

  Collect& run(unsigned seed) {
    ReachCall::run<C, 5>(seed, {{cell::kWorkStates}});
    return *this;
  }

  void check() const {
    Buffer<double> more(in_pixels * pitch, 0.0);
    for (int64_t n = 0, out = 0; n < extents.images; ++n)
      for (int y = 0; y < height; ++y)
        for (int x = 0; x < width; ++x, ++out) window(more, n, y, x, out);
    for (int64_t pixel = 0; pixel < in_pixels; ++pixel)
      for (int c = 0; c < pitch; ++c) {
        const int64_t at = pixel * pitch + c % shuffled * (pitch / shuffled) + c / shuffled;
        const double expected = before[at] + more[pixel * pitch + c];
        check_about(gradients[state() + at], expected, 19 + std::fabs(expected));
      }
  }

  // Adds what an output hands the state's pixels.
  void window(Buffer<double>& more, int64_t n, int y, int x, int64_t out) const {
    const auto at = [&](int row, int column) {
      return ((n * extents.in_height + row) * extents.in_width + column) * pitch;
    };
    const auto is_inside = [&](int tap, int& row, int& column) {
      row = y * extents.stride + tap / 3 - 1, column = x * extents.stride + tap % 3 - 1;
      return row >= 0 && row < extents.in_height && column >= 0 && column < extents.in_width;
    };
    int row, column, inside = 0;
    for (int tap = 0; tap < 9; ++tap) inside += is_inside(tap, row, column);
    for (int c = 0; c < C; ++c) {
      for (int tap = 0; tap < 9; ++tap) {
        if (!is_inside(tap, row, column)) continue;
        double& to = more[at(row, column) + c];
        if (z[(pixels + out) * C + c] == tap) to += dz(layers[0], out, c);
        to += dz(layers[1], out, c) / inside;
      }
      more[at(y * extents.stride, x * extents.stride) + c] += dz(layers[2], out, c);
    }
    for (int c = C; c < pitch && extents.stride == 1; ++c)
      more[at(y, x) + c] += (weighed ? g[1] : 1) * gradients[out * pitch + c];
  }

  int shuffled;
  std::vector<float> before;
};

DA2S_TEST(cuda_gradients_without_layers) {
  if (!shim::wanted()) return;
  Collect<8>({1, 3, 5, 7, 2, 3, 1}).run(1).check();
  Collect<16>({1, 1, 9, 20, 1, 2, 0}, 2, true).run(2).check();
  Collect<4>({1, 2, 6, 3, 1, 3, 0, 1}, 4, false, false).run(3).check();
  Collect<8>({2, 2, 9, 7, 1, 2, 0}).run(4).check();
  Collect<4>({2, 3, 6, 8, 2, 2, 1}, 2, true).run(5).check();
  Collect<64>({2, 1, 5, 17, 1, 0, 0}).run(6).check();
}

DA2S_TEST(cuda_every_missing_barrier_without_layers_is_noticed) {
  if (!shim::wanted()) return;
  // These rows end with a barrier: they do not need the one behind the last row.
  every_missing_barrier_is_noticed(
      [](unsigned seed) {
        return Collect<16>({1, 1, 16, 20, 1, 2, 0}).run(seed).written() +
               Collect<16>({2, 1, 16, 20, 1, 2, 0}).run(seed).written();
      },
      {"/task.cuh"});
}

}  // namespace
}  // namespace da2s_fast::test

// What `reach_states` of csrc/cuda does with FactorizedReduce against plain loops, its threads in
// shuffled orders.
// clang-format off
#include "shim.h"
// clang-format on

#include <limits>
#include <string>
#include <vector>

#include "missing.h"
#include "reach_call.h"

namespace da2s_fast::test {
namespace {

// A skip at stride 2, and FactorizedReduce, of one state.
template <int C>
struct Halves : ReachCall {
  // parts: K of partial channels. wanted: weights want gradients.
  explicit Halves(const Extents& extents, int parts = 1, bool wanted = true)
      : ReachCall(C, extents,
                  {.states = extents.in_pixels() * C * parts,
                   .z = extents.pixels() * C,
                   .gradients = (extents.pixels() + extents.in_pixels()) * C * parts,
                   .weights = C * C,
                   .norms = 1,
                   .sums = 2 * extents.chunks() * C,
                   .wanted = wanted}) {
    pitch = C * parts, weighed = true;
    fill_gradients(0, gradients.size());
    before.assign(gradients.data() + state(), gradients.data() + gradients.size());
    fill_sums(0, sums.size());
    Row row = row_of(cell::kSkip);
    row[cell::kSource] = 0;
    row[cell::kHeight] = extents.in_height, row[cell::kWidth] = extents.in_width;
    row[cell::kStride] = 2, row[cell::kKernel] = 1;
    row[cell::kZ] = 0, row[cell::kSums] = 0, row[cell::kEdge] = 1, row[cell::kOperation] = 1;
    row[cell::kGradient] = 0, row[cell::kGradientPitch] = pitch;
    layers.push_back(row);
    row[cell::kKind] = cell::kDense, row[cell::kStatistics] = 0;
    for (int half = 0; half < 2; ++half) {
      row[cell::kPadding] = -half;
      row[cell::kCout] = C / 2, row[cell::kColumn] = half * C / 2;
      row[cell::kProduct] = half * C / 2 * C;
      layers.push_back(row);
    }
    groups = {{0, 3, -1, state(), 1}};
    need_halves();
  }

  Halves& with_given_statistics() {
    for (int half = 0; half < 2; ++half) layers[1 + half][cell::kFrozen] = 1;
    return *this;
  }

  // Where the state's gradient is.
  int64_t state() const { return pixels * pitch; }

  Halves& run(unsigned seed) {
    ReachCall::run<C, 5>(seed, {{cell::kWorkStates}});
    return *this;
  }

  // The state's pixel that an output reads; -1 outside of the image.
  int64_t read_by(int64_t pixel, int half) const {
    const int64_t y = pixel / width % height * 2 + half, x = pixel % width * 2 + half;
    if (y >= extents.in_height || x >= extents.in_width) return -1;
    return (pixel / width / height * extents.in_height + y) * extents.in_width + x;
  }

  void check() const {
    Buffer<double> back(in_pixels * C, 0.0), products(C * C, 0.0);
    for (int64_t pixel = 0; pixel < pixels; ++pixel)
      for (int o = 0; o < C; ++o) {
        const int64_t at = read_by(pixel, o < C / 2 ? 0 : 1);
        const double own = dz(layers[1], pixel, o);
        back[read_by(pixel, 0) * C + o] += dz(layers[0], pixel, o);
        for (int c = 0; c < C && at >= 0; ++c) {
          const double x = std::max(0.f, states[at * pitch + c]);
          if (x > 0) back[at * C + c] += own * weights[o * C + c];
          products[o * C + c] += own * x;
        }
      }
    for (int64_t i = 0; i < C * C && weight_gradients.size() > 0; ++i)
      check_about(total(weight_gradients.data(), i, C * C), products[i], pixels);
    for (int64_t pixel = 0; pixel < in_pixels; ++pixel)
      for (int c = 0; c < pitch; ++c) {
        const int64_t at = pixel * pitch + c;
        const double more = c < C ? back[pixel * C + c] : 0;
        check_about(gradients[state() + at], before[at] + more, 2 * C);
      }
  }

  std::vector<float> before;
};

DA2S_TEST(cuda_gradients_through_halves) {
  if (!shim::wanted()) return;
  Halves<8>({2, 3, 5, 7, 2, 3, 1}).run(1).check();
  Halves<16>({2, 1, 18, 39, 1, 2, 0}, 2).run(2).check();
  Halves<8>({2, 2, 11, 5, 1, 3, 0, 1}, 4, false).run(3).check();
  Halves<16>({2, 3, 6, 8, 2, 2, 1}, 2).with_given_statistics().run(4).check();
  Halves<64>({2, 2, 9, 13, 1, 2, 0}).run(5).check();
  Halves<32>({2, 1, 1, 1, 1, 0, 0}).run(6).check();
}

// One output's gradient is infinite: so is what it hands on, and that of its channel's weights.
DA2S_TEST(cuda_infinities_stay_in_their_half) {
  if (!shim::wanted()) return;
  constexpr int kChannels = 8;
  for (int half = 0; half < 2; ++half) {
    Halves<kChannels> call({2, 1, 6, 8, 1, 2, 0});
    const int64_t output = 5, channel = half * kChannels / 2 + 1;
    call.gradients[output * kChannels + channel] = std::numeric_limits<float>::infinity();
    call.groups[0][cell::kGroupFirst] = 1, call.groups[0][cell::kGroupLength] = 2;
    call.run(half);
    const int64_t reached = call.read_by(output, half);
    for (int64_t i = 0; i < call.in_pixels * kChannels; ++i) {
      const bool reaches = i / kChannels == reached && call.states[i] > 0;
      DA2S_CHECK(std::isfinite(call.gradients[call.state() + i]) == !reaches);
    }
    for (int64_t i = 0; i < kChannels * kChannels; ++i)
      DA2S_CHECK(std::isfinite(call.weight_gradients[i]) == (i / kChannels != channel));
  }
}

DA2S_TEST(cuda_every_missing_barrier_of_halves_is_noticed) {
  if (!shim::wanted()) return;
  // Behind the last one of a tile, or of the weights, nothing is done before the task is.
  every_missing_barrier_is_noticed(
      [](unsigned seed) {
        return Halves<16>({2, 1, 32, 20, 1, 2, 0}).run(seed).written() +
               Halves<16>({2, 1, 32, 20, 1, 2, 0}, 1, false).run(seed).written();
      },
      {"/task.cuh", "/pull.cuh", "/collect.cuh"});
}

}  // namespace
}  // namespace da2s_fast::test

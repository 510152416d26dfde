// The cell's `reach_inner` of csrc/cuda against plain loops, its threads in shuffled orders.
// clang-format off
#include "shim.h"
// clang-format on

#include <string>

#include "missing.h"
#include "reach_call.h"

namespace da2s_fast::test {
namespace {

// A second layer, and its part of all buffers.
template <int C>
struct SecondLayer : ReachCall {
  SecondLayer(int kernel, const Extents& extents, bool wanted = true, bool kept = true)
      : ReachCall(C, extents,
                  {.states = 0,
                   .z = 2 * extents.pixels() * C,
                   .gradients = (kept ? 2 : 3) * extents.pixels() * C,
                   .weights = (C + kernel * kernel) * C,
                   .norms = 2,
                   .sums = 4 * extents.chunks() * C,
                   .wanted = wanted,
                   .kept = kept}),
        kernel(kernel),
        row(row_of(cell::kSeparable)) {
    fill_gradients(0, pixels * C);
    fill_sums(0, 2 * chunks * C);
    row[cell::kStride] = 1, row[cell::kKernel] = kernel, row[cell::kPadding] = kernel / 2;
    row[cell::kSource] = pixels * C, row[cell::kZ] = 0;
    row[cell::kSpatial] = C * C, row[cell::kProduct] = 0;
    row[cell::kStatistics] = 0, row[cell::kInner] = 2 * C;
    row[cell::kEdge] = 1, row[cell::kOperation] = 1;
    row[cell::kGradient] = 0, row[cell::kGradientPitch] = C;
    row[cell::kInnerGradient] = pixels * C;
    if (!kept) row[cell::kReached] = 2 * pixels * C;
    row[cell::kSums] = 0, row[cell::kInnerSums] = 2 * chunks * C;
    taps = kernel * kernel, inner_halo = kernel / 2;
    need_layers(inner_halo, 1);
  }

  SecondLayer& run(unsigned seed) {
    seconds = {row};
    ReachCall::run<C, 7>(seed, {{cell::kWorkInner}});
    return *this;
  }

  // The gradient at the layer's product; the layer's input.
  double reached(int64_t pixel, int c) const {
    double sum = 0;
    for (int o = 0; o < C; ++o) sum += dz(row, pixel, o) * weights[o * C + c];
    return sum;
  }
  double input(int64_t pixel, int c) const {
    const double off = z[(pixels + pixel) * C + c] - statistics[2 * C + c];
    return std::max(0.0, off / std::sqrt(statistics[3 * C + c] + kEps));
  }
  // The pixel that a tap of another reads; -1 outside of the image.
  int64_t at_tap(int64_t pixel, int tap, int direction) const {
    const int64_t y = pixel / width % height + direction * (tap / kernel - kernel / 2);
    const int64_t x = pixel % width + direction * (tap % kernel - kernel / 2);
    if (y < 0 || y >= height || x < 0 || x >= width) return -1;
    return (pixel / width / height * height + y) * width + x;
  }

  // Everything that is written.
  void check() const {
    Buffer<double> all_dz(pixels * C), all_reached(pixels * C), inner(2 * C, 0.0);
    Buffer<double> products(C * C, 0.0), spatial(taps * C, 0.0);
    for (int64_t i = 0; i < pixels * C; ++i) all_dz[i] = dz(row, i / C, i % C);
    for (int64_t i = 0; i < pixels * C; ++i) all_reached[i] = reached(i / C, i % C);
    for (int64_t at = 0; at < pixels; ++at)
      for (int c = 0; c < C; ++c) {
        double back = 0, between = 0;
        for (int tap = 0; tap < taps; ++tap) {
          const double w = weights[C * C + c * taps + tap];
          if (const int64_t to = at_tap(at, tap, -1); to >= 0) back += all_reached[to * C + c] * w;
          if (const int64_t from = at_tap(at, tap, 1); from >= 0) {
            between += input(from, c) * w;
            spatial[c * taps + tap] += all_reached[at * C + c] * input(from, c);
          }
        }
        const double found = input(at, c) > 0 ? back : 0;
        check_about(gradients[(pixels + at) * C + c], found, C * taps);
        inner[c] += found;
        inner[C + c] += found * (z[(pixels + at) * C + c] - statistics[2 * C + c]);
        for (int o = 0; o < C; ++o) products[o * C + c] += all_dz[at * C + o] * between;
      }
    for (int i = 0; i < 2 * C; ++i)
      check_about(total(sums.data() + 2 * chunks * C, i, 2 * C), inner[i], pixels);
    if (weight_gradients.size() == 0) return;
    for (int i = 0; i < C * C; ++i)
      check_about(total(weight_gradients.data(), i, weights.size()), products[i], pixels * taps);
    for (int i = 0; i < taps * C; ++i)
      check_about(total(weight_gradients.data(), C * C + i, weights.size()), spatial[i],
                  pixels * C);
  }

  int kernel;
  Row row;
};

DA2S_TEST(cuda_gradients_of_second_layers) {
  if (!shim::wanted()) return;
  SecondLayer<8>(3, {1, 3, 5, 7, 2, 3, 1}).run(1).check();
  SecondLayer<16>(5, {1, 1, 9, 20, 1, 2, 0}).run(2).check();
  SecondLayer<4>(7, {1, 2, 6, 3, 1, 3, 0, 1}, false).run(3).check();
  SecondLayer<64>(5, {1, 2, 5, 7, 1, 2, 0}).run(4).check();
  SecondLayer<16>(5, {1, 3, 9, 6, 2, 1, 0}, true, false).run(5).check();
}

DA2S_TEST(cuda_every_missing_barrier_of_gradients_is_noticed) {
  if (!shim::wanted()) return;
  every_missing_barrier_is_noticed([](unsigned seed) {
    // Two tiles, with weights that want gradients and without, and the largest kernel.
    return SecondLayer<16>(3, {1, 1, 16, 20, 1, 3, 0}).run(seed).written() +
           SecondLayer<16>(3, {1, 1, 16, 20, 1, 3, 0}, false).run(seed).written() +
           SecondLayer<64>(3, {1, 1, 9, 7, 1, 3, 0}).run(seed).written() +
           SecondLayer<16>(5, {1, 1, 9, 7, 1, 2, 0}, true, false).run(seed).written() +
           SecondLayer<4>(7, {1, 1, 16, 8, 1, 3, 0}).run(seed).written();
  });
}

}  // namespace
}  // namespace da2s_fast::test

// The cell's `reach_states` of csrc/cuda against plain loops, its threads in shuffled orders.
// clang-format off
#include "shim.h"
// clang-format on

#include <string>
#include <vector>

#include "missing.h"
#include "reach_call.h"

namespace da2s_fast::test {
namespace {

// Two first layers of one state, the second in front of an inner norm.
template <int C>
struct FirstLayers : ReachCall {
  // parts: K of partial channels, whose order the state's gradient has before the shuffle.
  // wanted: weights want gradients. kept: see `Sizes`.
  FirstLayers(int kernel, int dilation, const Extents& extents, int parts = 1, bool wanted = true,
              bool kept = true)
      : ReachCall(C, extents,
                  {.states = extents.in_pixels() * C * parts,
                   .z = 2 * extents.pixels() * C,
                   .gradients = 3 * extents.pixels() * C + extents.in_pixels() * C * parts,
                   .weights = 2 * (C + kernel * kernel) * C,
                   .norms = 2,
                   .sums = 4 * extents.chunks() * C,
                   .wanted = wanted,
                   .kept = kept}),
        kernel(kernel),
        dilation(dilation),
        parts(parts),
        count((C + kernel * kernel) * C) {
    fill_gradients(0, 2 * pixels * C);
    fill_gradients(state(), gradients.size());
    before.assign(gradients.data() + state(), gradients.data() + gradients.size());
    fill_sums(0, sums.size());
    pitch = C * parts, taps = kernel * kernel;
    halo = dilation * (kernel - 1) / 2;
    for (int layer = 0; layer < 2; ++layer) {
      Row row = row_of(cell::kSeparable);
      row[cell::kSource] = 0;
      row[cell::kHeight] = extents.in_height, row[cell::kWidth] = extents.in_width;
      row[cell::kStride] = extents.stride, row[cell::kDilation] = dilation;
      row[cell::kKernel] = kernel, row[cell::kPadding] = halo;
      row[cell::kProduct] = layer * count, row[cell::kSpatial] = layer * count + C * C;
      row[cell::kZ] = layer * pixels * C, row[cell::kStatistics] = layer * 2 * C;
      row[cell::kEdge] = layer == 0 ? 1 : -1, row[cell::kOperation] = 1;
      row[cell::kGradient] = layer * pixels * C, row[cell::kGradientPitch] = C;
      row[cell::kSums] = layer * 2 * chunks * C, row[cell::kReached] = 2 * pixels * C;
      layers.push_back(row);
    }
    groups = {{0, 2, -1, state(), parts}};
    need_layers(halo, extents.stride);
  }

  // The second layer's norm: so its gradient depends on no sums.
  FirstLayers& with_given_statistics() {
    layers[1][cell::kFrozen] = 1;
    return *this;
  }

  // Where the state's gradient is.
  int64_t state() const { return 3 * pixels * C; }

  FirstLayers& run(unsigned seed) {
    ReachCall::run<C, 7>(seed, {{cell::kWorkStates}});
    return *this;
  }

  // The gradient at a layer's product.
  double reached(int layer, int64_t pixel, int c) const {
    double sum = 0;
    for (int o = 0; o < C; ++o)
      sum += dz(layers[layer], pixel, o) * weights[layer * count + o * C + c];
    return sum;
  }
  // The state's pixel that a tap of an output reads; -1 outside of the image.
  int64_t at_tap(int64_t pixel, int tap) const {
    const int64_t y = pixel / width % height * extents.stride + tap / kernel * dilation;
    const int64_t x = pixel % width * extents.stride + tap % kernel * dilation;
    const int64_t row = y - halo, column = x - halo;
    if (row < 0 || row >= extents.in_height || column < 0 || column >= extents.in_width) return -1;
    return (pixel / width / height * extents.in_height + row) * extents.in_width + column;
  }

  void check() const {
    Buffer<double> back(in_pixels * C, 0.0);
    for (int layer = 0; layer < 2; ++layer) {
      Buffer<double> products(C * C, 0.0), spatial(taps * C, 0.0);
      const float* factors = weights.data() + layer * count + C * C;
      for (int64_t pixel = 0; pixel < pixels; ++pixel)
        for (int c = 0; c < C; ++c) {
          const double through = reached(layer, pixel, c);
          double between = 0;
          for (int tap = 0; tap < taps; ++tap) {
            const int64_t at = at_tap(pixel, tap);
            if (at < 0) continue;
            const double x = std::max(0.f, states[at * pitch + c]);
            if (x > 0) back[at * C + c] += through * factors[c * taps + tap];
            between += x * factors[c * taps + tap];
            spatial[c * taps + tap] += through * x;
          }
          for (int o = 0; o < C; ++o) products[o * C + c] += dz(layers[layer], pixel, o) * between;
        }
      if (weight_gradients.size() == 0) continue;
      const float* found = weight_gradients.data() + layer * count;
      for (int i = 0; i < C * C; ++i)
        check_about(total(found, i, 2 * count), products[i], pixels * taps);
      for (int i = 0; i < taps * C; ++i)
        check_about(total(found, C * C + i, 2 * count), spatial[i], pixels * C);
    }
    for (int64_t pixel = 0; pixel < in_pixels; ++pixel)
      for (int c = 0; c < pitch; ++c) {
        const int64_t at = pixel * pitch + c % parts * C + c / parts;
        const double more = c < C ? back[pixel * C + c] : 0;
        check_about(gradients[state() + at], before[at] + more, 2 * C * taps);
      }
  }

  int kernel, dilation, parts;
  int64_t count;
  std::vector<float> before;
};

DA2S_TEST(cuda_gradients_of_states) {
  if (!shim::wanted()) return;
  FirstLayers<8>(3, 1, {1, 3, 5, 7, 2, 3, 1}).run(1).check();
  FirstLayers<16>(5, 2, {1, 1, 9, 20, 1, 2, 0}, 2).run(2).check();
  FirstLayers<4>(7, 1, {1, 2, 6, 3, 1, 3, 0, 1}, 4, false).run(3).check();
  FirstLayers<8>(5, 2, {2, 2, 9, 7, 1, 2, 0}).with_given_statistics().run(4).check();
  FirstLayers<4>(3, 2, {2, 3, 6, 8, 2, 2, 1}, 2).run(5).check();
  FirstLayers<4>(7, 1, {2, 1, 11, 6, 1, 1, 0}).run(6).check();
  FirstLayers<64>(5, 1, {1, 2, 5, 7, 1, 2, 0}, 2).run(7).check();
  FirstLayers<32>(3, 2, {2, 1, 6, 7, 1, 2, 0}).run(8).check();
  FirstLayers<8>(5, 2, {1, 3, 9, 6, 2, 2, 0}, 2, true, false).run(9).check();
}

DA2S_TEST(cuda_every_missing_barrier_of_states_is_noticed) {
  if (!shim::wanted()) return;
  every_missing_barrier_is_noticed([](unsigned seed) {
    return FirstLayers<16>(3, 2, {1, 1, 16, 20, 1, 3, 0}).run(seed).written() +
           FirstLayers<16>(3, 1, {1, 1, 16, 20, 1, 3, 0}, 1, false).run(seed).written() +
           FirstLayers<16>(3, 1, {2, 1, 16, 20, 1, 2, 0}).run(seed).written() +
           FirstLayers<4>(7, 1, {1, 1, 16, 8, 1, 3, 0}).run(seed).written() +
           FirstLayers<4>(7, 1, {2, 1, 11, 6, 1, 1, 0}).run(seed).written();
  });
}

}  // namespace
}  // namespace da2s_fast::test

// The cell's `reach_inner` of csrc/cuda against plain loops, its threads in shuffled orders.
// clang-format off
#include "shim.h"
// clang-format on

#include "cuda/cell/reach.cuh"

#include <string>

#include "../buffers.h"
#include "../check.h"
#include "before_norm.h"
#include "missing.h"

namespace da2s_fast::test {
namespace {

constexpr double kEps = 1e-3;

// A second layer, and its part of all buffers; every tensor is exactly as long as it must be.
template <int C>
struct Reach {
  Reach(int kernel, int images, int height, int width, int chunk_images, int log_height,
        int log_images, bool wanted = true)
      : kernel(kernel),
        height(height),
        width(width),
        chunks((images + chunk_images - 1) / chunk_images),
        taps(kernel * kernel),
        pixels(int64_t{images} * height * width),
        z(2 * pixels * C, numbers),
        gradients(3 * pixels * C),
        weights((C + taps) * C, numbers),
        weight_gradients(wanted ? chunks * (C + taps) * C : 0),
        shares(2, numbers),
        statistics(4 * C, numbers),
        sums(4 * chunks * C) {
    for (int64_t i = 0; i < pixels * C; ++i) gradients[i] = static_cast<float>(numbers.next());
    for (int64_t i = 0; i < 2 * chunks * C; ++i) sums[i] = numbers.next();
    for (int i = 0; i < 2 * C; ++i) {  // variances
      float& variance = statistics[i / C * 2 * C + C + i % C];
      variance = std::fabs(variance) + 0.5f;
    }
    row[cell::kKernel] = kernel, row[cell::kPadding] = kernel / 2;
    row[cell::kSource] = pixels * C, row[cell::kZ] = 0;
    row[cell::kSpatial] = C * C, row[cell::kProduct] = 0;
    row[cell::kStatistics] = 0, row[cell::kInner] = 2 * C, row[cell::kFrozen] = 0;
    row[cell::kEdge] = 0, row[cell::kOperation] = 1;
    row[cell::kGradient] = 0, row[cell::kGradientPitch] = C;
    row[cell::kReached] = pixels * C, row[cell::kInnerGradient] = 2 * pixels * C;
    row[cell::kSums] = 0, row[cell::kInnerSums] = 2 * chunks * C;
    int log_width = 3;
    while (1 << log_width < width) ++log_width;
    const int halo = kernel / 2;
    call = {row,
            nullptr,
            nullptr,
            z.data(),
            gradients.data(),
            weights.data(),
            wanted ? weight_gradients.data() : nullptr,
            shares.data(),
            nullptr,
            statistics.data(),
            sums.data(),
            pixels,
            (C + taps) * C,
            kEps,
            height,
            width,
            chunk_images,
            2,
            C,
            halo,
            taps,
            log_width,
            log_height,
            log_images};
    const cell::Tile tile = cell::tile_of(log_width, log_height, log_images, halo, 1);
    bytes = 8 * (2 * C + cell::kLayer) +
            4 * (C * (4 + 2 + 2 * cell::kWarps) + (C + taps) * C + 3 * cell::kTilePixels<C> * C +
                 (tile.rows << log_images) * tile.columns * C);
  }

  Reach& run(unsigned seed) {
    shim::launch({static_cast<unsigned>(chunks), 1, 1}, cell::kThreads, bytes, seed,
                 [&](char* shared) { cell::reach_inner<C, 7>(call, shared); });
    return *this;
  }

  std::string written() const {
    std::string bits(reinterpret_cast<const char*>(gradients.data()), 12 * pixels * C);
    bits.append(reinterpret_cast<const char*>(sums.data()), 32 * chunks * C);
    return bits.append(reinterpret_cast<const char*>(weight_gradients.data()),
                       4 * weight_gradients.size());
  }

  // dL/dz of the layer's output.
  double dz(int64_t p, int c) const {
    return before_norm(sums.data(), chunks, C, c, pixels, statistics.data(), kEps, shares[1],
                       gradients[p * C + c], z[p * C + c]);
  }
  // Its product with the weights; the layer's input.
  double reached(int64_t p, int c) const {
    double sum = 0;
    for (int o = 0; o < C; ++o) sum += dz(p, o) * weights[o * C + c];
    return sum;
  }
  double input(int64_t p, int c) const {
    const double off = z[(pixels + p) * C + c] - statistics[2 * C + c];
    return std::max(0.0, off / std::sqrt(statistics[3 * C + c] + kEps));
  }
  // The pixel that a tap of another reads; -1 outside of the image.
  int64_t at_tap(int64_t p, int tap, int direction) const {
    const int64_t y = p / width % height + direction * (tap / kernel - kernel / 2);
    const int64_t x = p % width + direction * (tap % kernel - kernel / 2);
    if (y < 0 || y >= height || x < 0 || x >= width) return -1;
    return (p / width / height * height + y) * width + x;
  }

  // Everything that is written: rounding errors of dz, reached and sums of them stay far below a
  // thousandth of the numbers they are made of.
  void check() const {
    const auto close = [](double found, double expected, double size) {
      DA2S_CHECK(std::fabs(found - expected) <= 1e-5 * (1 + size));
    };
    Buffer<double> all_dz(pixels * C), all_reached(pixels * C), inner(2 * C, 0.0);
    Buffer<double> products(C * C, 0.0), spatial(taps * C, 0.0);
    for (int64_t i = 0; i < pixels * C; ++i) all_dz[i] = dz(i / C, i % C);
    for (int64_t i = 0; i < pixels * C; ++i) {
      all_reached[i] = reached(i / C, i % C);
      close(gradients[pixels * C + i], all_reached[i], C);
    }
    for (int64_t p = 0; p < pixels; ++p)
      for (int c = 0; c < C; ++c) {
        double back = 0, between = 0;
        for (int tap = 0; tap < taps; ++tap) {
          const double w = weights[C * C + c * taps + tap];
          if (const int64_t to = at_tap(p, tap, -1); to >= 0) back += all_reached[to * C + c] * w;
          if (const int64_t from = at_tap(p, tap, 1); from >= 0) {
            between += input(from, c) * w;
            spatial[c * taps + tap] += all_reached[p * C + c] * input(from, c);
          }
        }
        const double found = input(p, c) > 0 ? back : 0;
        close(gradients[(2 * pixels + p) * C + c], found, C * taps);
        inner[c] += found;
        inner[C + c] += found * (z[(pixels + p) * C + c] - statistics[2 * C + c]);
        for (int o = 0; o < C; ++o) products[o * C + c] += all_dz[p * C + o] * between;
      }
    for (int i = 0; i < 2 * C; ++i)
      close(total(sums.data() + 2 * chunks * C, i, 2 * C), inner[i], pixels);
    if (weight_gradients.size() == 0) return;
    const int64_t count = (C + taps) * C;
    for (int i = 0; i < C * C; ++i)
      close(total(weight_gradients.data(), i, count), products[i], pixels * taps);
    for (int i = 0; i < taps * C; ++i)
      close(total(weight_gradients.data(), C * C + i, count), spatial[i], pixels * C);
  }

  template <class T>
  double total(const T* partial, int64_t i, int64_t count) const {
    double sum = 0;
    for (int chunk = 0; chunk < chunks; ++chunk) sum += partial[chunk * count + i];
    return sum;
  }

  int kernel, height, width, chunks, taps;
  int64_t pixels, bytes;
  Numbers numbers;
  Buffer<float> z, gradients, weights, weight_gradients, shares, statistics;
  Buffer<double> sums;
  int64_t row[cell::kLayer] = {};
  cell::Reach call;
};

DA2S_TEST(cuda_gradients_of_second_layers) {
  if (!shim::wanted()) return;
  Reach<8>(3, 3, 5, 7, 2, 3, 1).run(1).check();
  Reach<16>(5, 1, 9, 20, 1, 2, 0).run(2).check();
  Reach<4>(7, 2, 6, 3, 1, 3, 0, false).run(3).check();
}

DA2S_TEST(cuda_every_missing_barrier_of_gradients_is_noticed) {
  if (!shim::wanted()) return;
  every_missing_barrier_is_noticed([](unsigned seed) {
    // Two tiles, with weights that want gradients and without, and the largest kernel.
    return Reach<16>(3, 1, 16, 20, 1, 3, 0).run(seed).written() +
           Reach<16>(3, 1, 16, 20, 1, 3, 0, false).run(seed).written() +
           Reach<4>(7, 1, 16, 8, 1, 3, 0).run(seed).written();
  });
}

}  // namespace
}  // namespace da2s_fast::test

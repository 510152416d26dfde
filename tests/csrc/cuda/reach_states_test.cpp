// The cell's `reach_states` of csrc/cuda against plain loops, its threads in shuffled orders.
// clang-format off
#include "shim.h"
// clang-format on

#include "cuda/cell/reach_states.cuh"

#include <string>

#include "../buffers.h"
#include "../check.h"
#include "before_norm.h"
#include "missing.h"

namespace da2s_fast::test {
namespace {

constexpr double kEps = 1e-3;

struct Shape {
  int kernel, dilation, stride, images, in_height, in_width;
  int chunk_images, log_height, log_images;
  int parts = 1;       // K of partial channels, whose order the gradient has before the shuffle
  bool wanted = true;  // weights want gradients
};

// Two first layers of one state, the second in front of an inner norm; every tensor is exactly as
// long as it must be.
template <int C>
struct ReachStates {
  explicit ReachStates(const Shape& shape)
      : shape(shape),
        height((shape.in_height + shape.stride - 1) / shape.stride),
        width((shape.in_width + shape.stride - 1) / shape.stride),
        chunks((shape.images + shape.chunk_images - 1) / shape.chunk_images),
        taps(shape.kernel * shape.kernel),
        padding(shape.dilation * (shape.kernel - 1) / 2),
        pitch(C * shape.parts),
        pixels(int64_t{shape.images} * height * width),
        in_pixels(int64_t{shape.images} * shape.in_height * shape.in_width),
        count((C + taps) * C),
        states(in_pixels * pitch, numbers),
        z(2 * pixels * C, numbers),
        gradients(pixels * C * 3 + in_pixels * pitch),
        weights(2 * count, numbers),
        weight_gradients(shape.wanted ? chunks * 2 * count : 0),
        shares(2, numbers),
        statistics(4 * C, numbers),
        sums(4 * chunks * C) {
    for (int64_t i = 0; i < gradients.size(); ++i)
      gradients[i] = static_cast<float>(numbers.next());
    before.assign(gradients.data() + state(), gradients.data() + gradients.size());
    for (int64_t i = 0; i < sums.size(); ++i) sums[i] = numbers.next();
    for (int i = 0; i < 2 * C; ++i) {  // variances
      float& variance = statistics[i / C * 2 * C + C + i % C];
      variance = std::fabs(variance) + 0.5f;
    }
    for (int layer = 0; layer < 2; ++layer) {
      int64_t* row = rows + layer * cell::kLayer;
      row[cell::kKind] = cell::kSeparable, row[cell::kSource] = 0;
      row[cell::kHeight] = shape.in_height, row[cell::kWidth] = shape.in_width;
      row[cell::kStride] = shape.stride, row[cell::kDilation] = shape.dilation;
      row[cell::kKernel] = shape.kernel, row[cell::kPadding] = padding;
      row[cell::kProduct] = layer * count, row[cell::kSpatial] = layer * count + C * C;
      row[cell::kZ] = layer * pixels * C, row[cell::kStatistics] = layer * 2 * C;
      row[cell::kEdge] = layer == 0 ? 0 : -1, row[cell::kOperation] = 1;
      row[cell::kGradient] = layer * pixels * C, row[cell::kGradientPitch] = C;
      row[cell::kSums] = layer * 2 * chunks * C, row[cell::kReached] = 2 * pixels * C;
    }
    group[cell::kGroupLength] = 2, group[cell::kGroupGradient] = state();
    group[cell::kGroupShuffled] = shape.parts;
    int log_width = 3;
    while (1 << log_width < width) ++log_width;
    call = {group,
            rows,
            states.data(),
            z.data(),
            gradients.data(),
            weights.data(),
            shape.wanted ? weight_gradients.data() : nullptr,
            shares.data(),
            nullptr,
            statistics.data(),
            sums.data(),
            pixels,
            2 * count,
            kEps,
            height,
            width,
            shape.chunk_images,
            2,
            pitch,
            padding,
            taps,
            log_width,
            shape.log_height,
            shape.log_images};
    const cell::Tile tile =
        cell::tile_of(log_width, shape.log_height, shape.log_images, padding, shape.stride);
    bytes = 8 * (2 * C + cell::kLayer) +
            4 * (C * (4 + 2 + 2 * cell::kWarps) + (C + taps) * C + 3 * cell::kTilePixels<C> * C +
                 (tile.rows << shape.log_images) * tile.columns * C);
  }

  // Where the state's gradient is.
  int64_t state() const { return 3 * pixels * C; }

  ReachStates& run(unsigned seed) {
    shim::launch({static_cast<unsigned>(chunks), 1, 1}, cell::kThreads, bytes, seed,
                 [&](char* shared) { cell::reach_states<C, 7>(call, shared); });
    return *this;
  }

  std::string written() const {
    std::string bits(reinterpret_cast<const char*>(gradients.data() + 2 * pixels * C),
                     4 * (gradients.size() - 2 * pixels * C));
    return bits.append(reinterpret_cast<const char*>(weight_gradients.data()),
                       4 * weight_gradients.size());
  }

  // dL/dz of a layer's output, and its product with the weights.
  double dz(int layer, int64_t p, int c) const {
    const int64_t at = (layer * pixels + p) * C + c;
    return before_norm(sums.data() + layer * 2 * chunks * C, chunks, C, c, pixels,
                       statistics.data() + layer * 2 * C, kEps, layer == 0 ? shares[1] : 1,
                       gradients[at], z[at]);
  }
  double reached(int layer, int64_t p, int c) const {
    double sum = 0;
    for (int o = 0; o < C; ++o) sum += dz(layer, p, o) * weights[layer * count + o * C + c];
    return sum;
  }
  // The state's pixel that a tap of an output reads; -1 outside of the image.
  int64_t at_tap(int64_t p, int tap) const {
    const int64_t y = p / width % height * shape.stride + tap / shape.kernel * shape.dilation;
    const int64_t x = p % width * shape.stride + tap % shape.kernel * shape.dilation;
    const int64_t row = y - padding, column = x - padding;
    if (row < 0 || row >= shape.in_height || column < 0 || column >= shape.in_width) return -1;
    return (p / width / height * shape.in_height + row) * shape.in_width + column;
  }

  void check() const {
    const auto close = [](double found, double expected, double size) {
      DA2S_CHECK(std::fabs(found - expected) <= 1e-5 * (1 + size));
    };
    Buffer<double> back(in_pixels * C, 0.0);
    for (int layer = 0; layer < 2; ++layer) {
      Buffer<double> products(C * C, 0.0), spatial(taps * C, 0.0);
      const float* factors = weights.data() + layer * count + C * C;
      for (int64_t p = 0; p < pixels; ++p)
        for (int c = 0; c < C; ++c) {
          const double through = reached(layer, p, c);
          double between = 0;
          for (int tap = 0; tap < taps; ++tap) {
            const int64_t at = at_tap(p, tap);
            if (at < 0) continue;
            const double x = std::max(0.f, states[at * pitch + c]);
            if (x > 0) back[at * C + c] += through * factors[c * taps + tap];
            between += x * factors[c * taps + tap];
            spatial[c * taps + tap] += through * x;
          }
          for (int o = 0; o < C; ++o) products[o * C + c] += dz(layer, p, o) * between;
        }
      if (!shape.wanted) continue;
      for (int i = 0; i < C * C; ++i) close(total(layer * count + i), products[i], pixels * taps);
      for (int i = 0; i < taps * C; ++i)
        close(total(layer * count + C * C + i), spatial[i], pixels * C);
    }
    for (int64_t p = 0; p < in_pixels; ++p)
      for (int c = 0; c < pitch; ++c) {
        const int column = c % shape.parts * C + c / shape.parts;
        const double more = c < C ? back[p * C + c] : 0;
        close(gradients[state() + p * pitch + column], before[p * pitch + column] + more,
              2 * C * taps);
      }
  }

  double total(int64_t i) const {
    double sum = 0;
    for (int chunk = 0; chunk < chunks; ++chunk) sum += weight_gradients[chunk * 2 * count + i];
    return sum;
  }

  Shape shape;
  int height, width, chunks, taps, padding, pitch;
  int64_t pixels, in_pixels, count, bytes;
  Numbers numbers;
  Buffer<float> states, z, gradients, weights, weight_gradients, shares, statistics;
  Buffer<double> sums;
  std::vector<float> before;
  int64_t rows[2 * cell::kLayer] = {}, group[cell::kGroup] = {};
  cell::Reach call;
};

DA2S_TEST(cuda_gradients_of_states) {
  if (!shim::wanted()) return;
  ReachStates<8>({3, 1, 1, 3, 5, 7, 2, 3, 1}).run(1).check();
  ReachStates<16>({5, 2, 1, 1, 9, 20, 1, 2, 0, 2}).run(2).check();
  ReachStates<4>({7, 1, 1, 2, 6, 3, 1, 3, 0, 4, false}).run(3).check();
  ReachStates<8>({5, 2, 2, 2, 9, 7, 1, 2, 0}).run(4).check();
  ReachStates<4>({3, 2, 2, 3, 6, 8, 2, 2, 1, 2}).run(5).check();
  ReachStates<4>({7, 1, 2, 1, 11, 6, 1, 1, 0}).run(6).check();
}

DA2S_TEST(cuda_every_missing_barrier_of_states_is_noticed) {
  if (!shim::wanted()) return;
  every_missing_barrier_is_noticed([](unsigned seed) {
    return ReachStates<16>({3, 2, 1, 1, 16, 20, 1, 3, 0}).run(seed).written() +
           ReachStates<16>({3, 1, 1, 1, 16, 20, 1, 3, 0, 1, false}).run(seed).written() +
           ReachStates<16>({3, 1, 2, 1, 16, 20, 1, 2, 0}).run(seed).written() +
           ReachStates<4>({7, 1, 1, 1, 16, 8, 1, 3, 0}).run(seed).written();
  });
}

}  // namespace
}  // namespace da2s_fast::test

// What `reach_states` of csrc/cuda does with rows that have no layers, against plain loops, its
// threads in shuffled orders.
// clang-format off
#include "shim.h"
// clang-format on

#include <string>
#include <vector>

#include "../buffers.h"
#include "../check.h"
#include "before_norm.h"
#include "cuda/cell/reach_states.cuh"
#include "missing.h"

namespace da2s_fast::test {
namespace {

constexpr double kEps = 1e-3;

struct Shape {
  int stride, images, in_height, in_width;
  int chunk_images, log_height, log_images;
  int parts = 1;          // K of partial channels
  bool shuffled = false;  // the state's gradient has the order of channels before the shuffle
  bool weighed = true;    // edges have weights
};

// Every kind of row that reads one state, one after the other; every tensor is exactly as long as
// it must be.
template <int C>
struct Collect {
  explicit Collect(const Shape& shape)
      : shape(shape),
        height((shape.in_height + shape.stride - 1) / shape.stride),
        width((shape.in_width + shape.stride - 1) / shape.stride),
        chunks((shape.images + shape.chunk_images - 1) / shape.chunk_images),
        pitch(C * shape.parts),
        pixels(int64_t{shape.images} * height * width),
        in_pixels(int64_t{shape.images} * shape.in_height * shape.in_width),
        z(3 * pixels * C, numbers),
        gradients(pixels * pitch + in_pixels * pitch),
        p(2 * 8, numbers),
        g(2, numbers),
        statistics(2 * C, numbers),
        sums(2 * chunks * C) {
    for (int64_t i = 0; i < gradients.size(); ++i)
      gradients[i] = static_cast<float>(numbers.next());
    before.assign(gradients.data() + state(), gradients.data() + gradients.size());
    for (int64_t i = 0; i < sums.size(); ++i) sums[i] = numbers.next();
    for (int c = 0; c < C; ++c) statistics[C + c] = std::fabs(statistics[C + c]) + 0.5f;
    for (int64_t i = 0; i < pixels * C; ++i)  // which tap won
      z[pixels * C + i] = static_cast<float>((i * 7 + i / 5) % 9);
    add_row(cell::kMaximum, 0, 0);
    add_row(cell::kAverage, 2 * pixels * C, -1);
    add_row(cell::kSkip, 0, -1);
    add_row(cell::kNothing, 0, -1);
    if (shape.parts > 1 && shape.stride == 1) add_row(cell::kBypass, 0, -1);
    group[cell::kGroupLength] = count, group[cell::kGroupGradient] = state();
    group[cell::kGroupShuffled] = shape.shuffled ? shape.parts : 1;
    int log_width = 3;
    while (1 << log_width < width) ++log_width;
    call = {group,
            rows.data(),
            nullptr,
            z.data(),
            gradients.data(),
            nullptr,
            nullptr,
            p.data(),
            shape.weighed ? g.data() : nullptr,
            statistics.data(),
            sums.data(),
            pixels,
            0,
            kEps,
            height,
            width,
            shape.chunk_images,
            8,
            pitch,
            1,
            0,
            log_width,
            shape.log_height,
            shape.log_images};
    const cell::Tile tile = cell::tile_of(log_width, shape.log_height, shape.log_images, 1, 1);
    const int64_t scratch = 16 * cell::kThreads / 4;  // two doubles per thread
    bytes =
        8 * (2 * C + cell::kLayer) +
        4 * (C * (4 + 2 + 2 * cell::kWarps) + C * C +
             std::max(scratch, int64_t{2} * (tile.rows << shape.log_images) * tile.columns * C));
  }

  void add_row(int64_t kind, int64_t outputs, int64_t norm) {
    rows.resize((count + 1) * cell::kLayer);
    int64_t* row = rows.data() + count * cell::kLayer;
    row[cell::kKind] = kind, row[cell::kStride] = shape.stride;
    row[cell::kHeight] = shape.in_height, row[cell::kWidth] = shape.in_width;
    row[cell::kZ] = outputs, row[cell::kPosition] = pixels * C, row[cell::kStatistics] = norm;
    row[cell::kEdge] = 1, row[cell::kOperation] = count, row[cell::kGradientPitch] = pitch;
    ++count;
  }

  // Where the state's gradient is.
  int64_t state() const { return pixels * pitch; }

  Collect& run(unsigned seed) {
    shim::launch({static_cast<unsigned>(chunks), 1, 1}, cell::kThreads, bytes, seed,
                 [&](char* shared) { cell::reach_states<C, 5>(call, shared); });
    return *this;
  }

  std::string written() const {
    return {reinterpret_cast<const char*>(gradients.data() + state()),
            static_cast<size_t>(4 * in_pixels * pitch)};
  }

  double weight(int row) const { return p[8 + row] * (shape.weighed ? g[1] : 1); }

  // dL/dz of the maximum, which has a norm.
  double dz(int64_t pixel, int c) const {
    return before_norm(sums.data(), chunks, C, c, pixels, statistics.data(), kEps, weight(0),
                       gradients[pixel * pitch + c], z[pixel * C + c]);
  }

  void check() const {
    Buffer<double> more(in_pixels * pitch, 0.0);
    for (int64_t n = 0, out = 0; n < shape.images; ++n)
      for (int y = 0; y < height; ++y)
        for (int x = 0; x < width; ++x, ++out) window(more, n, y, x, out);
    for (int64_t pixel = 0; pixel < in_pixels; ++pixel)
      for (int c = 0; c < pitch; ++c) {
        const int parts = shape.shuffled ? shape.parts : 1;
        const int64_t at = pixel * pitch + c % parts * (pitch / parts) + c / parts;
        const double expected = before[at] + more[pixel * pitch + c];
        DA2S_CHECK(std::fabs(gradients[state() + at] - expected) <=
                   1e-5 * (20 + std::fabs(expected)));
      }
  }

  // Adds what an output hands the state's pixels.
  void window(Buffer<double>& more, int64_t n, int y, int x, int64_t out) const {
    const auto at = [&](int row, int column) {
      return ((n * shape.in_height + row) * shape.in_width + column) * pitch;
    };
    const auto is_inside = [&](int tap, int& row, int& column) {
      row = y * shape.stride + tap / 3 - 1, column = x * shape.stride + tap % 3 - 1;
      return row >= 0 && row < shape.in_height && column >= 0 && column < shape.in_width;
    };
    int row, column, inside = 0;
    for (int tap = 0; tap < 9; ++tap) inside += is_inside(tap, row, column);
    const float* gradient = gradients.data() + out * pitch;
    for (int c = 0; c < C; ++c) {
      for (int tap = 0; tap < 9; ++tap) {
        if (!is_inside(tap, row, column)) continue;
        double& to = more[at(row, column) + c];
        if (z[(pixels + out) * C + c] == tap) to += dz(out, c);
        to += weight(1) * gradient[c] / inside;
      }
      more[at(y * shape.stride, x * shape.stride) + c] += weight(2) * gradient[c];
    }
    for (int c = C; c < pitch && shape.stride == 1; ++c)
      more[at(y, x) + c] += (shape.weighed ? g[1] : 1) * gradient[c];
  }

  Shape shape;
  int height, width, chunks, pitch, count = 0;
  int64_t pixels, in_pixels, bytes;
  Numbers numbers;
  Buffer<float> z, gradients, p, g, statistics;
  Buffer<double> sums;
  std::vector<float> before;
  std::vector<int64_t> rows;
  int64_t group[cell::kGroup] = {};
  cell::Reach call;
};

DA2S_TEST(cuda_gradients_without_layers) {
  if (!shim::wanted()) return;
  Collect<8>({1, 3, 5, 7, 2, 3, 1}).run(1).check();
  Collect<16>({1, 1, 9, 20, 1, 2, 0, 2, true}).run(2).check();
  Collect<4>({1, 2, 6, 3, 1, 3, 0, 4, false, false}).run(3).check();
  Collect<8>({2, 2, 9, 7, 1, 2, 0}).run(4).check();
  Collect<4>({2, 3, 6, 8, 2, 2, 1, 2, true}).run(5).check();
  Collect<64>({2, 1, 5, 17, 1, 0, 0}).run(6).check();
}

DA2S_TEST(cuda_every_missing_barrier_without_layers_is_noticed) {
  if (!shim::wanted()) return;
  every_missing_barrier_is_noticed([](unsigned seed) {
    return Collect<16>({1, 1, 16, 20, 1, 2, 0}).run(seed).written() +
           Collect<16>({2, 1, 16, 20, 1, 2, 0}).run(seed).written();
  });
}

}  // namespace
}  // namespace da2s_fast::test

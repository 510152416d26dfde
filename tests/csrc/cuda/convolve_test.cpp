// The cell's `convolve` of csrc/cuda against plain loops, its threads in shuffled orders.
// clang-format off
#include "shim.h"
// clang-format on

#include "cuda/cell/convolve.cuh"

#include <string>
#include <utility>

#include "../buffers.h"
#include "../check.h"
#include "missing.h"

namespace da2s_fast::test {
namespace {

using cell::Convolve;

struct Operation {
  int kind;
  int kernel;
  int dilation;
  int padding;
  int column = 0;
};

constexpr double kEps = 1e-3;
constexpr int kMore = 4;  // channels of the input that no candidate sees

// A launch of one pack; every tensor is exactly as long as it must be.
template <int C, bool kSecond>
struct Launch {
  Launch(std::vector<Operation> operations, int images, int height, int width, int stride,
         int64_t chunk_pixels, int log_height, int log_images)
      : operations(std::move(operations)),
        in_height(height),
        in_width(width),
        stride(stride),
        height((height + stride - 1) / stride),
        width((width + stride - 1) / stride),
        pixels(int64_t{images} * this->height * this->width),
        pitch(C + (kSecond ? 0 : kMore)),
        chunks((pixels + chunk_pixels - 1) / chunk_pixels),
        rows(this->operations.size()),
        source(int64_t{images} * height * width * pitch, numbers),
        weights(rows * (C + 49) * C, numbers),
        z((rows + 1) * pixels * C),
        statistics(2 * C),
        moments((rows + 1) * chunks * 2 * C) {
    int halo = 0, taps = 0, log_width = 3, pools = 0;
    while (1 << log_width < this->width) ++log_width;
    for (int64_t r = 0; r < rows; ++r) {
      const Operation& own = this->operations[r];
      const bool pool = own.kind == cell::kMaximum || own.kind == cell::kAverage;
      halo = std::max(halo, std::abs(own.padding));
      if (own.kind == cell::kSeparable) taps = std::max(taps, own.kernel * own.kernel);
      pools += pool;
      std::vector<int64_t> row(cell::kLayer, -1);
      row[cell::kKind] = own.kind, row[cell::kSource] = 0;
      row[cell::kHeight] = height, row[cell::kWidth] = width, row[cell::kStride] = stride;
      row[cell::kKernel] = own.kernel, row[cell::kDilation] = own.dilation;
      row[cell::kPadding] = own.padding;
      row[cell::kCout] = own.kind == cell::kDense ? C / 2 : C, row[cell::kColumn] = own.column;
      row[cell::kSpatial] = r * (C + 49) * C, row[cell::kProduct] = row[cell::kSpatial] + 49 * C;
      // The halves of FactorizedReduce share their z.
      const int64_t place = own.column > 0 ? r - 1 : r;
      row[cell::kZ] = place * pixels * C, row[cell::kMoments] = place * chunks * 2 * C;
      row[cell::kPosition] = rows * pixels * C;
      row[cell::kInner] = 0, row[cell::kInnerMoments] = rows * chunks * 2 * C;
      row[cell::kInnerFrozen] = 0;
      table.insert(table.end(), row.begin(), row.end());
    }
    pack = {0, rows, pools};
    for (int64_t i = rows * chunks * 2 * C; i < moments.size(); ++i)
      moments[i] = i / C % 2 == 0 ? numbers.next() : 50 + numbers.next();
    call = {table.data(),
            pack.data(),
            source.data(),
            z.data(),
            weights.data(),
            moments.data(),
            statistics.data(),
            pixels,
            chunk_pixels,
            kEps,
            this->height,
            this->width,
            pitch,
            0,
            halo,
            taps,
            log_width,
            log_height,
            log_images};
    const cell::Tile tile = cell::tile_of(log_width, log_height, log_images, halo, stride);
    const int between = std::max(cell::pixels_of(tile) * C, 2 * cell::kThreads);
    bytes = 8 * cell::kMostRows<C> * (2 * C + cell::kLayer) +
            4 * (C * (2 + cell::kMostRows<C> + 2 * cell::kWarps) + between + (C + taps) * C +
                 (tile.rows << log_images) * tile.columns * C);
  }

  Launch& run(unsigned seed, int64_t fewer_bytes = 0) {
    shim::launch({static_cast<unsigned>(chunks), 1, 1}, cell::kThreads, bytes - fewer_bytes, seed,
                 [&](char* shared) { cell::convolve<C, kSecond>(call, shared); });
    return *this;
  }

  // What a layer reads: behind ReLU and, in second layers, behind the norm.
  double input(int64_t image, int y, int x, int c, bool pool) const {
    double v = source[((image * in_height + y) * in_width + x) * pitch + c];
    if (kSecond) {
      const double off = v - statistics[c];
      v = off / std::sqrt(statistics[C + c] + kEps);
    }
    return pool || v > 0 ? v : 0;
  }
  bool inside(int y, int x) const { return y >= 0 && y < in_height && x >= 0 && x < in_width; }

  Sum layer(int64_t r, int64_t image, int y, int x, int out) const {
    const Operation& own = operations[r];
    const float* spatial = weights.data() + table[r * cell::kLayer + cell::kSpatial];
    const float* product = weights.data() + table[r * cell::kLayer + cell::kProduct];
    Sum sum;
    for (int c = 0; c < C; ++c)
      for (int tap = 0; tap < own.kernel * own.kernel; ++tap) {
        const int from_y = y * stride - own.padding + tap / own.kernel * own.dilation;
        const int from_x = x * stride - own.padding + tap % own.kernel * own.dilation;
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
      const int from_y = y * stride - 1 + tap / 3, from_x = x * stride - 1 + tap % 3;
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
    for (int64_t r = 0; r < rows; ++r) {
      const Operation& own = operations[r];
      const int64_t* row = table.data() + r * cell::kLayer;
      const bool pool = own.kind == cell::kMaximum || own.kind == cell::kAverage;
      for (int out = 0; out < row[cell::kCout]; ++out) {
        const int c = out + own.column;
        for (int64_t p = 0; p < pixels; ++p) {
          const int y = static_cast<int>(p % size / width), x = static_cast<int>(p % width);
          int winner = -1;
          const Sum expected =
              pool ? pooled(r, p / size, y, x, c, winner) : layer(r, p / size, y, x, out);
          DA2S_CHECK_CLOSE(float, z[row[cell::kZ] + p * C + c], expected);
          if (own.kind == cell::kMaximum) DA2S_CHECK(z[row[cell::kPosition] + p * C + c] == winner);
        }
        check_moments(row, c);
      }
    }
  }

  void check_moments(const int64_t* row, int c) const {
    for (int64_t chunk = 0; chunk < chunks; ++chunk) {
      const int64_t first = chunk * call.chunk_pixels;
      const int64_t last = std::min(first + call.chunk_pixels, pixels);
      const double* found = moments.data() + row[cell::kMoments] + chunk * 2 * C + c;
      Sum sum, squares;
      for (int64_t p = first; p < last; ++p) sum.add(z[row[cell::kZ] + p * C + c] / (last - first));
      for (int64_t p = first; p < last; ++p) {
        const double off = z[row[cell::kZ] + p * C + c] - sum.value;
        squares.add(off * off);
      }
      DA2S_CHECK_CLOSE(float, found[0], sum);
      DA2S_CHECK_CLOSE(float, found[C], squares);
    }
  }

  // Bits that say whether anything is other than it was.
  std::string written() const {
    std::string bits(reinterpret_cast<const char*>(z.data()), z.size() * sizeof(float));
    bits.append(reinterpret_cast<const char*>(moments.data()), moments.size() * sizeof(double));
    return bits.append(reinterpret_cast<const char*>(statistics.data()), 2 * C * sizeof(float));
  }

  std::vector<Operation> operations;
  int in_height, in_width, stride, height, width;
  int64_t pixels;
  int pitch;
  int64_t chunks, rows, bytes;
  Numbers numbers;
  Buffer<float> source, weights, z, statistics;
  Buffer<double> moments;
  std::vector<int64_t> table, pack;
  Convolve call;
};

const std::vector<Operation> kPools{{cell::kMaximum, 3, 1, 1}, {cell::kAverage, 3, 1, 1}};
const std::vector<Operation> kLayers{{cell::kSeparable, 3, 1, 1}, {cell::kSeparable, 5, 2, 4}};

std::vector<Operation> with_pools() {
  std::vector<Operation> all = kPools;
  all.insert(all.end(), kLayers.begin(), kLayers.end());
  return all;
}

DA2S_TEST(cuda_layers_and_pools_of_several_images) {
  if (shim::wanted()) Launch<8, false>(with_pools(), 3, 5, 7, 1, 40, 3, 2).run(1).check();
}

DA2S_TEST(cuda_reductions) {
  if (!shim::wanted()) return;
  std::vector<Operation> all = with_pools();
  all.push_back({cell::kDense, 1, 1, 0, 0});
  all.push_back({cell::kDense, 1, 1, -1, 8});
  Launch<16, false>(all, 1, 11, 13, 2, 25, 2, 0).run(2).check();
}

DA2S_TEST(cuda_second_layers) {
  if (!shim::wanted()) return;
  Launch<4, true>({{cell::kSeparable, 5, 1, 2}}, 2, 9, 6, 1, 54, 4, 1).run(3).check();
}

DA2S_TEST(cuda_smallest_tiles) {
  if (!shim::wanted()) return;
  Launch<4, true>({{cell::kSeparable, 3, 1, 1}}, 1, 3, 6, 1, 18, 0, 0).run(8).check();
  Launch<64, false>({kLayers[0], kLayers[1]}, 1, 3, 7, 2, 8, 0, 0).run(9).check();
}

DA2S_TEST(cuda_largest_windows) {
  if (shim::wanted())
    Launch<32, false>({{cell::kSeparable, 7, 1, 3}}, 1, 3, 9, 1, 27, 2, 0).run(4).check();
}

DA2S_TEST(cuda_results_do_not_depend_on_the_order_of_threads) {
  if (!shim::wanted()) return;
  const auto written = [](unsigned seed) {
    return Launch<8, false>(with_pools(), 2, 5, 7, 1, 64, 3, 1).run(seed).written();
  };
  DA2S_CHECK(written(5) == written(6));
}

DA2S_TEST(cuda_every_missing_barrier_is_noticed) {
  if (!shim::wanted()) return;
  every_missing_barrier_is_noticed([](unsigned seed) {
    // Two tiles; packs that begin with pools or with layers, and a second layer; of that also two
    // chunks, whose moments come together.
    return Launch<16, false>(with_pools(), 1, 16, 32, 1, 512, 3, 0).run(seed).written() +
           Launch<16, false>(kLayers, 1, 16, 32, 1, 512, 3, 0).run(seed).written() +
           Launch<16, true>({kLayers[0]}, 1, 16, 32, 1, 512, 3, 0).run(seed).written() +
           Launch<16, true>({kLayers[0]}, 1, 16, 32, 1, 256, 3, 0).run(seed).written();
  });
}

}  // namespace

// A launch with too little shared memory, for plant.cpp.
void cuda_overrun() { Launch<8, false>(kLayers, 1, 5, 7, 1, 40, 3, 0).run(1, 4); }

}  // namespace da2s_fast::test

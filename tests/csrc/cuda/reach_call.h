// A launch of the cell's backward kernel with a table of tasks: what the tests of its parts share.
#pragma once

#include <algorithm>
#include <cmath>
#include <string>
#include <vector>

#include "../buffers.h"
#include "../check.h"
#include "cuda/cell/backward.cuh"
#include "launch.h"

namespace da2s_fast::test {

// Chunks of images and tiles of the outputs.
struct Extents : Area {
  int chunk_images, log_height, log_images;
  int more_chunks = 0;  // than there are images for

  int chunks() const { return (images + chunk_images - 1) / chunk_images + more_chunks; }
  cell::Tile tile(int channels, int halo, int tile_stride) const {
    return cell::tile_of(channels, log_width(), log_height, log_images, halo, tile_stride);
  }
};

// How many numbers there are; of statistics, how many norms.
struct Sizes {
  int64_t states, z, gradients, weights, norms, sums;
  bool wanted = true;  // gradients of weights
  bool kept = true;    // in shared memory, what a tile hands to the next
};

// Whether a sum of numbers of this size is what it should be. Rounding errors of what it is made of
// stay far below a thousandth of that.
inline void check_about(double found, double expected, double size) {
  DA2S_CHECK(std::fabs(found - expected) <= 1e-5 * (1 + size));
}

// Every tensor is exactly as long as it must be. `gradients` and what gradients of weights come to
// are NaN at first.
struct ReachCall {
  ReachCall(int channels, const Extents& extents, const Sizes& sizes)
      : channels(channels),
        extents(extents),
        height(extents.height()),
        width(extents.width()),
        chunks(extents.chunks()),
        pixels(extents.pixels()),
        in_pixels(extents.in_pixels()),
        pitch(channels),
        kept(sizes.kept),
        states(sizes.states, numbers),
        z(sizes.z, numbers),
        gradients(sizes.gradients),
        weights(sizes.weights, numbers),
        weight_gradients(sizes.wanted ? chunks * sizes.weights : 0),
        p(2 * kOperations, numbers),
        g(2, numbers),
        statistics(2 * sizes.norms * channels, numbers),
        sums(sizes.sums) {
    make_statistics(statistics, channels);
  }

  void fill_gradients(int64_t first, int64_t end) {
    for (int64_t i = first; i < end; ++i) gradients[i] = static_cast<float>(numbers.next());
  }
  void fill_sums(int64_t first, int64_t end) {
    for (int64_t i = first; i < end; ++i) sums[i] = numbers.next();
  }

  // What tasks need in shared memory: layers whose input's tiles have this halo and stride, pools.
  void need_layers(int around, int stride) {
    const bool whole = 1 << extents.log_height >= height;
    const bool hands = stride == 1 && !whole && kept;
    const int handed = hands ? (2 * around << extents.log_width()) * channels : 0;
    need(2 * 4 * cell::kPixels * cell::kThreads + input_of(extents.tile(channels, around, stride)) +
         handed);
  }
  // FactorizedReduce: what both halves have read, next to a tile of dz.
  void need_halves() { need_layers(0, 1); }
  void need_pools() {
    const int64_t scratch = 4 * cell::kThreads;  // two doubles per thread
    need(std::max(scratch, 2 * input_of(extents.tile(channels, 1, 1))));
  }

  template <int C, int kMost>
  void run(unsigned seed, const std::vector<Task>& tasks) {
    TaskLaunch launch(tasks, chunks);
    launch.share(sums, 0);
    launch.share(weight_gradients, 0);
    launch.share(gradients, 1);
    const Table candidates_table(candidates), seconds_table(seconds), groups_table(groups),
        layers_table(layers);
    const cell::Tile tile = extents.tile(channels, 0, 1);
    const cell::Reach call = {
        .tasks = launch.tasks.data(),
        .waits = launch.waits.data(),
        .counters = launch.counters.data(),
        .candidates = candidates_table.data(),
        .seconds = seconds_table.data(),
        .groups = groups_table.data(),
        .layers = layers_table.data(),
        .states = states.data(),
        .z = z.data(),
        .gradients = gradients.data(),
        .weights = weights.data(),
        .weight_gradients = weight_gradients.size() > 0 ? weight_gradients.data() : nullptr,
        .p_weights = p.data(),
        .g_weights = weighed ? g.data() : nullptr,
        .statistics = statistics.data(),
        .sums = sums.data(),
        .pixels = pixels,
        .weight_count = weights.size(),
        .eps = kEps,
        .height = height,
        .width = width,
        .chunks = chunks,
        .images = extents.chunk_images,
        .operations = kOperations,
        .pitch = pitch,
        .halo = halo,
        .inner_halo = inner_halo,
        .taps = taps,
        .log_width = tile.log_width,
        .log_height = extents.log_height,
        .log_images = extents.log_images,
        .kept = kept};
    launch.run(bytes(), seed, [&](char* shared) { cell::reach<C, kMost>(call, shared); });
  }

  // Bits of everything that may be written.
  std::string written() const {
    return bits_of(gradients) + bits_of(sums) + bits_of(weight_gradients);
  }

  double weight(int64_t edge, int64_t operation) const {
    return p[edge * kOperations + operation] * (weighed ? g[edge] : 1);
  }

  // dL/dz of a row's output.
  double dz(const Row& row, int64_t pixel, int c) const {
    const int64_t norm = row[cell::kStatistics], edge = row[cell::kEdge];
    const double gradient = gradients[row[cell::kGradient] + pixel * row[cell::kGradientPitch] + c];
    const double scale = edge >= 0 ? weight(edge, row[cell::kOperation]) : 1;
    if (norm < 0) return scale * gradient;
    const double rstd = 1 / std::sqrt(statistics[norm + channels + c] + kEps);
    if (row[cell::kFrozen] != 0) return scale * rstd * gradient;
    const double* partial = sums.data() + row[cell::kSums];
    const double shift = total(partial, c, 2 * channels) / pixels;
    const double slope = total(partial, channels + c, 2 * channels) / pixels;
    const double centred = z[row[cell::kZ] + pixel * channels + c] - statistics[norm + c];
    return scale * rstd * (gradient - shift - centred * slope * rstd * rstd);
  }

  // The sum over chunks of one of their numbers.
  template <class T>
  double total(const T* partial, int64_t i, int64_t numbers) const {
    double sum = 0;
    for (int chunk = 0; chunk < chunks; ++chunk) sum += partial[chunk * numbers + i];
    return sum;
  }

  int channels;
  Extents extents;
  int height, width, chunks;
  int64_t pixels, in_pixels;
  int pitch;  // channels of a state
  bool kept;
  Numbers numbers;
  Buffer<float> states, z, gradients, weights, weight_gradients, p, g, statistics;
  Buffer<double> sums;
  bool weighed = false;  // edges have weights
  int halo = 0, inner_halo = 0, taps = 0;
  std::vector<Row> candidates, seconds, layers;
  std::vector<Group> groups;

 private:
  int64_t input_of(const cell::Tile& tile) const {
    return int64_t(cell::input_pixels(tile)) * channels;
  }
  void need(int64_t more) {
    room = std::max(room, more);
    products = channels;
  }
  int64_t bytes() const {
    const int64_t parts = weight_gradients.size() > 0 ? std::max(16, taps) * cell::kThreads : 0;
    return 8 * (2 * channels + cell::kLayer + cell::kGroup + 1) + sizeof(cell::Program) +
           4 * (channels * (4 + 2 + 2 * cell::kWarps + products + taps) + std::max(room, parts));
  }

  int64_t products = 0, room = 0;
};

}  // namespace da2s_fast::test

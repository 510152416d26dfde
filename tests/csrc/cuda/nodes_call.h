// A launch of the cell's forward kernel with a table of tasks: what the tests of its parts share.
#pragma once

#include <algorithm>
#include <array>
#include <cstdlib>
#include <string>
#include <vector>

#include "cuda/cell/nodes.cuh"
#include "launch.h"

namespace da2s_fast::test {

// Chunks of pixels of the outputs, and tiles.
struct PixelChunks : Area {
  int chunk_pixels, log_height, log_images;
  int more_chunks = 0;  // than there are pixels for

  int chunks() const {
    return static_cast<int>((pixels() + chunk_pixels - 1) / chunk_pixels) + more_chunks;
  }
};

// How many numbers there are; of statistics and moments, how many norms.
struct NodesSizes {
  int64_t states, z, weights, norms, moments, output = 0;
};

// Every tensor is exactly as long as it must be. The moments and the output are NaN at first.
struct NodesCall {
  NodesCall(int channels, const PixelChunks& extents, const NodesSizes& sizes)
      : channels(channels),
        extents(extents),
        height(extents.height()),
        width(extents.width()),
        chunks(extents.chunks()),
        pixels(extents.pixels()),
        in_pixels(extents.in_pixels()),
        pitch(channels),
        states(sizes.states, numbers),
        z(sizes.z, numbers),
        weights(sizes.weights, numbers),
        p(2 * kOperations, numbers),
        g(2, numbers),
        statistics(2 * sizes.norms * channels, numbers),
        output(sizes.output),
        moments(sizes.moments * chunks * 2 * channels) {
    make_statistics(statistics, channels);
  }

  template <int C>
  void run(unsigned seed, const std::vector<Task>& tasks) {
    TaskLaunch launch(tasks, chunks);
    launch.share(states, 0);
    launch.share(z, 0);
    launch.share(moments, 1);
    launch.share(statistics, 1);
    launch.share(output, 0);
    const Table packs_table(packs), layers_table(layers), mixes_table(mixes), mixed_table(mixed);
    const Needs needs = needs_of(tasks);
    const cell::Nodes call = {.tasks = launch.tasks.data(),
                              .waits = launch.waits.data(),
                              .counters = launch.counters.data(),
                              .packs = packs_table.data(),
                              .layers = layers_table.data(),
                              .mixes = mixes_table.data(),
                              .mixed = mixed_table.data(),
                              .states = states.data(),
                              .z = z.data(),
                              .weights = weights.data(),
                              .p_weights = p.data(),
                              .g_weights = weighed ? g.data() : nullptr,
                              .moments = known ? nullptr : moments.data(),
                              .statistics = statistics.data(),
                              .output = output.size() > 0 ? output.data() : nullptr,
                              .output_image = strides[0],
                              .output_channel = strides[1],
                              .output_row = strides[2],
                              .output_column = strides[3],
                              .eps = kEps,
                              .pixels = static_cast<int>(pixels),
                              .chunk_pixels = extents.chunk_pixels,
                              .height = height,
                              .width = width,
                              .images = extents.images,
                              .chunks = chunks,
                              .operations = kOperations,
                              .pitch = pitch,
                              .known = known,
                              .type = cell::kFloat,
                              .halo = needs.halo,
                              .second_halo = needs.second_halo,
                              .taps = needs.taps,
                              .log_width = extents.log_width(),
                              .log_height = extents.log_height,
                              .log_images = extents.log_images};
    launch.run(needs.bytes - fewer_bytes, seed,
               [&](char* shared) { cell::nodes<C>(call, shared); });
  }

  // Bits of everything that may be written.
  std::string written() const {
    return bits_of(states) + bits_of(z) + bits_of(moments) + bits_of(statistics) + bits_of(output);
  }

  int channels;
  PixelChunks extents;
  int height, width, chunks;
  int64_t pixels, in_pixels;
  int pitch;  // channels of a state
  Numbers numbers;
  Buffer<float> states, z, weights, p, g, statistics, output;
  Buffer<double> moments;
  std::array<int64_t, 4> strides{};  // of the output's images, channels, rows and columns
  bool weighed = false;              // edges have weights
  bool known = false;                // all statistics are
  int64_t fewer_bytes = 0;           // of shared memory than are needed
  std::vector<Pack> packs;
  std::vector<Mix> mixes;
  std::vector<Row> layers, mixed;

 private:
  struct Needs {
    int halo = 0, second_halo = 0, taps = 0;
    int64_t bytes = 0;
  };

  // What programs need to know of all rows, and their shared memory.
  Needs needs_of(const std::vector<Task>& tasks) const {
    Needs needs;
    int stride = 1;
    int64_t candidates = 0;
    for (const Task& task : tasks) {
      if (!task.counts_once()) {
        candidates = std::max(candidates, mixes[task.row][cell::kMixCandidates]);
        continue;
      }
      const Pack& pack = packs[task.row];
      int& halo = task.work == cell::kWorkSecond ? needs.second_halo : needs.halo;
      for (int64_t i = 0; i < pack[cell::kPackLength]; ++i) {
        const Row& row = layers[pack[cell::kPackFirst] + i];
        halo = std::max(halo, std::abs(static_cast<int>(row[cell::kPadding])));
        stride = std::max(stride, static_cast<int>(row[cell::kStride]));
        const int kernel = static_cast<int>(row[cell::kKernel]);
        if (row[cell::kKind] == cell::kSeparable)
          needs.taps = std::max(needs.taps, kernel * kernel);
      }
    }
    const int64_t input = std::max(input_of(needs.halo, stride), input_of(needs.second_halo, 1));
    const int64_t tile = int64_t(channels)
                         << (extents.log_width() + extents.log_height + extents.log_images);
    const int64_t between = std::max<int64_t>(tile, 2 * cell::kThreads);
    const int64_t layer = (channels + needs.taps) * channels + between + input;
    const int64_t mix = 2 * channels * candidates + 4 * cell::kPixels * cell::kThreads;
    const int rows = channels > 24 ? 192 / channels : 8;  // `kMostRows`
    const int64_t numbers =
        channels * (2 + rows + 2 * cell::kWarps) + std::max(layer, candidates > 0 ? mix : 0);
    needs.bytes =
        8 * rows * (2 * channels + cell::kLayer) + sizeof(cell::Turn) + sizeof(float) * numbers;
    return needs;
  }

  // Numbers of a tile's input.
  int64_t input_of(int halo, int stride) const {
    const cell::Tile tile = cell::tile_of(channels, extents.log_width(), extents.log_height,
                                          extents.log_images, halo, stride);
    return int64_t(cell::input_pixels(tile)) * channels;
  }
};

}  // namespace da2s_fast::test

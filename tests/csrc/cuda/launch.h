// What launches of the cell's kernels need in tests: extents, programs for a table of tasks, and
// the memory that they share.
#pragma once

#include <array>
#include <cmath>
#include <cstdint>
#include <string>
#include <vector>

#include "../buffers.h"
#include "../check.h"
#include "cuda/cell/tile.cuh"
#include "shim.h"
#include "tables.h"

namespace da2s_fast::test {

constexpr double kEps = 1e-3;
constexpr int kOperations = 8;

// A state that rows read with a stride, and what comes out.
struct Area {
  int stride, images, in_height, in_width;

  int height() const { return (in_height + stride - 1) / stride; }
  int width() const { return (in_width + stride - 1) / stride; }
  int64_t in_pixels() const { return int64_t{images} * in_height * in_width; }
  int64_t pixels() const { return int64_t{images} * height() * width(); }
  // The least width of a tile that holds whole rows.
  int log_width() const {
    int log = 3;
    while (1 << log < width()) ++log;
    return log;
  }
};

// Random numbers in the place of the means and variances of norms, (norms, 2, C).
inline void make_statistics(Buffer<float>& statistics, int channels) {
  for (int64_t i = 0; i < statistics.size(); ++i)
    if (i / channels % 2 == 1) statistics[i] = std::fabs(statistics[i]) + 0.5f;
}

template <class T>
std::string bits_of(const Buffer<T>& buffer) {
  return {reinterpret_cast<const char*>(buffer.data()), buffer.size() * sizeof(T)};
}

// Programs that do tasks, a program of each task for each chunk. All tasks wait for two counters
// that somebody else counted up, so that not only the thread that takes a ticket must know its
// task.
struct TaskLaunch {
  TaskLaunch(const std::vector<Task>& tasks, int chunks)
      : given(1 + tasks.size()),
        chunks(chunks),
        rows(tasks, chunks, {given, given + 1}),
        tasks(rows.tasks),
        waits(rows.waits),
        counters(rows.counters, 0) {
    counters[given] = counters[given + 1] = 1;
  }

  // What is there was written before one of the counters, 0 or 1, was counted up.
  template <class T>
  void share(Buffer<T>& numbers, int before) {
    memory.share(numbers.data(), numbers.size() * sizeof(T), &counters[given + before]);
  }

  // Start `body(shared)` for all programs. Behind it there is what was written for those who wait
  // for it.
  template <class Body>
  void run(int64_t bytes, unsigned seed, Body body) {
    const unsigned programs = rows.tasks.size() * chunks;
    shim::launch({programs, 1, 1}, cell::kThreads, bytes, seed, body);
    DA2S_CHECK(counters[0] == static_cast<int>(programs));
    for (const auto& row : rows.tasks) {
      const bool counts_once = row[cell::kTaskArrivals] > 0;
      DA2S_CHECK(counters[row[cell::kTaskCounter]] == (counts_once ? 1 : chunks));
      if (counts_once) DA2S_CHECK(counters[row[cell::kTaskArrivals]] == chunks);
    }
    memory.begin();
    for (int64_t i = 1; i < counters.size(); ++i) memory.acquire(&counters[i], counters[i]);
  }

  int given, chunks;
  TaskRows rows;
  const Table tasks, waits;
  Buffer<int> counters;
  shim::Memory memory;
};

}  // namespace da2s_fast::test

// Tables for launches of the cell's kernels.
#pragma once

#include <array>
#include <cstdint>
#include <vector>

#include "../buffers.h"
#include "cuda/cell/table.cuh"

namespace da2s_fast::test {

using Row = std::array<int64_t, cell::kLayer>;
using Group = std::array<int64_t, cell::kGroup>;
using Pack = std::array<int64_t, cell::kPack>;
using Mix = std::array<int64_t, cell::kMix>;

// What a kind of row does not need is nowhere.
inline Row row_of(int64_t kind) {
  Row row;
  row.fill(-1);
  row[cell::kKind] = kind, row[cell::kFrozen] = 0;
  return row;
}

// A task, and the tasks whose programs it waits for.
struct Task {
  int64_t work;
  int64_t row = 0;
  std::vector<int> after = {};

  // Whether the last program counts for all of them, once it has seen that the others arrived.
  bool counts_once() const { return work == cell::kWorkFirst || work == cell::kWorkSecond; }
};

// Rows of the tables of tasks and of what they wait for: the counters `given`, which somebody else
// counted up once, then all programs of other tasks. The counter of the tickets is the first, then
// there are those of the tasks, those given and those of the programs that arrived.
struct TaskRows {
  TaskRows(const std::vector<Task>& of, int chunks, const std::vector<int>& given)
      : counters(1 + of.size() + given.size()) {
    for (const Task& task : of) {
      const int64_t first = waits.size(), counter = 1 + tasks.size();
      for (const int before : given) waits.push_back({before, 1});
      for (const int other : task.after)
        waits.push_back({1 + other, of[other].counts_once() ? 1 : chunks});
      const int64_t length = waits.size() - first;
      const int64_t arrivals = task.counts_once() ? counters++ : 0;
      tasks.push_back({task.work, task.row, first, length, counter, arrivals});
    }
  }

  std::vector<std::array<int64_t, cell::kTask>> tasks;
  std::vector<std::array<int64_t, cell::kWait>> waits;
  int64_t counters;  // how many there are
};

// The rows of a table, exactly as many as there are.
struct Table : Buffer<int64_t> {
  template <size_t kColumns>
  explicit Table(const std::vector<std::array<int64_t, kColumns>>& rows)
      : Buffer(rows.size() * kColumns) {
    for (int64_t i = 0; i < size(); ++i) (*this)[i] = rows[i / kColumns][i % kColumns];
  }
};

}  // namespace da2s_fast::test

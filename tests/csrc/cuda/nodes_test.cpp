// Tasks of the cell's forward kernel that wait for one another in one launch.
// clang-format off
#include "shim.h"
// clang-format on

#include <cmath>
#include <stdexcept>
#include <string>
#include <vector>

#include "nodes_call.h"

namespace da2s_fast::test {
namespace {

constexpr int C = 8, kKernel = 3;

// A node made of a separable convolution, a pool and a skip, and a pool for the node behind it.
struct Made : NodesCall {
  explicit Made(const PixelChunks& extents)
      : NodesCall(C, extents,
                  {.states = 2 * extents.pixels() * C,
                   .z = 5 * extents.pixels() * C,
                   .weights = 2 * (C + kKernel * kKernel) * C,
                   .norms = 4,
                   .moments = 4,
                   .output = extents.pixels() * C}) {
    const int64_t node = pixels * C;
    // What tasks write is not there yet.
    for (int64_t i = node; i < states.size(); ++i) states[i] = NAN;
    for (int64_t i = 0; i < z.size(); ++i) z[i] = NAN;
    for (int64_t i = 0; i < statistics.size(); ++i) statistics[i] = NAN;
    const Row first = row_for(cell::kSeparable, 0), pool = row_for(cell::kMaximum, 2);
    Row second = row_for(cell::kSeparable, 1), next = row_for(cell::kAverage, 3);
    second[cell::kInner] = 0;
    next[cell::kSource] = node;
    Row skip = row_for(cell::kSkip, 3);
    skip[cell::kStatistics] = -1;
    layers = {first, second, pool, next};
    packs = {{0, 1, 0}, {1, 1, 0}, {2, 1, 1}, {3, 1, 1}};
    mixed = {second, pool, skip};
    mixes = {{0, 3, 3, node, 0, 0, 2}, {0, 3, 3, node, 0, 1, 2}};
    const int64_t size = int64_t{height} * width;
    strides = {C * size, size, width, 1};
  }

  // Its z, its norm and its weights are the ones at `place`.
  Row row_for(int64_t kind, int64_t place) const {
    const int64_t weights_of = place * (C + kKernel * kKernel) * C;
    Row row = row_of(kind);
    row[cell::kSource] = 0, row[cell::kHeight] = height, row[cell::kWidth] = width;
    row[cell::kStride] = row[cell::kDilation] = 1;
    row[cell::kKernel] = kKernel, row[cell::kPadding] = kKernel / 2;
    row[cell::kCout] = C, row[cell::kColumn] = 0;
    row[cell::kProduct] = weights_of, row[cell::kSpatial] = weights_of + C * C;
    row[cell::kZ] = place * pixels * C, row[cell::kPosition] = 4 * pixels * C;
    row[cell::kMoments] = place * chunks * 2 * C, row[cell::kStatistics] = place * 2 * C;
    row[cell::kEdge] = place % 2, row[cell::kOperation] = place;
    return row;
  }

  Made& run(unsigned seed, const std::vector<Task>& tasks) {
    NodesCall::run<C>(seed, tasks);
    return *this;
  }
};

// A chunk of an image and a half, and one of a pixel less.
const PixelChunks kExtents{1, 3, 5, 7, 53, 3, 0};

const std::vector<Task> kTasks{{cell::kWorkFirst, 0},       {cell::kWorkFirst, 2},
                               {cell::kWorkSecond, 1, {0}}, {cell::kWorkMix, 0, {1, 2}},
                               {cell::kWorkMix, 1, {1, 2}}, {cell::kWorkFirst, 3, {3, 4}}};

DA2S_TEST(cuda_tasks_of_nodes_that_wait_do_what_launches_do) {
  if (!shim::wanted()) return;
  Made apart(kExtents);
  for (Task task : kTasks) {
    task.after.clear();
    apart.run(1, {task});
  }
  DA2S_CHECK(Made(kExtents).run(2, kTasks).written() == apart.written());
  // Nothing is left that nobody has written.
  for (const auto* numbers : {&apart.states, &apart.z, &apart.statistics, &apart.output})
    for (int64_t i = 0; i < numbers->size(); ++i) DA2S_CHECK(std::isfinite((*numbers)[i]));
  for (int64_t i = 0; i < apart.moments.size(); ++i) DA2S_CHECK(std::isfinite(apart.moments[i]));
}

DA2S_TEST(cuda_tasks_of_nodes_that_do_not_wait_are_noticed) {
  if (!shim::wanted()) return;
  const std::string correct = Made(kExtents).run(1, kTasks).written();
  for (size_t task = 0; task < kTasks.size(); ++task)
    for (size_t wait = 0; wait < kTasks[task].after.size(); ++wait) {
      std::vector<Task> fewer = kTasks;
      fewer[task].after.erase(fewer[task].after.begin() + wait);
      DA2S_CHECK(Made(kExtents).run(1, fewer).written() != correct);
    }
}

DA2S_TEST(cuda_tasks_of_nodes_that_wait_for_later_ones_are_refused) {
  if (!shim::wanted()) return;
  const std::vector<Task> swapped{{cell::kWorkSecond, 1, {1}}, {cell::kWorkFirst, 0}};
  std::string what;
  try {
    Made(kExtents).run(1, swapped);
  } catch (const std::runtime_error& error) {
    what = error.what();
  }
  DA2S_CHECK(what == "a program waits for one that comes later");
}

}  // namespace
}  // namespace da2s_fast::test

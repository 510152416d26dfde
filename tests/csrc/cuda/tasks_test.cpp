// Tasks of the cell's backward kernel that wait for one another in one launch.
// clang-format off
#include "shim.h"
// clang-format on

#include <stdexcept>
#include <string>
#include <vector>

#include "reach_call.h"

namespace da2s_fast::test {
namespace {

constexpr int C = 8, kKernel = 3;

// What is to be done for an edge with a separable convolution and a pool: sums of both candidates,
// the convolution's second layer, and what both hand the state.
struct Edge : ReachCall {
  explicit Edge(const Extents& extents)
      : ReachCall(C, extents,
                  {.states = extents.pixels() * C,
                   .z = 4 * extents.pixels() * C,
                   .gradients = 3 * extents.pixels() * C,
                   .weights = 2 * (C + kKernel * kKernel) * C,
                   .norms = 3,
                   .sums = 3 * 2 * extents.chunks() * C}) {
    const int64_t node = 0, state = 2 * pixels * C;
    fill_gradients(node, node + pixels * C);
    fill_gradients(state, gradients.size());
    for (int64_t i = 0; i < pixels * C; ++i) z[3 * pixels * C + i] = static_cast<float>(i * 7 % 9);
    taps = kKernel * kKernel, halo = inner_halo = kKernel / 2;
    need_layers(halo, 1);
    need_pools();

    const Row first = layer(0), second = layer(1);
    Row pool = row_of(cell::kMaximum);
    pool[cell::kSource] = 0, pool[cell::kStride] = 1;
    pool[cell::kHeight] = height, pool[cell::kWidth] = width;
    pool[cell::kCout] = C, pool[cell::kColumn] = 0;
    pool[cell::kZ] = 2 * pixels * C, pool[cell::kPosition] = 3 * pixels * C;
    pool[cell::kStatistics] = 4 * C, pool[cell::kSums] = 4 * chunks * C;
    pool[cell::kEdge] = 1, pool[cell::kOperation] = 2;
    pool[cell::kGradient] = node, pool[cell::kGradientPitch] = C;
    candidates = {second, pool};
    seconds = {second};
    layers = {first, pool};
    groups = {{0, 2, -1, state, 1}};
  }

  // The convolution's first layer or its second.
  Row layer(int which) const {
    const int64_t weights_of = which * (C + taps) * C;
    Row row = row_of(cell::kSeparable);
    row[cell::kSource] = 0, row[cell::kHeight] = height, row[cell::kWidth] = width;
    row[cell::kStride] = row[cell::kDilation] = 1;
    row[cell::kKernel] = kKernel, row[cell::kPadding] = kKernel / 2;
    row[cell::kCout] = C, row[cell::kColumn] = 0;
    row[cell::kProduct] = weights_of, row[cell::kSpatial] = weights_of + C * C;
    row[cell::kZ] = which * pixels * C, row[cell::kStatistics] = which * 2 * C;
    row[cell::kSums] = which * 2 * chunks * C;
    row[cell::kGradient] = which == 0 ? pixels * C : 0, row[cell::kGradientPitch] = C;
    if (which == 0) return row;
    row[cell::kEdge] = row[cell::kOperation] = 1;
    row[cell::kInner] = 0, row[cell::kInnerSums] = 0;
    row[cell::kInnerGradient] = pixels * C;
    return row;
  }

  Edge& run(unsigned seed, const std::vector<Task>& tasks) {
    ReachCall::run<C, 5>(seed, tasks);
    return *this;
  }
};

// Chunks of two tiles each, and one of a single image.
const Extents kExtents{1, 5, 5, 7, 2, 3, 0};

const std::vector<Task> kTasks{{cell::kWorkSums, 0},
                               {cell::kWorkSums, 1},
                               {cell::kWorkInner, 0, {0}},
                               {cell::kWorkStates, 0, {1, 2}}};

DA2S_TEST(cuda_tasks_that_wait_do_what_launches_do) {
  if (!shim::wanted()) return;
  Edge apart(kExtents);
  for (Task task : kTasks) {
    task.after.clear();
    apart.run(1, {task});
  }
  DA2S_CHECK(Edge(kExtents).run(2, kTasks).written() == apart.written());
  // Nothing is left that nobody has written.
  for (const auto* numbers : {&apart.gradients, &apart.weight_gradients})
    for (int64_t i = 0; i < numbers->size(); ++i) DA2S_CHECK(std::isfinite((*numbers)[i]));
  for (int64_t i = 0; i < apart.sums.size(); ++i) DA2S_CHECK(std::isfinite(apart.sums[i]));
}

DA2S_TEST(cuda_tasks_that_do_not_wait_are_noticed) {
  if (!shim::wanted()) return;
  const std::string correct = Edge(kExtents).run(1, kTasks).written();
  for (size_t task = 0; task < kTasks.size(); ++task)
    for (size_t wait = 0; wait < kTasks[task].after.size(); ++wait) {
      std::vector<Task> fewer = kTasks;
      fewer[task].after.erase(fewer[task].after.begin() + wait);
      DA2S_CHECK(Edge(kExtents).run(1, fewer).written() != correct);
    }
}

DA2S_TEST(cuda_tasks_that_wait_for_later_ones_are_refused) {
  if (!shim::wanted()) return;
  const std::vector<Task> swapped{{cell::kWorkInner, 0, {1}}, {cell::kWorkSums, 0}};
  std::string what;
  try {
    Edge(kExtents).run(1, swapped);
  } catch (const std::runtime_error& error) {
    what = error.what();
  }
  DA2S_CHECK(what == "a program waits for one that comes later");
}

}  // namespace
}  // namespace da2s_fast::test

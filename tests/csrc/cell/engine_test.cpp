// The engine of the cell. Its gradients in double must be the slopes of its output, all other types
// and ways to compute must agree with double; tests/ops/test_cell_operator.py compares both passes
// with PyTorch.
#include "engine.h"

#include <algorithm>
#include <cstdio>

namespace da2s_fast::test {
namespace {

// Numbers of a plan: sizes, flags, kinds of inputs, operations, operations of every edge (bits).
std::vector<int64_t> plan_code(std::vector<int64_t> sizes, std::vector<int64_t> kinds,
                               const std::vector<int64_t>& operations,
                               const std::vector<int64_t>& active) {
  sizes.push_back(static_cast<int64_t>(kinds.size()));
  sizes.insert(sizes.end(), kinds.begin(), kinds.end());
  sizes.push_back(static_cast<int64_t>(operations.size()));
  sizes.insert(sizes.end(), operations.begin(), operations.end());
  sizes.insert(sizes.end(), active.begin(), active.end());
  return sizes;
}

// [channels, partial, nodes, outputs, reduction, norms behind pools]; the kinds and operations are
// those of da2s_fast/ops/cell/plan.py.
std::vector<CellCase> cases() {
  return {
      // DARTS, from a wider and a larger input; odd sizes; one edge has lost all operations.
      {plan_code({4, 1, 2, 2, 0, 1}, {2, 1}, {0, 1, 2, 3, 4, 7}, {63, 63, 22, 0, 59}),
       {6, 5},
       {{9, 7}, {5, 4}},
       5},
      // PC-DARTS, a reduction, some norms frozen.
      {plan_code({8, 4, 2, 2, 1, 1}, {1, 1}, {1, 2, 3, 5, 8}, {31, 31, 31, 31, 31}),
       {3, 8},
       {{7, 6}, {7, 6}},
       3,
       {0, 2, 3},
       true},
      // A mixed operation with stride, every operation, an odd number of channels.
      {plan_code({5, 1, 1, 1, 1, 0}, {0}, {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10}, {2047}),
       {5},
       {{6, 5}},
       10},
      // NAS-Bench-201: the last node alone.
      {plan_code({16, 1, 3, 1, 0, 0}, {0}, {0, 1, 9, 10, 3}, {31, 31, 30, 21, 31, 12}),
       {16},
       {{5, 6}},
       18,
       {},
       true},
      // Inputs far wider and larger than the cell, one image.
      {plan_code({4, 2, 1, 1, 1, 0}, {2, 1}, {0, 2}, {3, 3}), {37, 29}, {{13, 11}, {7, 6}}, 1},
      // One pixel.
      {plan_code({4, 2, 1, 1, 1, 1}, {0}, {1, 2, 3, 4}, {15}), {4}, {{1, 1}}, 3},
  };
}

double dot(const std::vector<double>& a, const std::vector<double>& b) {
  double sum = 0;
  for (size_t i = 0; i < a.size(); ++i) sum += a[i] * b[i];
  return sum;
}

// Whether the output changes as the gradient says when the numbers that `part` selects move.
template <class Part>
void check_slope(const CellCase& given, const CellValues& values, Part part,
                 const std::vector<double>& gradient, const char* what) {
  constexpr double kStep = 1e-6;
  Numbers numbers;
  std::vector<double> direction(gradient.size());
  for (double& value : direction) value = numbers.next_real();
  double difference = 0;
  for (const double side : {1.0, -1.0}) {
    CellValues moved = values;
    for (size_t i = 0; i < direction.size(); ++i) part(moved)[i] += side * kStep * direction[i];
    const CellResults results = compute_cell<double, double>(given, moved, false, false);
    difference += side * dot(results.output, values.gradient);
  }
  const double slope = dot(gradient, direction), found = difference / (2 * kStep);
  const bool close = std::fabs(slope - found) <= 1e-6 * (1 + std::fabs(slope));
  check(close, what, __FILE__, __LINE__);
  if (!close) std::printf("  the slope is %.12g, not %.12g\n", found, slope);
}

DA2S_TEST(cell_gradients_are_slopes) {
  for (const CellCase& given : cases()) {
    const CellValues values = random_values(given, false);
    const CellResults found = compute_cell<double, double>(given, values, true, true);
    for (size_t i = 0; i < values.inputs.size(); ++i)
      check_slope(
          given, values, [=](CellValues& v) -> auto& { return v.inputs[i]; }, found.inputs[i],
          "gradient of an input");
    check_slope(given, values, [](CellValues& v) -> auto& { return v.p; }, found.p, "of p");
    check_slope(given, values, [](CellValues& v) -> auto& { return v.g; }, found.g, "of g");
    check_slope(
        given, values, [](CellValues& v) -> auto& { return v.weights; }, found.weights,
        "of weights");
  }
}

// Largest distance, relative to the largest number.
void check_near(const std::vector<double>& found, const std::vector<double>& wanted,
                double tolerance, const char* what) {
  double apart = 0, largest = 0;
  bool finite = found.size() == wanted.size();
  for (size_t i = 0; finite && i < found.size(); ++i) {
    finite = std::isfinite(found[i]) && std::isfinite(wanted[i]);
    apart = std::max(apart, std::fabs(found[i] - wanted[i]));
    largest = std::max(largest, std::fabs(wanted[i]));
  }
  check(finite && apart <= tolerance * largest, what, __FILE__, __LINE__);
}

void check_all_near(const CellResults& found, const CellResults& wanted, double tolerance) {
  check_near(found.output, wanted.output, tolerance, "output");
  check_near(found.p, wanted.p, tolerance, "gradient of p");
  check_near(found.g, wanted.g, tolerance, "gradient of g");
  check_near(found.weights, wanted.weights, tolerance, "gradient of weights");
  for (size_t i = 0; i < wanted.inputs.size(); ++i)
    check_near(found.inputs[i], wanted.inputs[i], tolerance, "gradient of an input");
}

DA2S_TEST(cell_computes_alike_in_all_types) {
  for (const CellCase& given : cases()) {
    const CellValues values = random_values(given, true);
    const CellResults wanted = compute_cell<double, double>(given, values, true, true);
    for (const bool save : {false, true}) {
      check_all_near(compute_cell<double, double>(given, values, save, true), wanted, 1e-12);
      check_all_near(compute_cell<float, float>(given, values, save, true), wanted, 1e-4);
      check_all_near(compute_cell<float, BFloat16>(given, values, save, true), wanted, 1e-2);
      check_all_near(compute_cell<float, Float16>(given, values, save, true), wanted, 1e-3);
    }
  }
}

}  // namespace
}  // namespace da2s_fast::test

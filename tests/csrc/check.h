// The checks of the C++ tests: nothing to install, a failure does not end the test.
//
//   DA2S_TEST(name_of_the_test) {
//     DA2S_CHECK(1 + 1 == 2);
//     DA2S_CHECK_CLOSE(float, computed, sum);
//   }
#pragma once

#include <cmath>
#include <cstdint>

namespace da2s_fast::test {

struct Test {
  Test(const char* name, void (*run)());
  const char* name;
  void (*run)();
  const Test* next;
};

void check(bool passed, const char* what, const char* file, int line);

// What a sum should be, in double, and the size of what was added up.
struct Sum {
  double value = 0;
  double magnitude = 0;
  void add(double term) {
    value += term;
    magnitude += std::fabs(term);
  }
};

// Whether a sum was computed as well as arithmetic with this rounding error allows; the error of a
// missing or doubled term is far larger.
void check_close(double computed, const Sum& sum, double rounding, const char* what,
                 const char* file, int line);

// The spacing of a type's numbers above 1.
template <class T>
constexpr double kRounding = 0;
template <>
constexpr double kRounding<float> = 0x1p-23;
template <>
constexpr double kRounding<double> = 0x1p-52;

}  // namespace da2s_fast::test

#define DA2S_TEST(name)                                                \
  static void name();                                                  \
  static const ::da2s_fast::test::Test da2s_test_##name{#name, &name}; \
  static void name()

#define DA2S_CHECK(condition) ::da2s_fast::test::check(condition, #condition, __FILE__, __LINE__)

#define DA2S_CHECK_CLOSE(type, computed, sum)                                                  \
  ::da2s_fast::test::check_close(computed, sum, ::da2s_fast::test::kRounding<type>, #computed, \
                                 __FILE__, __LINE__)

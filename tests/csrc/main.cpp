// Runs every test, or those whose names contain the argument; DA2S_ISA chooses the kernels.
//
//   tests             all tests
//   tests --usable    the instruction sets that run here
//   tests --plant X   makes a mistake that must be reported, see plant.cpp
#include <cstdio>
#include <cstring>

#include "check.h"
#include "cpu/isa.h"

namespace da2s_fast::test {

bool plant(const char* name);

namespace {

const Test* first = nullptr;
int64_t checks = 0, failures = 0;

}  // namespace

Test::Test(const char* name, void (*run)()) : name(name), run(run), next(first) { first = this; }

void check(bool passed, const char* what, const char* file, int line) {
  ++checks;
  if (!passed && ++failures <= 20) std::printf("%s:%d: failed: %s\n", file, line, what);
}

void check_close(double computed, const Sum& sum, double rounding, const char* what,
                 const char* file, int line) {
  const bool close = std::fabs(computed - sum.value) <= 32 * rounding * sum.magnitude;
  check(close, what, file, line);
  if (!close && failures <= 20)
    std::printf("  is %.17g, not %.17g, a sum of terms of %g in all\n", computed, sum.value,
                sum.magnitude);
}

int run(const char* wanted) {
  int64_t tests = 0;
  for (const Test* test = first; test != nullptr; test = test->next) {
    if (std::strstr(test->name, wanted) == nullptr) continue;
    const int64_t before = failures;
    test->run();
    ++tests;
    if (failures > before) std::printf("%s failed\n", test->name);
  }
  std::printf("%s: %lld tests, %lld checks, %lld failed\n", isa_name(chosen_isa()),
              static_cast<long long>(tests), static_cast<long long>(checks),
              static_cast<long long>(failures));
  return failures > 0 || checks == 0 ? 1 : 0;
}

}  // namespace da2s_fast::test

int main(int count, char** arguments) {
  const char* argument = count > 1 ? arguments[1] : "";
  if (std::strcmp(argument, "--usable") == 0) {
    for (const da2s_fast::Isa isa : da2s_fast::kCompiledIsas)
      if (da2s_fast::isa_runs_here(isa)) std::printf("%s\n", da2s_fast::isa_name(isa));
    return 0;
  }
  if (count > 2 && std::strcmp(argument, "--plant") == 0)
    return da2s_fast::test::plant(arguments[2]) ? 0 : 1;
  return da2s_fast::test::run(argument);
}

// Leaves out one barrier after the other, to see that it is missed.
#pragma once

#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <initializer_list>
#include <string>

#include "../check.h"
#include "shim.h"

namespace da2s_fast::test {

// `written(seed)` are the bits of everything that is written. Whether they differ without a
// barrier, or the process ends, is found out in one of its own: what is read too early may be an
// address.
template <class Written>
bool is_missed(const shim::Place& barrier, const Written& written, const std::string& correct) {
  const pid_t child = fork();
  if (child == 0) {
    if (std::freopen("/dev/null", "w", stderr) == nullptr) _exit(0);
    shim::missing_barrier = barrier;
    for (unsigned seed = 8; seed < 12; ++seed)
      if (written(seed) != correct) _exit(1);
    _exit(0);
  }
  int status = 0;
  return waitpid(child, &status, 0) == child && status != 0;
}

// Barriers of the files `elsewhere` are those of other tests.
template <class Written>
void every_missing_barrier_is_noticed(const Written& written,
                                      std::initializer_list<std::string> elsewhere = {}) {
  shim::barriers().clear();
  const std::string correct = written(7);
  for (const shim::Place& barrier : shim::barriers()) {
    const auto is_there = [&](const auto& file) { return barrier.first.ends_with(file); };
    if (std::any_of(elsewhere.begin(), elsewhere.end(), is_there)) continue;
    const std::string what =
        "the barrier of " + barrier.first + ":" + std::to_string(barrier.second);
    check(is_missed(barrier, written, correct), what.c_str(), __FILE__, __LINE__);
  }
}

}  // namespace da2s_fast::test

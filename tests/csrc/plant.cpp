// Mistakes on purpose, in calls of the kernels: the Makefile wants to see every one reported.
#include <cstdio>
#include <cstring>

#include "buffers.h"
#include "cpu/cell/kernels.h"
#include "cpu/mixed_sum.h"

namespace da2s_fast::test {

[[gnu::weak]] void cuda_overrun();  // ThreadSanitizer has none

namespace {

constexpr int64_t kElements = 33;
Block block(int64_t elements) { return {0, 1, 0, elements, 0, 1}; }

// Reads one element that is not there.
void overrun() {
  const Buffer<float> g(kElements, 1);
  double total;
  DA2S_SIMD_CALL(block_total, block(kElements + 1), g.data(), &total);
}

// Reads a vector of which the last element is not there.
void short_vector() {
  const int64_t lanes = DA2S_SIMD_CALL(vector_bytes) / static_cast<int64_t>(sizeof(float));
  const Buffer<float> in(9 * lanes, 0), weights(9 * lanes - 1, 1);
  Buffer<float> out(lanes);
  DA2S_SIMD_CALL(depthwise<float>, Depthwise{3, 1, 1, lanes},
                 (Grid<const float>{in.data(), 3 * lanes, lanes}), weights.data(),
                 (Grid<float>{out.data(), lanes, lanes}), Size{1, 1}, false);
}

// Computes a position that no integer holds.
void overflow() {
  const Buffer<float> g(kElements, 1);
  double total;
  Block far = block(kElements);
  far.offset = INT64_MAX;
  DA2S_SIMD_CALL(block_total, far, g.data(), &total);
}

// Two threads write one sum.
void race() {
  const Buffer<float> g(kElements, 1);
  double total;
  in_threads(2, [&](int64_t) { DA2S_SIMD_CALL(block_total, block(kElements), g.data(), &total); });
}

}  // namespace

bool plant(const char* name) {
  const struct {
    const char* name;
    void (*run)();
  } mistakes[] = {{"overrun", overrun},
                  {"short-vector", short_vector},
                  {"overflow", overflow},
                  {"race", race},
                  {"cuda-overrun", cuda_overrun}};
  for (const auto& mistake : mistakes)
    if (std::strcmp(mistake.name, name) == 0) {
      mistake.run();
      std::printf("nobody reported: %s\n", name);
      return true;
    }
  std::printf("no such mistake: %s\n", name);
  return false;
}

}  // namespace da2s_fast::test

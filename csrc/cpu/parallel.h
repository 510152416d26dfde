// Work on several threads: torch's pool inside the library, plain threads in a program without
// torch (DA2S_STANDALONE), which is how the sanitizers see the kernels.
#pragma once

#include <cstdint>

#ifdef DA2S_STANDALONE
#include <algorithm>
#include <thread>
#include <vector>
#else
#include <torch/csrc/stable/ops.h>
#endif

namespace da2s_fast {

// Calls work(first, last + 1) on ranges that together cover [begin, end), each of `grain` or more.
template <class Work>
void parallel_for(int64_t begin, int64_t end, int64_t grain, Work work) {
#ifdef DA2S_STANDALONE
  const int64_t ranges = std::clamp<int64_t>((end - begin) / std::max<int64_t>(grain, 1), 1, 4);
  std::vector<std::thread> threads;
  for (int64_t i = 0; i < ranges; ++i)
    threads.emplace_back(work, begin + (end - begin) * i / ranges,
                         begin + (end - begin) * (i + 1) / ranges);
  for (std::thread& thread : threads) thread.join();
#else
  torch::stable::parallel_for(begin, end, grain, work);
#endif
}

}  // namespace da2s_fast

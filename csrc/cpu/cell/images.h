// How a batch is cut into groups of images (kernels.h) and those into chunks and blocks.
#pragma once

#include <algorithm>
#include <array>
#include <atomic>
#include <cstdint>
#include <numeric>
#include <utility>

#include "../parallel.h"

namespace da2s_fast {

// Sums over the batch are taken chunk by chunk and the chunks' added in order. How many there are
// depends on the batch alone, so results do not depend on the number of threads.
constexpr int64_t kMostChunks = 16;

struct Images {
  // `channels` times the images of a group make whole vectors of `vector` elements.
  Images(int64_t batch, int64_t channels, int64_t vector)
      : Images(batch, vector / std::gcd(vector, channels)) {}
  Images(int64_t batch, int64_t per_group)
      : batch(batch),
        per_group(per_group),
        groups((batch + per_group - 1) / per_group),
        chunks(std::min(groups, kMostChunks)) {}

  int64_t batch;
  int64_t per_group;
  int64_t groups;
  int64_t chunks;

  int64_t first(int64_t chunk) const { return chunk * groups / chunks; }
  // Images of a group that there are; the last group may be filled up.
  int64_t valid(int64_t group) const { return std::min(per_group, batch - group * per_group); }
  // Images of a chunk.
  int64_t count(int64_t chunk) const {
    return std::min(batch, first(chunk + 1) * per_group) - first(chunk) * per_group;
  }
};

// Groups that are worked on together: one operation after the other on all of them, so that its
// weights are read once.
struct GroupBlock {
  int64_t chunk;
  int64_t begin, end;  // groups
  int64_t groups() const { return end - begin; }
  int64_t index(int64_t group) const { return group - begin; }
};

// Calls work(block, scratch) for all blocks of at most `size` groups, several at a time, with a
// scratch = take() for each thread, handed to give_back(scratch) at the end. A thread begins with
// the chunks that are its own in every loop, which its cache may still hold; whoever is done early
// takes what others have left. Reversed, a loop comes first to what the loop before it did last.
template <class Take, class GiveBack, class Work>
void for_each_block(const Images& images, int64_t size, bool reversed, Take take,
                    GiveBack give_back, Work work) {
  std::array<std::atomic<bool>, kMostChunks> taken{};
  parallel_for(0, images.chunks, 1, [&](int64_t begin, int64_t end) {
    auto scratch = take();
    for (int64_t i = 0; i < images.chunks; ++i) {
      const int64_t chunk = (reversed ? end - 1 - i + images.chunks : begin + i) % images.chunks;
      if (taken[chunk].exchange(true, std::memory_order_relaxed)) continue;
      for (int64_t at = images.first(chunk); at < images.first(chunk + 1); at += size)
        work(GroupBlock{chunk, at, std::min(at + size, images.first(chunk + 1))}, scratch);
    }
    give_back(std::move(scratch));
  });
}

}  // namespace da2s_fast

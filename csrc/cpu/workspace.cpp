#include "workspace.h"

#include <sys/mman.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <mutex>
#include <new>
#include <vector>

namespace da2s_fast {
namespace {

// Large blocks begin with whole huge pages: where the system has them, one fault instead of 512.
// What is left of a block has small ones, of which none stays empty.
constexpr size_t kHugePage = size_t{2} << 20, kSmallPage = size_t{64} << 10;

size_t whole_pages(size_t bytes) {
  return std::max<size_t>(1, (bytes + kSmallPage - 1) / kSmallPage) * kSmallPage;
}

void* map(size_t bytes) {
  const bool huge = bytes >= kHugePage;
  // A page more than asked for, to begin where a huge page does.
  const size_t more = huge ? kHugePage : 0;
  void* raw =
      mmap(nullptr, bytes + more, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (raw == MAP_FAILED) throw std::bad_alloc();
  if (!huge) return raw;
  char* begin = static_cast<char*>(raw);
  char* data = begin + (more - reinterpret_cast<uintptr_t>(begin) % more) % more;
  if (data != begin) munmap(begin, data - begin);
  if (data != begin + more) munmap(data + bytes, begin + more - data);
#ifdef MADV_HUGEPAGE
  madvise(data, bytes, MADV_HUGEPAGE);
#endif
  return data;
}

struct Block {
  void* data;
  size_t bytes;
};

// The blocks of one use. Free ones are in the order in which they came back.
class Blocks {
 public:
  explicit Blocks(Workspace::Use use) : use_(use) {}

  // A block of at least so many bytes: the smallest free one that is large enough, or a new one.
  Block take(size_t bytes) {
    auto best = free_.end();
    for (auto block = free_.begin(); block != free_.end(); ++block)
      if (fits(bytes, block->bytes) && (best == free_.end() || block->bytes < best->bytes))
        best = block;
    Block taken{nullptr, bytes};
    if (best != free_.end()) {
      taken = *best;
      free_.erase(best);
    } else {
      if (use_ == Workspace::Use::call) unmap_largest();
      taken.data = map(bytes);
      total_ += bytes;
    }
    used_ += taken.bytes;
    most_ = std::max(most_, used_);
    // Sizes that nobody asks for any more go, the oldest first; a quarter is for the order in which
    // blocks come and go.
    while (total_ > most_ + most_ / 4 && !free_.empty()) unmap(free_.begin());
    return taken;
  }

  void give_back(const Block& block) {
    used_ -= block.bytes;
    free_.push_back(block);
  }

  void release() {
    while (!free_.empty()) unmap(free_.begin());
    most_ = used_;
  }

  size_t total() const { return total_; }

 private:
  // Many blocks are kept at the same time: there a much larger one would be wasted.
  bool fits(size_t wanted, size_t offered) const {
    return offered >= wanted && (use_ == Workspace::Use::call || offered <= wanted + wanted / 4);
  }

  // A larger block than all free ones takes the place of the largest, which later calls can do
  // without.
  void unmap_largest() {
    const auto smaller = [](const Block& a, const Block& b) { return a.bytes < b.bytes; };
    const auto largest = std::max_element(free_.begin(), free_.end(), smaller);
    if (largest != free_.end()) unmap(largest);
  }

  void unmap(std::vector<Block>::iterator block) {
    munmap(block->data, block->bytes);
    total_ -= block->bytes;
    free_.erase(block);
  }

  Workspace::Use use_;
  std::vector<Block> free_;
  size_t total_ = 0, used_ = 0;
  size_t most_ = 0;  // that were in use at the same time
};

struct Pool {
  std::mutex mutex;
  Blocks call{Workspace::Use::call}, kept{Workspace::Use::kept};

  Blocks& of(Workspace::Use use) { return use == Workspace::Use::call ? call : kept; }
};

// Never destroyed: blocks may come back while the process ends.
Pool& pool() {
  static Pool* made = new Pool;
  return *made;
}

}  // namespace

Workspace::Workspace(size_t bytes, Use use) : use_(use) {
  {
    const std::lock_guard<std::mutex> lock(pool().mutex);
    const Block block = pool().of(use).take(whole_pages(bytes));
    data_ = block.data;
    bytes_ = block.bytes;
  }
  if (std::getenv("DA2S_POISON")) std::memset(data_, 0xff, bytes);
}

Workspace::~Workspace() {
#ifdef __SANITIZE_ADDRESS__
  __asan_unpoison_memory_region(data_, bytes_);  // what arenas have left
#endif
  const std::lock_guard<std::mutex> lock(pool().mutex);
  pool().of(use_).give_back({data_, bytes_});
}

int64_t workspace_bytes() {
  const std::lock_guard<std::mutex> lock(pool().mutex);
  return static_cast<int64_t>(pool().call.total() + pool().kept.total());
}

void release_workspaces() {
  const std::lock_guard<std::mutex> lock(pool().mutex);
  pool().call.release();
  pool().kept.release();
}

}  // namespace da2s_fast

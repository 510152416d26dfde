#include "workspace.h"

#include <sys/mman.h>

#include <cstdlib>
#include <cstring>
#include <iterator>
#include <map>
#include <mutex>
#include <new>

namespace da2s_fast {
namespace {

// Blocks are whole huge pages: where the system has them, one fault instead of 512.
constexpr size_t kPage = size_t{2} << 20;

using Blocks = std::multimap<size_t, void*>;  // by size

struct Pool {
  std::mutex mutex;
  Blocks call, kept;  // not in use
  size_t total = 0;

  Blocks& of(Workspace::Use use) { return use == Workspace::Use::call ? call : kept; }

  void unmap(Blocks& blocks, Blocks::iterator block) {
    munmap(block->second, block->first);
    total -= block->first;
    blocks.erase(block);
  }
};

// Never destroyed: blocks may come back while the process ends.
Pool& pool() {
  static Pool* made = new Pool;
  return *made;
}

void* map(size_t bytes) {
  // A page more than asked for, of which whole huge pages are kept.
  void* raw =
      mmap(nullptr, bytes + kPage, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (raw == MAP_FAILED) throw std::bad_alloc();
  char* begin = static_cast<char*>(raw);
  char* data = begin + (kPage - reinterpret_cast<uintptr_t>(begin) % kPage) % kPage;
  if (data != begin) munmap(begin, data - begin);
  if (data != begin + kPage) munmap(data + bytes, begin + kPage - data);
#ifdef MADV_HUGEPAGE
  madvise(data, bytes, MADV_HUGEPAGE);
#endif
  return data;
}

// A block of at least `bytes`, which becomes its size.
void* take(size_t& bytes, Workspace::Use use) {
  Pool& all = pool();
  const std::lock_guard<std::mutex> lock(all.mutex);
  Blocks& blocks = all.of(use);
  const auto found = blocks.lower_bound(bytes);  // the smallest that is large enough
  // Many blocks are kept at the same time: there a much larger one is not wasted.
  const bool fits =
      use == Workspace::Use::call || (found != blocks.end() && found->first <= bytes + bytes / 4);
  if (found != blocks.end() && fits) {
    bytes = found->first;
    void* data = found->second;
    blocks.erase(found);
    return data;
  }
  // A new block takes the place of free ones that are as large together: the pool grows to what is
  // used at the same time, not to the sum of all sizes that were ever asked for.
  for (size_t gone = 0; gone < bytes && !blocks.empty();) {
    const auto largest = std::prev(blocks.end());
    gone += largest->first;
    all.unmap(blocks, largest);
  }
  void* data = map(bytes);
  all.total += bytes;
  return data;
}

}  // namespace

Workspace::Workspace(size_t bytes, Use use)
    : use_(use), bytes_((bytes + kPage - 1) / kPage * kPage), data_(take(bytes_, use)) {
  if (std::getenv("DA2S_POISON")) std::memset(data_, 0xff, bytes);
}

Workspace::~Workspace() {
  Pool& all = pool();
  const std::lock_guard<std::mutex> lock(all.mutex);
  all.of(use_).emplace(bytes_, data_);
}

int64_t workspace_bytes() {
  Pool& all = pool();
  const std::lock_guard<std::mutex> lock(all.mutex);
  return static_cast<int64_t>(all.total);
}

void release_workspaces() {
  Pool& all = pool();
  const std::lock_guard<std::mutex> lock(all.mutex);
  for (Blocks* blocks : {&all.call, &all.kept})
    while (!blocks->empty()) all.unmap(*blocks, blocks->begin());
}

}  // namespace da2s_fast

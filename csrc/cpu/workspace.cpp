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

struct Pool {
  std::mutex mutex;
  std::multimap<size_t, void*> free;  // by size
  size_t total = 0;
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
void* take(size_t& bytes) {
  Pool& all = pool();
  const std::lock_guard<std::mutex> lock(all.mutex);
  const auto found = all.free.lower_bound(bytes);  // the smallest that is large enough
  if (found != all.free.end()) {
    bytes = found->first;
    void* data = found->second;
    all.free.erase(found);
    return data;
  }
  // A larger block takes the place of the largest there is: the pool grows to what is used at the
  // same time, not to the sum of all sizes that were ever asked for.
  if (!all.free.empty()) {
    const auto largest = std::prev(all.free.end());
    munmap(largest->second, largest->first);
    all.total -= largest->first;
    all.free.erase(largest);
  }
  void* data = map(bytes);
  all.total += bytes;
  return data;
}

}  // namespace

Workspace::Workspace(size_t bytes) : bytes_((bytes + kPage - 1) / kPage * kPage) {
  data_ = take(bytes_);
  if (std::getenv("DA2S_POISON")) std::memset(data_, 0xff, bytes);
}

Workspace::~Workspace() {
  Pool& all = pool();
  const std::lock_guard<std::mutex> lock(all.mutex);
  all.free.emplace(bytes_, data_);
}

int64_t workspace_bytes() {
  Pool& all = pool();
  const std::lock_guard<std::mutex> lock(all.mutex);
  return static_cast<int64_t>(all.total);
}

void release_workspaces() {
  Pool& all = pool();
  const std::lock_guard<std::mutex> lock(all.mutex);
  for (const auto& [bytes, data] : all.free) {
    munmap(data, bytes);
    all.total -= bytes;
  }
  all.free.clear();
}

}  // namespace da2s_fast

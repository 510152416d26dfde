// Memory for what lives within one operator call, kept from call to call: fresh memory costs a page
// fault every few thousand bytes, more than the kernels need to fill it.
#pragma once

#include <cstddef>
#include <cstdint>

#ifdef __SANITIZE_ADDRESS__
#include <sanitizer/asan_interface.h>
#endif

namespace da2s_fast {

// A block of at least `bytes`, aligned to a cache line, returned to the pool at the end of its
// life. Its content is whatever the last user left; with DA2S_POISON set in the environment it is
// NaN, so that tests see what is read before it is written.
class Workspace {
 public:
  // What lives during a call only, or what is kept from a forward pass for its backward pass. Both
  // have blocks of their own: a small one that is kept must not hold what a call needs.
  enum class Use { call, kept };

  explicit Workspace(size_t bytes, Use use = Use::call);
  ~Workspace();
  Workspace(const Workspace&) = delete;
  Workspace& operator=(const Workspace&) = delete;

  void* data() const { return data_; }

 private:
  Use use_;
  size_t bytes_;
  void* data_;
};

// What all blocks hold together, in use or not.
int64_t workspace_bytes();

// Gives blocks that are not in use back to the system.
void release_workspaces();

// AddressSanitizer shall see what happens beside a piece: behind each lies a line that nobody may
// touch, and no two share memory.
#ifdef __SANITIZE_ADDRESS__
constexpr bool kWatched = true;
#else
constexpr bool kWatched = false;
#endif

// Takes pieces of a block, one after the other; without a block it only counts.
class Arena {
 public:
  explicit Arena(void* data = nullptr) : data_(static_cast<char*>(data)) {}

  template <class T>
  T* take(int64_t count) {
    const size_t begin = used_, end = begin + count * sizeof(T);
    used_ = (end + kLine - 1) / kLine * kLine + (kWatched ? kLine : 0);
    if (data_ == nullptr) return nullptr;
#ifdef __SANITIZE_ADDRESS__
    __asan_poison_memory_region(data_ + end, used_ - end);
#endif
    return reinterpret_cast<T*>(data_ + begin);
  }
  size_t used() const { return used_; }

 private:
  static constexpr size_t kLine = 64;
  char* data_;
  size_t used_ = 0;
};

}  // namespace da2s_fast

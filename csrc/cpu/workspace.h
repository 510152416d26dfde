// Memory for what lives within one operator call, kept from call to call: fresh memory costs a page
// fault every few thousand bytes, more than the kernels need to fill it.
#pragma once

#include <cstddef>
#include <cstdint>

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

// Takes pieces of a block, one after the other; without a block it only counts.
class Arena {
 public:
  explicit Arena(void* data = nullptr) : data_(static_cast<char*>(data)) {}

  template <class T>
  T* take(int64_t count) {
    T* piece = reinterpret_cast<T*>(data_ + used_);
    used_ += (count * sizeof(T) + kLine - 1) / kLine * kLine;
    return data_ == nullptr ? nullptr : piece;
  }
  size_t used() const { return used_; }

 private:
  static constexpr size_t kLine = 64;
  char* data_;
  size_t used_ = 0;
};

}  // namespace da2s_fast

// Memory in which no access beside the elements goes unnoticed, numbers to fill it with, and
// threads to share it.
#pragma once

#include <sys/mman.h>
#include <unistd.h>

#include <cmath>
#include <cstdint>
#include <cstring>
#include <new>
#include <thread>
#include <vector>

#include "cpu/scalar.h"

namespace da2s_fast::test {

inline double number(float value) { return value; }
inline double number(double value) { return value; }
inline double number(BFloat16 value) {
  const uint32_t bits = uint32_t{value.bits} << 16;
  float wide;
  std::memcpy(&wide, &bits, sizeof wide);
  return wide;
}
inline double number(Float16 value) {
  const int exponent = value.bits >> 10 & 31, mantissa = value.bits & 1023;
  const double sign = value.bits >> 15 ? -1 : 1;
  if (exponent == 31) return mantissa ? NAN : sign * INFINITY;
  return sign * (exponent ? std::ldexp(1024 + mantissa, exponent - 25) : std::ldexp(mantissa, -24));
}

// Stores a number that the type holds exactly.
inline void store_exact(double value, float& to) { to = static_cast<float>(value); }
inline void store_exact(double value, double& to) { to = value; }
inline void store_exact(double value, BFloat16& to) {
  const float narrow = static_cast<float>(value);
  uint32_t bits;
  std::memcpy(&bits, &narrow, sizeof bits);
  to.bits = static_cast<uint16_t>(bits >> 16);
}
inline void store_exact(double value, Float16& to) {
  int exponent;
  const double fraction = std::frexp(std::fabs(value), &exponent);
  to.bits = static_cast<uint16_t>((value < 0 ? 0x8000 : 0) +
                                  (value == 0 ? 0 : (exponent + 13) * 1024 + fraction * 2048));
}

// The same sequence in every run, between -1 and 1.
class Numbers {
 public:
  // Multiples of 1/64, some of them zero, which all types hold exactly.
  double next() {
    advance();
    return (static_cast<double>(state_ >> 57) - 64) / 64;
  }
  // Neither zeros nor ties.
  double next_real() {
    advance();
    return static_cast<double>(state_ >> 11) * 0x1p-52 - 1;
  }

 private:
  void advance() { state_ = state_ * 6364136223846793005u + 1442695040888963407u; }

  uint64_t state_ = 1;
};

// Exactly so many elements, NaN at first. AddressSanitizer watches both ends. Without it the
// elements end where a page that nobody may touch begins: that also catches instructions which
// sanitizers do not see (masked loads), and shows kernels the least aligned pointers.
template <class T>
class Buffer {
 public:
  explicit Buffer(int64_t size) : size_(size) {
#ifdef __SANITIZE_ADDRESS__
    data_ = static_cast<T*>(::operator new(bytes(), kLine));
#else
    pages_ = (bytes() + page() - 1) / page() * page();
    void* memory =
        mmap(nullptr, pages_ + page(), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (memory == MAP_FAILED) throw std::bad_alloc();
    memory_ = static_cast<char*>(memory);
    mprotect(memory_ + pages_, page(), PROT_NONE);
    data_ = reinterpret_cast<T*>(memory_ + pages_ - bytes());
#endif
    std::memset(static_cast<void*>(data_), 0xff, bytes());
  }
  Buffer(int64_t size, T value) : Buffer(size) {
    for (int64_t i = 0; i < size; ++i) data_[i] = value;
  }
  Buffer(int64_t size, Numbers& numbers) : Buffer(size) {
    for (int64_t i = 0; i < size; ++i) store_exact(numbers.next(), data_[i]);
  }
  ~Buffer() {
#ifdef __SANITIZE_ADDRESS__
    ::operator delete(data_, kLine);
#else
    munmap(memory_, pages_ + page());
#endif
  }
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;

  T* data() { return data_; }
  const T* data() const { return data_; }
  int64_t size() const { return size_; }
  T& operator[](int64_t i) { return data_[i]; }
  const T& operator[](int64_t i) const { return data_[i]; }

 private:
  // What is written past the caches begins with a line of them.
  static constexpr std::align_val_t kLine{64};

  size_t bytes() const { return size_ * sizeof(T); }
  static size_t page() { return static_cast<size_t>(sysconf(_SC_PAGESIZE)); }

  int64_t size_;
  T* data_;
#ifndef __SANITIZE_ADDRESS__
  char* memory_;
  size_t pages_;
#endif
};

// Calls work(task) for every task on some threads, neighbouring tasks on different ones.
template <class Work>
void in_threads(int64_t tasks, Work work) {
  constexpr int64_t kThreads = 3;
  std::vector<std::thread> threads;
  for (int64_t thread = 0; thread < kThreads; ++thread)
    threads.emplace_back([=] {
      for (int64_t task = thread; task < tasks; task += kThreads) work(task);
    });
  for (std::thread& thread : threads) thread.join();
}

}  // namespace da2s_fast::test

// Memory that the programs of a launch share, shown to each as late as a GPU may show it: what a
// program has not written itself it sees once it has waited for a counter, as it was when somebody
// counted that up, and before it sees NaN. Tests have programs run one after the other, so that
// otherwise nobody would notice one that does not wait, or that counts up too early. Unnoticed goes
// one that overwrites what an earlier one could still be reading.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <map>
#include <stdexcept>
#include <vector>

namespace da2s_fast::shim {

class Memory {
 public:
  // While it lives, it is the launches'.
  Memory();
  ~Memory();
  Memory(const Memory&) = delete;
  Memory& operator=(const Memory&) = delete;

  // What is there was written before the counter was counted up for the first time.
  void share(void* data, size_t bytes, const int* counter);
  // Another program: it has waited for nothing.
  void begin();
  // The program has written everything that who waits for the counter needs.
  void release(const int* counter);
  // It has seen the counter that high, or higher: whatever was written later it may miss.
  void acquire(const int* counter, int count);

 private:
  struct Word {
    uint32_t bits = ~0u;
    uint32_t time = 0;
  };
  using Words = std::vector<Word>;
  struct Region {
    char* data;
    Words seen;                                         // by the program, or written
    std::map<const int*, std::vector<Words>> released;  // each time that a counter was counted up
  };

  // What the program has written meanwhile.
  void note();
  // The newer words.
  static void update(Words& to, const Words& from);

  std::vector<Region> regions_;
  uint32_t time_ = 0;
};

inline Memory* memory = nullptr;

inline Memory::Memory() { memory = this; }
inline Memory::~Memory() { memory = nullptr; }

inline void Memory::share(void* data, size_t bytes, const int* counter) {
  Region region{static_cast<char*>(data), Words(bytes / sizeof(uint32_t)), {}};
  ++time_;
  Words words(region.seen.size());
  for (size_t i = 0; i < words.size(); ++i) {
    std::memcpy(&words[i].bits, region.data + i * sizeof(uint32_t), sizeof(uint32_t));
    words[i].time = time_;
  }
  region.released[counter].push_back(std::move(words));
  regions_.push_back(std::move(region));
}

inline void Memory::begin() {
  for (Region& region : regions_) {
    region.seen.assign(region.seen.size(), {});
    std::memset(region.data, 0xff, region.seen.size() * sizeof(uint32_t));
  }
}

inline void Memory::note() {
  ++time_;
  for (Region& region : regions_)
    for (size_t i = 0; i < region.seen.size(); ++i) {
      uint32_t bits;
      std::memcpy(&bits, region.data + i * sizeof bits, sizeof bits);
      if (bits != region.seen[i].bits) region.seen[i] = {bits, time_};
    }
}

inline void Memory::update(Words& to, const Words& from) {
  for (size_t i = 0; i < to.size(); ++i)
    if (from[i].time > to[i].time) to[i] = from[i];
}

inline void Memory::release(const int* counter) {
  note();
  for (Region& region : regions_) {
    std::vector<Words>& before = region.released[counter];
    Words words = before.empty() ? Words(region.seen.size()) : before.back();
    update(words, region.seen);
    before.push_back(std::move(words));
  }
}

inline void Memory::acquire(const int* counter, int count) {
  note();
  for (Region& region : regions_) {
    const auto found = region.released.find(counter);
    if (found == region.released.end() || count == 0) continue;
    const std::vector<Words>& released = found->second;
    update(region.seen, released[std::min<size_t>(count, released.size()) - 1]);
    for (size_t i = 0; i < region.seen.size(); ++i)
      std::memcpy(region.data + i * sizeof(uint32_t), &region.seen[i].bits, sizeof(uint32_t));
  }
}

// What csrc/cuda/cell/task.cuh does with counters.
inline int next_ticket(int* counter) { return (*counter)++; }

inline void released(int* counter) {
  if (memory != nullptr) memory->release(counter);
  ++*counter;
}

inline int arrived(int* counter) {
  if (memory != nullptr) {
    memory->acquire(counter, *counter);
    memory->release(counter);
  }
  return (*counter)++;
}

inline void wait_until(const int* counter, int count) {
  if (*counter < count) throw std::runtime_error("a program waits for one that comes later");
  if (memory != nullptr) memory->acquire(counter, count);
}

}  // namespace da2s_fast::shim

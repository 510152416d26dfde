// How a tensor (N, C, ...) is cut into blocks: by its shape alone, so that sums taken per block and
// added in the order of the blocks do not depend on the number of threads.
#pragma once

#include <algorithm>
#include <cstdint>

namespace da2s_fast {

// `runs` runs of `length` adjacent elements, `stride` apart.
//
// A run lies in one channel (`period` 0), or it has one element of every channel after the other,
// many times. Then arguments with a value per channel have `period` values, the channels' repeated:
// short rows would keep a processor's vectors empty.
struct Block {
  int64_t offset;
  int64_t runs;
  int64_t stride;
  int64_t length;
  int64_t period;
  int64_t channels;  // that the block has elements of
};

// Below this many channels, values per channel are repeated until they are about as many.
constexpr int64_t kLongestPeriod = 64;

class Blocks {
 public:
  // Pixels are the elements of one channel of one image.
  Blocks(int64_t images, int64_t channels, int64_t pixels, bool channels_last)
      : channels_(channels), pixels_(pixels), across_(channels_last || pixels == 1) {
    if (across_) {
      total_ = images * pixels;
      step_ = std::max<int64_t>(1, kElements / channels);
      count_ = divide_up(total_, step_);
    } else {
      total_ = images;
      step_ = std::max<int64_t>(1, kElements / pixels);
      pieces_ = divide_up(pixels, kElements);
      count_ = divide_up(images, step_) * pieces_;
    }
  }

  // Every channel has this many blocks; its elements are in one of them each.
  int64_t count() const { return count_; }
  int64_t tasks() const { return across_ ? count_ : count_ * channels_; }
  int64_t channels() const { return channels_; }
  int64_t values_per_channel() const { return across_ ? total_ : total_ * pixels_; }

  // The length of arguments with a value per channel; the c-th is that of channel c % channels().
  int64_t columns() const {
    return across_ && channels_ <= kLongestPeriod ? kLongestPeriod / channels_ * channels_
                                                  : channels_;
  }

  // The block of a task, its column, and where its results belong in (count, channels).
  Block block(int64_t task) const {
    if (across_) {
      const int64_t first = task * step_;
      const int64_t length = std::min(step_, total_ - first) * channels_;
      return {first * channels_, 1, 0, length, columns(), channels_};
    }
    const int64_t first = task / channels_ / pieces_ * step_;
    const int64_t pixel = task / channels_ % pieces_ * kElements;
    return {(first * channels_ + column(task)) * pixels_ + pixel,
            std::min(step_, total_ - first),
            channels_ * pixels_,
            std::min(kElements, pixels_ - pixel),
            0,
            1};
  }
  int64_t column(int64_t task) const { return across_ ? 0 : task % channels_; }
  int64_t slot(int64_t task) const { return across_ ? task * channels_ : task; }

  // How many values of each channel the q-th of its blocks has.
  int64_t values(int64_t q) const {
    const Block first = block(across_ ? q : q * channels_);
    return first.runs * first.length / first.channels;
  }

  // Tasks per thread below which another thread does not pay.
  int64_t grain(int64_t tensors) const {
    return std::max<int64_t>(1, kGrain / (kElements * std::max<int64_t>(1, tensors)));
  }

 private:
  static constexpr int64_t kElements = 4096;  // read twice, the second time from the first cache
  static constexpr int64_t kGrain = 32768;

  static int64_t divide_up(int64_t a, int64_t b) { return (a + b - 1) / b; }

  int64_t channels_;
  int64_t pixels_;
  bool across_;
  int64_t total_ = 0;
  int64_t step_ = 0;
  int64_t pieces_ = 1;
  int64_t count_ = 0;
};

}  // namespace da2s_fast

// Grids of pixels for the cell's kernels.
#pragma once

#include "../buffers.h"
#include "../check.h"
#include "cpu/cell/kernels.h"

namespace da2s_fast::test {

// Elements between two pixels and between two rows.
struct Gaps {
  int64_t pixel = 0, row = 0;
};

// Pixels of `lanes` numbers in a border of zeros. The elements in the gaps are NaN and must stay
// so.
template <class T>
class Pixels {
 public:
  Pixels(Size size, int64_t lanes, Gaps gaps = {}, int64_t border = 0)
      : size_(size),
        lanes_(lanes),
        border_(border),
        pixel_(lanes + gaps.pixel),
        row_((size.width + 2 * border) * pixel_ + gaps.row),
        elements_((size.height + 2 * border - 1) * row_ + (size.width + 2 * border - 1) * pixel_ +
                  lanes) {
    for (int64_t y = -border; y < size.height + border; ++y)
      for (int64_t x = -border; x < size.width + border; ++x)
        for (int64_t lane = 0; lane < lanes; ++lane) at(y, x, lane) = 0;
  }
  Pixels(Size size, int64_t lanes, Numbers& numbers, Gaps gaps = {}, int64_t border = 0)
      : Pixels(size, lanes, gaps, border) {
    for_each([&](int64_t y, int64_t x, int64_t lane) {
      at(y, x, lane) = static_cast<T>(numbers.next());
    });
  }

  Grid<T> grid() { return Grid<T>{elements_.data(), row_, pixel_}.at(border_, border_); }
  Size size() const { return size_; }
  int64_t lanes() const { return lanes_; }
  int64_t row() const { return row_; }
  int64_t pixel() const { return pixel_; }
  T& at(int64_t y, int64_t x, int64_t lane) { return elements_[index(y, x, lane)]; }
  const T& at(int64_t y, int64_t x, int64_t lane) const { return elements_[index(y, x, lane)]; }
  bool holds(int64_t y, int64_t x) const {
    return y >= 0 && y < size_.height && x >= 0 && x < size_.width;
  }

  // Calls visit(row, pixel, lane) for all numbers inside the border.
  template <class Visit>
  void for_each(Visit visit) const {
    for (int64_t y = 0; y < size_.height; ++y)
      for (int64_t x = 0; x < size_.width; ++x)
        for (int64_t lane = 0; lane < lanes_; ++lane) visit(y, x, lane);
  }

  // Whether nothing but the pixels was written.
  bool is_intact() const {
    int64_t numbers = 0;
    for (int64_t i = 0; i < elements_.size(); ++i) numbers += elements_[i] == elements_[i];
    return numbers == (size_.height + 2 * border_) * (size_.width + 2 * border_) * lanes_;
  }

 private:
  int64_t index(int64_t y, int64_t x, int64_t lane) const {
    return (y + border_) * row_ + (x + border_) * pixel_ + lane;
  }

  Size size_;
  int64_t lanes_, border_, pixel_, row_;
  Buffer<T> elements_;
};

// Elements in a vector of the instruction set in use.
template <class T>
int64_t vector_lanes() {
  return DA2S_SIMD_CALL(vector_bytes) / static_cast<int64_t>(sizeof(T));
}

}  // namespace da2s_fast::test

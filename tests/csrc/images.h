// Tensors (N, C, H, W) of PyTorch's in several layouts.
#pragma once

#include "buffers.h"
#include "cpu/cell/side.h"

namespace da2s_fast::test {

enum class Layout { contiguous, channels_last, gaps };

// Images whose memory ends with the last element of the last one.
template <class T>
struct Images {
  Images(Layout layout, int64_t images, int64_t channels, int64_t height, int64_t width)
      : at(strides(layout, channels, height, width)),
        image(channels * (height + 1) * (width + 1) * 2),
        elements((images - 1) * image + (channels - 1) * at.channel + (height - 1) * at.row +
                 (width - 1) * at.pixel + 1) {}

  static ImageStrides strides(Layout layout, int64_t channels, int64_t height, int64_t width) {
    if (layout == Layout::contiguous) return {height * width, width, 1};
    if (layout == Layout::channels_last) return {1, width * channels, channels};
    return {(height + 1) * (width + 1) * 2, (width + 1) * 2, 2};
  }
  int64_t index(int64_t n, int64_t c, int64_t y, int64_t x) const {
    return n * image + c * at.channel + y * at.row + x * at.pixel;
  }

  ImageTensor<T> view() { return {elements.data(), image, at}; }
  operator ImageTensor<const T>() const { return {elements.data(), image, at}; }

  ImageStrides at;
  int64_t image;
  Buffer<T> elements;
};

}  // namespace da2s_fast::test

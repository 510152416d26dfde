// Tensors of PyTorch's beside a single layer: groups of their images in and out, or in place where
// they lie as the kernels want them anyway.
#pragma once

#include <cstdint>

#include "images.h"
#include "kernels.h"

namespace da2s_fast {

// A tensor (N, C, H, W): distances in elements.
template <class T>
struct ImageTensor {
  T* data;
  int64_t image;
  ImageStrides at;
};

// A layer's input or output in groups.
struct Side {
  Size size;
  int64_t channels, lanes;

  int64_t elements() const { return size.pixels() * lanes; }
  template <class T>
  Grid<T> grid(T* data) const {
    return {data, size.width * lanes, lanes};
  }

  // Where a group of a tensor lies just as the kernels want it; null where it does not.
  template <class T>
  T* in_place(const ImageTensor<T>& tensor, const Images& images, int64_t group) const {
    const bool same = images.per_group == 1 && channels == lanes && tensor.at.channel == 1 &&
                      tensor.at.pixel == lanes && tensor.at.row == size.width * lanes;
    return same ? tensor.data + group * tensor.image : nullptr;
  }

  template <class T>
  void take_in(const ImageTensor<const T>& tensor, const Images& images, int64_t group, bool relu,
               Grid<T> to) const {
    DA2S_SIMD_CALL(import_group, tensor.data + group * images.per_group * tensor.image, tensor.at,
                   tensor.image, images.valid(group), images.per_group, channels, size, relu, to);
  }

  template <class T>
  void take_out(Grid<const T> from, const Images& images, int64_t group,
                const ImageTensor<T>& tensor) const {
    DA2S_SIMD_CALL(export_group, from, tensor.at, tensor.image, images.valid(group),
                   images.per_group, channels, size,
                   tensor.data + group * images.per_group * tensor.image);
  }
};

}  // namespace da2s_fast

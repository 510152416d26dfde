// Between tensors of PyTorch, in any layout and type, and the cell's own groups.
//
// Whole vectors move where a group is one image and channels are adjacent on both sides; otherwise
// the loop over the side that is scattered lies outside, so that one of both is read or written
// in order.
#include "../convert.h"
#include "../vector.h"
#include "kernels.h"

namespace da2s_fast::DA2S_ISA {
namespace {

template <class T>
DA2S_INLINE T positive(T value) {
  return value < 0 ? T{0} : value;
}

template <class T>
DA2S_INLINE void zero(Grid<T> to, Size size, int64_t lanes) {
  for (int64_t y = 0; y < size.height; ++y)
    for (int64_t x = 0; x < size.width; ++x) std::memset(to.at(y, x).data, 0, lanes * sizeof(T));
}

template <class T>
DA2S_INLINE void import_pixels(const T* from, const ImageStrides& at, int64_t channels, Size size,
                               bool with_relu, Grid<T> to) {
  for (int64_t y = 0; y < size.height; ++y)
    for (int64_t x = 0; x < size.width; ++x) {
      const T* source = from + y * at.row + x * at.pixel;
      T* target = to.at(y, x).data;
      int64_t c = 0;
      for (; c + kLanes<T> <= channels; c += kLanes<T>) {
        const Vector<T> value = read(source + c);
        write(target + c, with_relu ? relu<T>(value) : value);
      }
      for (; c < channels; ++c) target[c] = with_relu ? positive(source[c]) : source[c];
    }
}

template <class T>
DA2S_INLINE void export_pixels(Grid<const T> from, const ImageStrides& at, int64_t channels,
                               Size size, T* to) {
  for (int64_t y = 0; y < size.height; ++y)
    for (int64_t x = 0; x < size.width; ++x) {
      const T* source = from.at(y, x).data;
      T* target = to + y * at.row + x * at.pixel;
      int64_t c = 0;
      for (; c + kLanes<T> <= channels; c += kLanes<T>) write(target + c, read(source + c));
      for (; c < channels; ++c) target[c] = source[c];
    }
}

}  // namespace

template <class T, class Outer>
void import_group(const Outer* from, const ImageStrides& at, int64_t image, int64_t valid,
                  int64_t images, int64_t channels, Size size, bool with_relu, Grid<T> to) {
  if constexpr (sizeof(T) == sizeof(Outer)) {
    if (images == 1 && at.channel == 1)
      return import_pixels<T>(from, at, channels, size, with_relu, to);
  }
  if (valid < images) zero(to, size, channels * images);
  const auto element = [&](int64_t n, int64_t c, int64_t y, int64_t x) {
    const T value =
        static_cast<T>(load(from[n * image + c * at.channel + y * at.row + x * at.pixel]));
    to.at(y, x).data[c * images + n] = with_relu ? positive(value) : value;
  };
  if (at.channel == 1) {
    for (int64_t y = 0; y < size.height; ++y)
      for (int64_t x = 0; x < size.width; ++x)
        for (int64_t n = 0; n < valid; ++n)
          for (int64_t c = 0; c < channels; ++c) element(n, c, y, x);
    return;
  }
  for (int64_t y = 0; y < size.height; ++y)
    for (int64_t c = 0; c < channels; ++c)
      for (int64_t n = 0; n < valid; ++n)
        for (int64_t x = 0; x < size.width; ++x) element(n, c, y, x);
}

template <class T, class Outer>
void export_group(Grid<const T> from, const ImageStrides& at, int64_t image, int64_t valid,
                  int64_t images, int64_t channels, Size size, Outer* to) {
  if constexpr (sizeof(T) == sizeof(Outer)) {
    if (images == 1 && at.channel == 1) return export_pixels<T>(from, at, channels, size, to);
  }
  const auto element = [&](int64_t n, int64_t c, int64_t y, int64_t x) {
    store(from.at(y, x).data[c * images + n],
          to + n * image + c * at.channel + y * at.row + x * at.pixel);
  };
  if (at.channel == 1) {
    for (int64_t y = 0; y < size.height; ++y)
      for (int64_t x = 0; x < size.width; ++x)
        for (int64_t n = 0; n < valid; ++n)
          for (int64_t c = 0; c < channels; ++c) element(n, c, y, x);
    return;
  }
  for (int64_t y = 0; y < size.height; ++y)
    for (int64_t c = 0; c < channels; ++c)
      for (int64_t n = 0; n < valid; ++n)
        for (int64_t x = 0; x < size.width; ++x) element(n, c, y, x);
}

#define DA2S_INSTANTIATE(T, Outer)                                                          \
  template void import_group(const Outer*, const ImageStrides&, int64_t, int64_t, int64_t,  \
                             int64_t, Size, bool, Grid<T>);                                 \
  template void export_group(Grid<const T>, const ImageStrides&, int64_t, int64_t, int64_t, \
                             int64_t, Size, Outer*);
DA2S_INSTANTIATE(float, float)
DA2S_INSTANTIATE(float, BFloat16)
DA2S_INSTANTIATE(float, Float16)
DA2S_INSTANTIATE(double, double)

}  // namespace da2s_fast::DA2S_ISA

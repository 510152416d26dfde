// Between tensors of PyTorch, in any layout and type, and the cell's own groups.
//
// Whole vectors move where a group is one image and channels are adjacent on both sides; images of
// a group whose channels are adjacent are interleaved four channels at a time. Otherwise the loop
// over the side that is scattered lies outside, so that one of both is read or written in order.
#include <type_traits>

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

typedef float Four __attribute__((vector_size(16)));
typedef int32_t Mask __attribute__((vector_size(16)));

// The columns of four rows as rows.
DA2S_INLINE void transpose(const Four (&in)[4], Four (&out)[4]) {
  const Four a = __builtin_shuffle(in[0], in[1], Mask{0, 4, 1, 5});
  const Four b = __builtin_shuffle(in[0], in[1], Mask{2, 6, 3, 7});
  const Four c = __builtin_shuffle(in[2], in[3], Mask{0, 4, 1, 5});
  const Four d = __builtin_shuffle(in[2], in[3], Mask{2, 6, 3, 7});
  out[0] = __builtin_shuffle(a, c, Mask{0, 1, 4, 5});
  out[1] = __builtin_shuffle(a, c, Mask{2, 3, 6, 7});
  out[2] = __builtin_shuffle(b, d, Mask{0, 1, 4, 5});
  out[3] = __builtin_shuffle(b, d, Mask{2, 3, 6, 7});
}

DA2S_INLINE Four read_four(const float* p) {
  Four v;
  std::memcpy(&v, p, sizeof v);
  return v;
}

DA2S_INLINE void write_four(float* p, const Four& v) { std::memcpy(p, &v, sizeof v); }

// A pixel's channels of some images, adjacent on the side of the tensor, `image` apart: four
// channels of two or four images at a time. Returns how many channels were moved.
template <int Images>
DA2S_INLINE int64_t import_pixel(const float* from, int64_t image, int64_t images, int64_t channels,
                                 bool with_relu, float* to) {
  int64_t c = 0;
  for (; c + 4 <= channels; c += 4)
    for (int64_t n = 0; n < images; n += Images) {
      Four in[4] = {}, out[4];
      for (int i = 0; i < Images; ++i) {
        in[i] = read_four(from + (n + i) * image + c);
        if (with_relu) in[i] = in[i] < 0 ? Four{} : in[i];
      }
      if constexpr (Images == 2) {
        write_four(to + c * 2, __builtin_shuffle(in[0], in[1], Mask{0, 4, 1, 5}));
        write_four(to + c * 2 + 4, __builtin_shuffle(in[0], in[1], Mask{2, 6, 3, 7}));
      } else {
        transpose(in, out);
        for (int i = 0; i < 4; ++i) write_four(to + (c + i) * images + n, out[i]);
      }
    }
  return c;
}

// The other way round.
template <int Images>
DA2S_INLINE int64_t export_pixel(const float* from, int64_t image, int64_t images, int64_t channels,
                                 float* to) {
  int64_t c = 0;
  for (; c + 4 <= channels; c += 4)
    for (int64_t n = 0; n < images; n += Images) {
      if constexpr (Images == 2) {
        const Four low = read_four(from + c * 2), high = read_four(from + c * 2 + 4);
        write_four(to + c, __builtin_shuffle(low, high, Mask{0, 2, 4, 6}));
        write_four(to + image + c, __builtin_shuffle(low, high, Mask{1, 3, 5, 7}));
      } else {
        Four in[4], out[4];
        for (int i = 0; i < 4; ++i) in[i] = read_four(from + (c + i) * images + n);
        transpose(in, out);
        for (int i = 0; i < 4; ++i) write_four(to + (n + i) * image + c, out[i]);
      }
    }
  return c;
}

// Calls element(image, channel, row, pixel) for all numbers of the valid images, those that are
// adjacent on the side of the tensor one after the other. Where these are channels, whole(row,
// pixel) may move the first ones of all images at once; it returns how many it did.
template <class Whole, class Element>
DA2S_INLINE void for_each_number(const ImageStrides& at, int64_t valid, int64_t channels, Size size,
                                 Whole whole, Element element) {
  if (at.channel == 1) {
    for (int64_t y = 0; y < size.height; ++y)
      for (int64_t x = 0; x < size.width; ++x) {
        const int64_t first = whole(y, x);
        for (int64_t n = 0; n < valid; ++n)
          for (int64_t c = first; c < channels; ++c) element(n, c, y, x);
      }
    return;
  }
  for (int64_t y = 0; y < size.height; ++y)
    for (int64_t c = 0; c < channels; ++c)
      for (int64_t n = 0; n < valid; ++n)
        for (int64_t x = 0; x < size.width; ++x) element(n, c, y, x);
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
  const auto whole = [&](int64_t y, int64_t x) -> int64_t {
    if constexpr (std::is_same_v<Outer, float>) {
      const float* source = from + y * at.row + x * at.pixel;
      if (valid == images && images > 1)
        return (images == 2 ? import_pixel<2> : import_pixel<4>)(source, image, images, channels,
                                                                 with_relu, to.at(y, x).data);
    }
    return 0;
  };
  for_each_number(at, valid, channels, size, whole, element);
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
  const auto whole = [&](int64_t y, int64_t x) -> int64_t {
    if constexpr (std::is_same_v<Outer, float>) {
      float* target = to + y * at.row + x * at.pixel;
      if (valid == images && images > 1)
        return (images == 2 ? export_pixel<2> : export_pixel<4>)(from.at(y, x).data, image, images,
                                                                 channels, target);
    }
    return 0;
  };
  for_each_number(at, valid, channels, size, whole, element);
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

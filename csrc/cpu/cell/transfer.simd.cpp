// Between tensors of PyTorch, in any layout and type, and the cell's own groups.
//
// Where channels are adjacent in a tensor of the arithmetic's type, a pixel moves by whole vectors
// of channels, of all images of a group at once: steps that put the numbers of two vectors in turn
// lead from one vector for each image to each channel's images side by side. Where pixels are
// adjacent, the same steps lead from a vector of pixels for each lane to each pixel's lanes, on the
// way in. Otherwise the loop over the side that is scattered lies outside, so that one of both is
// read or written in order.
#include <type_traits>

#include "../convert.h"
#include "group.h"
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

// A vector of `Width` numbers, and as many positions of numbers in two of them.
template <class T, int Width>
struct RowOf {
  typedef T Numbers __attribute__((vector_size(Width * sizeof(T))));
  typedef std::conditional_t<sizeof(T) == 4, int32_t, int64_t> Position;
  typedef Position Positions __attribute__((vector_size(Width * sizeof(T))));
};
template <class T, int Width>
using Row = typename RowOf<T, Width>::Numbers;

// first, first + Width, first + 1, first + Width + 1, ...: numbers of two vectors in turn.
template <class T, int Width>
DA2S_INLINE auto in_turn(int first) {
  typename RowOf<T, Width>::Positions at = {};
  for (int i = 0; i < Width; ++i) at[i] = first + i / 2 + i % 2 * Width;
  return at;
}

// first, first + 2, ...: every other number of two vectors.
template <class T, int Width>
DA2S_INLINE auto every_other(int first) {
  typename RowOf<T, Width>::Positions at = {};
  for (int i = 0; i < Width; ++i) at[i] = first + 2 * i;
  return at;
}

// From a row of channels for each image to channels of which each has its images side by side.
// Images that are half of all apart meet first.
template <class T, int Width, int Images>
DA2S_INLINE void interleave(Row<T, Width> (&rows)[Images]) {
  const auto low = in_turn<T, Width>(0), high = in_turn<T, Width>(Width / 2);
  for (int length = 1; length < Images; length *= 2) {
    Row<T, Width> next[Images];
    for (int i = 0; i < Images / 2; ++i) {
      next[2 * i] = __builtin_shuffle(rows[i], rows[i + Images / 2], low);
      next[2 * i + 1] = __builtin_shuffle(rows[i], rows[i + Images / 2], high);
    }
    std::memcpy(rows, next, sizeof next);
  }
}

// The other way round.
template <class T, int Width, int Images>
DA2S_INLINE void part(Row<T, Width> (&rows)[Images]) {
  const auto even = every_other<T, Width>(0), odd = every_other<T, Width>(1);
  for (int length = 1; length < Images; length *= 2) {
    Row<T, Width> next[Images];
    for (int i = 0; i < Images / 2; ++i) {
      next[i] = __builtin_shuffle(rows[2 * i], rows[2 * i + 1], even);
      next[i + Images / 2] = __builtin_shuffle(rows[2 * i], rows[2 * i + 1], odd);
    }
    std::memcpy(rows, next, sizeof next);
  }
}

// A pixel's channels from c on, `Width` at a time, of images that lie `image` apart. Returns the
// first channel that is left.
template <int Images, int Width, class T>
DA2S_INLINE int64_t import_channels(const T* from, int64_t image, int64_t c, int64_t channels,
                                    bool with_relu, T* to) {
  for (; c + Width <= channels; c += Width) {
    Row<T, Width> rows[Images];
    for (int n = 0; n < Images; ++n) {
      std::memcpy(&rows[n], from + n * image + c, sizeof rows[n]);
      if (with_relu) rows[n] = rows[n] < 0 ? Row<T, Width>{} : rows[n];
    }
    interleave<T, Width>(rows);
    std::memcpy(to + c * Images, rows, sizeof rows);
  }
  return c;
}

template <int Images, int Width, class T>
DA2S_INLINE int64_t export_channels(const T* from, int64_t image, int64_t c, int64_t channels,
                                    T* to) {
  for (; c + Width <= channels; c += Width) {
    Row<T, Width> rows[Images];
    std::memcpy(rows, from + c * Images, sizeof rows);
    part<T, Width>(rows);
    for (int n = 0; n < Images; ++n) std::memcpy(to + n * image + c, &rows[n], sizeof rows[n]);
  }
  return c;
}

// Wide vectors first, then narrow ones for what they leave.
template <class T>
constexpr int kWide = static_cast<int>(kLanes<T>);
template <class T>
constexpr int kNarrow = kWide<T> < 4 ? kWide<T> : 4;

template <int Images, class T>
void import_pixels(const T* from, const ImageStrides& at, int64_t image, int64_t channels,
                   Size size, bool with_relu, Grid<T> to) {
  for (int64_t y = 0; y < size.height; ++y)
    for (int64_t x = 0; x < size.width; ++x) {
      const T* source = from + y * at.row + x * at.pixel;
      T* target = to.at(y, x).data;
      int64_t c = import_channels<Images, kWide<T>>(source, image, 0, channels, with_relu, target);
      c = import_channels<Images, kNarrow<T>>(source, image, c, channels, with_relu, target);
      for (; c < channels; ++c)
        for (int n = 0; n < Images; ++n) {
          const T value = source[n * image + c];
          target[c * Images + n] = with_relu ? positive(value) : value;
        }
    }
}

template <int Images, class T>
void export_pixels(Grid<const T> from, const ImageStrides& at, int64_t image, int64_t channels,
                   Size size, T* to) {
  for (int64_t y = 0; y < size.height; ++y)
    for (int64_t x = 0; x < size.width; ++x) {
      const T* source = from.at(y, x).data;
      T* target = to + y * at.row + x * at.pixel;
      int64_t c = export_channels<Images, kWide<T>>(source, image, 0, channels, target);
      c = export_channels<Images, kNarrow<T>>(source, image, c, channels, target);
      for (; c < channels; ++c)
        for (int n = 0; n < Images; ++n) target[n * image + c] = source[c * Images + n];
    }
}

// Vectors of pixels of as many lanes as a vector has, from pixel `begin` of a run on; next() is
// where the next pixel goes. Returns the first pixel that is left.
template <int Width, class T, class Next>
DA2S_INLINE int64_t import_lanes(const T* const* lanes, int64_t begin, int64_t pixels,
                                 bool with_relu, Next& next) {
  constexpr int kPixel = kWide<T> * sizeof(T);
  for (; begin + Width <= pixels; begin += Width) {
    Row<T, Width> rows[kWide<T>];
    for (int k = 0; k < kWide<T>; ++k) {
      std::memcpy(&rows[k], lanes[k] + begin, sizeof rows[k]);
      if (with_relu) rows[k] = rows[k] < 0 ? Row<T, Width>{} : rows[k];
    }
    interleave<T, Width>(rows);
    for (int i = 0; i < Width; ++i)
      std::memcpy(next(), reinterpret_cast<const char*>(rows) + i * kPixel, kPixel);
  }
  return begin;
}

// Images whose pixels follow each other; where rows do, too, all of them are one run.
template <class T>
void import_planes(const T* from, const ImageStrides& at, int64_t image, int64_t images,
                   int64_t channels, Size size, bool with_relu, Grid<T> to) {
  const int64_t run = at.row == size.width ? size.pixels() : size.width;
  for (int64_t lane = 0; lane < channels * images; lane += kWide<T>) {
    int64_t y = 0, x = 0;
    const auto next = [&] {
      T* found = to.at(y, x).data + lane;
      if (++x == size.width) x = 0, ++y;
      return found;
    };
    for (int64_t row = 0; row < size.pixels() / run; ++row) {
      const T* lanes[kWide<T>];
      for (int k = 0; k < kWide<T>; ++k)
        lanes[k] =
            from + (lane + k) % images * image + (lane + k) / images * at.channel + row * at.row;
      int64_t i = import_lanes<kWide<T>>(lanes, 0, run, with_relu, next);
      i = import_lanes<kNarrow<T>>(lanes, i, run, with_relu, next);
      for (; i < run; ++i) {
        T* target = next();
        for (int k = 0; k < kWide<T>; ++k)
          target[k] = with_relu ? positive(lanes[k][i]) : lanes[k][i];
      }
    }
  }
}

// Calls move(n, c, y, x) for every element, in an order in which the tensor's lie close together.
template <class Move>
DA2S_INLINE void for_elements(const ImageStrides& at, int64_t images, int64_t channels, Size size,
                              Move move) {
  for (int64_t y = 0; y < size.height; ++y) {
    if (at.channel == 1)
      for (int64_t x = 0; x < size.width; ++x)
        for (int64_t n = 0; n < images; ++n)
          for (int64_t c = 0; c < channels; ++c) move(n, c, y, x);
    else
      for (int64_t c = 0; c < channels; ++c)
        for (int64_t n = 0; n < images; ++n)
          for (int64_t x = 0; x < size.width; ++x) move(n, c, y, x);
  }
}

}  // namespace

template <class T, class Outer>
void import_group(const Outer* from, const ImageStrides& at, int64_t image, int64_t valid,
                  int64_t images, int64_t channels, Size size, bool with_relu, Grid<T> to) {
  if constexpr (std::is_same_v<T, Outer>) {
    if (valid == images && at.channel == 1) {
      // Where pixels of one image follow each other on both sides, a row is like one pixel.
      if (images == 1 && at.pixel == channels && to.pixel == channels) {
        channels *= size.width;
        size.width = 1;
      }
      return with_images<T>(images, [&](auto constant) {
        import_pixels<decltype(constant)::value>(from, at, image, channels, size, with_relu, to);
      });
    }
  }
  if constexpr (std::is_same_v<T, Outer>) {
    if (valid == images && at.pixel == 1 && channels * images % kWide<T> == 0)
      return import_planes(from, at, image, images, channels, size, with_relu, to);
  }
  if (valid < images) zero(to, size, channels * images);
  for_elements(at, valid, channels, size, [&](int64_t n, int64_t c, int64_t y, int64_t x) {
    const T value =
        static_cast<T>(load(from[n * image + c * at.channel + y * at.row + x * at.pixel]));
    to.at(y, x).data[c * images + n] = with_relu ? positive(value) : value;
  });
}

template <class T, class Outer>
void export_group(Grid<const T> from, const ImageStrides& at, int64_t image, int64_t valid,
                  int64_t images, int64_t channels, Size size, Outer* to) {
  if constexpr (std::is_same_v<T, Outer>) {
    if (valid == images && at.channel == 1)
      return with_images<T>(images, [&](auto constant) {
        export_pixels<decltype(constant)::value>(from, at, image, channels, size, to);
      });
  }
  for_elements(at, valid, channels, size, [&](int64_t n, int64_t c, int64_t y, int64_t x) {
    store(from.at(y, x).data[c * images + n],
          to + n * image + c * at.channel + y * at.row + x * at.pixel);
  });
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

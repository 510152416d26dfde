// Pools and their gradients: an output pixel after the other, all lanes of it.
//
// As in PyTorch, a maximum belongs to its first cell in row-major order, NaN beats every number and
// a later NaN an earlier one. The gradient finds the maximum again instead of keeping indices.
#include "../vector.h"
#include "kernels.h"

namespace da2s_fast::DA2S_ISA {
namespace {

// The cells of a window that lie inside the image.
struct Window {
  int64_t top, bottom, left, right;
  int64_t cells() const { return (bottom - top) * (right - left); }
};

DA2S_INLINE Window window(Size size, int64_t y, int64_t x, int64_t kernel, int64_t stride,
                          int64_t padding) {
  const int64_t top = y * stride - padding, left = x * stride - padding;
  return {top < 0 ? 0 : top, top + kernel > size.height ? size.height : top + kernel,
          left < 0 ? 0 : left, left + kernel > size.width ? size.width : left + kernel};
}

// Calls run(window, y, x, lane) for every vector of outputs.
template <class T, class Run>
DA2S_INLINE void for_windows(Size size, Size out, int64_t kernel, int64_t stride, int64_t padding,
                             int64_t lanes, Run run) {
  for (int64_t y = 0; y < out.height; ++y)
    for (int64_t x = 0; x < out.width; ++x) {
      const Window cells = window(size, y, x, kernel, stride, padding);
      for (int64_t lane = 0; lane < lanes; lane += kLanes<T>) run(cells, y, x, lane);
    }
}

// The largest of both, lanes where it is the second.
template <class T>
DA2S_INLINE auto beats(const Vector<T>& value, const Vector<T>& most) {
  return (value > most) | (value != value);
}

}  // namespace

template <class T>
void max_pool(Grid<const T> x, Size size, int64_t kernel, int64_t stride, int64_t padding,
              int64_t lanes, Grid<T> out, Size out_size) {
  for_windows<T>(size, out_size, kernel, stride, padding, lanes,
                 [=](const Window& cells, int64_t oy, int64_t ox, int64_t lane) {
                   Vector<T> most = read(x.at(cells.top, cells.left).data + lane);
                   for (int64_t iy = cells.top; iy < cells.bottom; ++iy)
                     for (int64_t ix = cells.left; ix < cells.right; ++ix) {
                       const Vector<T> value = read(x.at(iy, ix).data + lane);
                       most = beats<T>(value, most) ? value : most;
                     }
                   write(out.at(oy, ox).data + lane, most);
                 });
}

template <class T>
void average_pool(Grid<const T> x, Size size, int64_t stride, int64_t lanes, Grid<T> out,
                  Size out_size) {
  for_windows<T>(size, out_size, 3, stride, 1, lanes,
                 [=](const Window& cells, int64_t oy, int64_t ox, int64_t lane) {
                   Vector<T> sum = {};
                   for (int64_t iy = cells.top; iy < cells.bottom; ++iy)
                     for (int64_t ix = cells.left; ix < cells.right; ++ix)
                       sum += read(x.at(iy, ix).data + lane);
                   write(out.at(oy, ox).data + lane, sum * (T{1} / cells.cells()));
                 });
}

template <class T>
void max_pool_gradient(Grid<const T> x, Size size, int64_t kernel, int64_t stride, int64_t padding,
                       int64_t lanes, Grid<const T> g, Size out_size, Grid<T> dx) {
  for_windows<T>(size, out_size, kernel, stride, padding, lanes,
                 [=](const Window& cells, int64_t oy, int64_t ox, int64_t lane) {
                   // Which cell is the maximum: its number, counted as a T.
                   Vector<T> most = read(x.at(cells.top, cells.left).data + lane), which = {};
                   T number = 0;
                   for (int64_t iy = cells.top; iy < cells.bottom; ++iy)
                     for (int64_t ix = cells.left; ix < cells.right; ++ix, ++number) {
                       const Vector<T> value = read(x.at(iy, ix).data + lane);
                       const auto better = beats<T>(value, most);
                       most = better ? value : most;
                       which = better ? splat(number) : which;
                     }
                   const Vector<T> gradient = read(g.at(oy, ox).data + lane);
                   number = 0;
                   for (int64_t iy = cells.top; iy < cells.bottom; ++iy)
                     for (int64_t ix = cells.left; ix < cells.right; ++ix, ++number) {
                       T* to = dx.at(iy, ix).data + lane;
                       write(to, read(to) + (which == number ? gradient : Vector<T>{}));
                     }
                 });
}

template <class T>
void average_pool_gradient(Size size, int64_t stride, int64_t lanes, Grid<const T> g, Size out_size,
                           Grid<T> dx) {
  for_windows<T>(size, out_size, 3, stride, 1, lanes,
                 [=](const Window& cells, int64_t oy, int64_t ox, int64_t lane) {
                   const Vector<T> part = read(g.at(oy, ox).data + lane) * (T{1} / cells.cells());
                   for (int64_t iy = cells.top; iy < cells.bottom; ++iy)
                     for (int64_t ix = cells.left; ix < cells.right; ++ix) {
                       T* to = dx.at(iy, ix).data + lane;
                       write(to, read(to) + part);
                     }
                 });
}

#define DA2S_INSTANTIATE(T)                                                                       \
  template void max_pool(Grid<const T>, Size, int64_t, int64_t, int64_t, int64_t, Grid<T>, Size); \
  template void average_pool(Grid<const T>, Size, int64_t, int64_t, Grid<T>, Size);               \
  template void max_pool_gradient(Grid<const T>, Size, int64_t, int64_t, int64_t, int64_t,        \
                                  Grid<const T>, Size, Grid<T>);                                  \
  template void average_pool_gradient(Size, int64_t, int64_t, Grid<const T>, Size, Grid<T>);
DA2S_INSTANTIATE(float)
DA2S_INSTANTIATE(double)

}  // namespace da2s_fast::DA2S_ISA

// Depthwise convolutions and the gradient of their weights.
//
// Tiling of the convolution: up to eight neighbouring outputs of one vector of lanes are summed in
// registers, row by row of the kernel. An input is read once per row and used for every output
// whose window holds it; the weights of the row stay in registers.
//
// Tiling of the gradient: as many rows of the kernel as registers hold are summed over all pixels,
// then added in double; every gradient is read once for them.
#include "ask.h"

namespace da2s_fast::DA2S_ISA {
namespace {

template <int K, int D, int S, int Pixels, class T>
DA2S_INLINE void outputs(Grid<const T> in, const T* weights, int64_t lanes, Grid<T> out, bool add) {
  Vector<T> sums[Pixels] = {};
  if (add)
    for (int j = 0; j < Pixels; ++j) sums[j] = read(out.data + j * out.pixel);
  for (int ky = 0; ky < K; ++ky) {
    Vector<T> factors[K];
    for (int kx = 0; kx < K; ++kx) factors[kx] = read(weights + (ky * K + kx) * lanes);
    const T* row = in.data + ky * D * in.row;
#pragma GCC unroll 32
    for (int i = 0; i < (Pixels - 1) * S + (K - 1) * D + 1; ++i) {
      Vector<T> value;
      bool used = false;
#pragma GCC unroll 8
      for (int kx = 0; kx < K; ++kx) {
        const int from = i - kx * D;
        if (from < 0 || from % S != 0 || from / S >= Pixels) continue;
        if (!used) value = read(row + i * in.pixel);
        used = true;
        sums[from / S] += value * factors[kx];
      }
    }
  }
  for (int j = 0; j < Pixels; ++j) write(out.data + j * out.pixel, sums[j]);
}

template <int K, int D, int S, class T>
void convolve(const Depthwise& conv, Grid<const T> in, const T* weights, Grid<T> out, Size size,
              bool add) {
  const int64_t lanes = conv.lanes;
  for (int64_t y = 0; y < size.height; ++y)
    for (int64_t lane = 0; lane < lanes; lane += kLanes<T>) {
      ask(conv.ahead);
      Grid<const T> from = in.at(y * S, 0);
      Grid<T> to = out.at(y, 0);
      from.data += lane;
      to.data += lane;
      int64_t x = 0;
      for (; x + 8 <= size.width; x += 8)
        outputs<K, D, S, 8>(from.at(0, x * S), weights + lane, lanes, to.at(0, x), add);
      for (; x + 4 <= size.width; x += 4)
        outputs<K, D, S, 4>(from.at(0, x * S), weights + lane, lanes, to.at(0, x), add);
      for (; x < size.width; ++x)
        outputs<K, D, S, 1>(from.at(0, x * S), weights + lane, lanes, to.at(0, x), add);
    }
}

// Adds `Rows` rows of the kernel's gradient, for one vector of lanes.
template <int K, int Rows, class T>
DA2S_INLINE void kernel_rows(const Depthwise& conv, Grid<const T> in, Grid<const T> gradient,
                             Size size, double* sums) {
  const int64_t down = conv.dilation * in.row, right = conv.dilation * in.pixel;
  // Not more than so many pixels are summed in single precision.
  const int64_t rows = size.width < 512 ? 512 / size.width : 1;
  for (int64_t first = 0; first < size.height; first += rows) {
    const int64_t last = first + rows < size.height ? first + rows : size.height;
    Vector<T> found[Rows][K] = {};
    for (int64_t y = first; y < last; ++y) {
      ask(conv.ahead);
      const T* from = in.at(y * conv.stride, 0).data;
      const T* g = gradient.at(y, 0).data;
      for (int64_t x = 0; x < size.width; ++x) {
        const Vector<T> factor = read(g);
        for (int ky = 0; ky < Rows; ++ky)
          for (int kx = 0; kx < K; ++kx)
            found[ky][kx] += read(from + ky * down + kx * right) * factor;
        from += conv.stride * in.pixel;
        g += gradient.pixel;
      }
    }
    for (int ky = 0; ky < Rows; ++ky)
      for (int kx = 0; kx < K; ++kx) add_to<T>(sums + (ky * K + kx) * conv.lanes, found[ky][kx]);
  }
}

template <int K, class T>
void kernel_gradient(const Depthwise& conv, Grid<const T> in, Grid<const T> gradient, Size size,
                     double* sums) {
  constexpr int kSums = kManyRegisters ? 25 : 10;
  constexpr int kRows = K * K <= kSums ? K : kSums / K;
  for (int64_t lane = 0; lane < conv.lanes; lane += kLanes<T>) {
    Grid<const T> from = in, g = gradient;
    from.data += lane;
    g.data += lane;
    int64_t ky = 0;
    for (; ky + kRows <= K; ky += kRows)
      kernel_rows<K, kRows>(conv, from.at(ky * conv.dilation, 0), g, size,
                            sums + ky * K * conv.lanes + lane);
    for (; ky < K; ++ky)
      kernel_rows<K, 1>(conv, from.at(ky * conv.dilation, 0), g, size,
                        sums + ky * K * conv.lanes + lane);
  }
}

}  // namespace

template <class T>
void depthwise(const Depthwise& conv, Grid<const T> in, const T* weights, Grid<T> out,
               Size out_size, bool add) {
  const auto run = [&](auto one, auto two) {
    (conv.stride == 1 ? one : two)(conv, in, weights, out, out_size, add);
  };
  if (conv.dilation == 2) {
    if (conv.kernel == 3) return run(convolve<3, 2, 1, T>, convolve<3, 2, 2, T>);
    return run(convolve<5, 2, 1, T>, convolve<5, 2, 2, T>);
  }
  if (conv.kernel == 3) return run(convolve<3, 1, 1, T>, convolve<3, 1, 2, T>);
  if (conv.kernel == 5) return run(convolve<5, 1, 1, T>, convolve<5, 1, 2, T>);
  run(convolve<7, 1, 1, T>, convolve<7, 1, 2, T>);
}

template <class T>
void depthwise_weights(const Depthwise& conv, Grid<const T> in, Grid<const T> gradient,
                       Size out_size, double* sums) {
  const auto run = conv.kernel == 3   ? kernel_gradient<3, T>
                   : conv.kernel == 5 ? kernel_gradient<5, T>
                                      : kernel_gradient<7, T>;
  run(conv, in, gradient, out_size, sums);
}

#define DA2S_INSTANTIATE(T)                                                                \
  template void depthwise(const Depthwise&, Grid<const T>, const T*, Grid<T>, Size, bool); \
  template void depthwise_weights(const Depthwise&, Grid<const T>, Grid<const T>, Size, double*);
DA2S_INSTANTIATE(float)
DA2S_INSTANTIATE(double)

}  // namespace da2s_fast::DA2S_ISA

// Depthwise convolutions and the gradient of their weights.
//
// Tiling of the convolution: up to eight neighbouring outputs of one vector of lanes are summed in
// registers, row by row of the kernel. An input is read once per row and used for every output
// whose window holds it; the weights of the row stay in registers. The gradient of the input is a
// convolution again; at stride 2 inputs in even and odd rows and columns are the outputs of four
// convolutions, each with the part of the kernel that reaches them.
//
// Tiling of the weights' gradient: as many rows of the kernel as registers hold are summed over all
// pixels, then added in double; every gradient is read once for them.
#include "ask.h"

namespace da2s_fast::DA2S_ISA {
namespace {

// A kernel of H rows of W taps, D apart, moved by S; without any the outputs are zero.
template <int H, int W, int D, int S, int Pixels, class T>
DA2S_INLINE void outputs(Grid<const T> in, const T* weights, int64_t lanes, Grid<T> out, bool add) {
  Vector<T> sums[Pixels] = {};
  if (add)
    for (int j = 0; j < Pixels; ++j) sums[j] = read(out.data + j * out.pixel);
  for (int ky = 0; ky < H; ++ky) {
    Vector<T> factors[W];
    for (int kx = 0; kx < W; ++kx) factors[kx] = read(weights + (ky * W + kx) * lanes);
    const T* row = in.data + ky * D * in.row;
#pragma GCC unroll 32
    for (int i = 0; i < (Pixels - 1) * S + (W - 1) * D + 1; ++i) {
      Vector<T> value;
      bool used = false;
#pragma GCC unroll 8
      for (int kx = 0; kx < W; ++kx) {
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

template <int H, int W, int D, int S, class T>
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
        outputs<H, W, D, S, 8>(from.at(0, x * S), weights + lane, lanes, to.at(0, x), add);
      for (; x + 4 <= size.width; x += 4)
        outputs<H, W, D, S, 4>(from.at(0, x * S), weights + lane, lanes, to.at(0, x), add);
      for (; x < size.width; ++x)
        outputs<H, W, D, S, 1>(from.at(0, x * S), weights + lane, lanes, to.at(0, x), add);
    }
}

// Inputs whose row and column are even (0) or odd (1), which see H rows of W taps of the kernel,
// the first of them at (top, left) of the outputs' gradient.
template <int H, int W, class T>
void convolve_parity(const Depthwise& conv, Grid<const T> gradient, int64_t top, int64_t left,
                     const T* turned, int64_t row, int64_t column, Grid<T> dx, Size size,
                     bool add) {
  const Grid<T> first = dx.at(row, column);
  convolve<H, W, 1, 1, T>(conv, gradient.at(top, left), turned,
                          {first.data, first.row * 2, first.pixel * 2},
                          {(size.height + 1 - row) / 2, (size.width + 1 - column) / 2}, add);
}

// The gradient at stride 2. Input i is in the window of output o at tap i + P - 2 o, so that even
// inputs see every other tap, odd inputs the others.
template <int K, class T>
void back_by_two(const Depthwise& conv, Grid<const T> gradient, const T* turned, Grid<T> dx,
                 Size size, bool add) {
  constexpr int P = (K - 1) / 2, E = (K + 1 - P % 2) / 2, O = K - E;  // taps of even, odd inputs
  constexpr int kEven = -(E / 2), kOdd = 1 - O / 2;                   // their first outputs
  const int64_t lanes = conv.lanes;
  convolve_parity<E, E>(conv, gradient, kEven, kEven, turned, 0, 0, dx, size, add);
  turned += E * E * lanes;
  convolve_parity<E, O>(conv, gradient, kEven, kOdd, turned, 0, 1, dx, size, add);
  turned += E * O * lanes;
  convolve_parity<O, E>(conv, gradient, kOdd, kEven, turned, 1, 0, dx, size, add);
  turned += O * E * lanes;
  convolve_parity<O, O>(conv, gradient, kOdd, kOdd, turned, 1, 1, dx, size, add);
}

// The same with taps two apart: even inputs see all of them, odd ones none.
template <int K, class T>
void dilated_back_by_two(const Depthwise& conv, Grid<const T> gradient, const T* turned, Grid<T> dx,
                         Size size, bool add) {
  constexpr int kFirst = -(K - 1) / 2;
  convolve_parity<K, K>(conv, gradient, kFirst, kFirst, turned, 0, 0, dx, size, add);
  if (add) return;
  convolve_parity<0, 0>(conv, gradient, 0, 0, turned, 0, 1, dx, size, false);
  convolve_parity<0, 0>(conv, gradient, 0, 0, turned, 1, 0, dx, size, false);
  convolve_parity<0, 0>(conv, gradient, 0, 0, turned, 1, 1, dx, size, false);
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
    if (conv.kernel == 3) return run(convolve<3, 3, 2, 1, T>, convolve<3, 3, 2, 2, T>);
    return run(convolve<5, 5, 2, 1, T>, convolve<5, 5, 2, 2, T>);
  }
  if (conv.kernel == 3) return run(convolve<3, 3, 1, 1, T>, convolve<3, 3, 1, 2, T>);
  if (conv.kernel == 5) return run(convolve<5, 5, 1, 1, T>, convolve<5, 5, 1, 2, T>);
  run(convolve<7, 7, 1, 1, T>, convolve<7, 7, 1, 2, T>);
}

template <class T>
void depthwise_back(const Depthwise& conv, Grid<const T> gradient, const T* turned, Grid<T> dx,
                    Size in_size, bool add) {
  if (conv.stride == 1) {
    const int64_t padding = conv.dilation * (conv.kernel - 1) / 2;
    return depthwise<T>(conv, gradient.at(-padding, -padding), turned, dx, in_size, add);
  }
  const auto run = conv.dilation == 2
                       ? (conv.kernel == 3 ? dilated_back_by_two<3, T> : dilated_back_by_two<5, T>)
                   : conv.kernel == 3 ? back_by_two<3, T>
                   : conv.kernel == 5 ? back_by_two<5, T>
                                      : back_by_two<7, T>;
  run(conv, gradient, turned, dx, in_size, add);
}

template <class T>
void depthwise_weights(const Depthwise& conv, Grid<const T> in, Grid<const T> gradient,
                       Size out_size, double* sums) {
  const auto run = conv.kernel == 3   ? kernel_gradient<3, T>
                   : conv.kernel == 5 ? kernel_gradient<5, T>
                                      : kernel_gradient<7, T>;
  run(conv, in, gradient, out_size, sums);
}

#define DA2S_INSTANTIATE(T)                                                                     \
  template void depthwise(const Depthwise&, Grid<const T>, const T*, Grid<T>, Size, bool);      \
  template void depthwise_back(const Depthwise&, Grid<const T>, const T*, Grid<T>, Size, bool); \
  template void depthwise_weights(const Depthwise&, Grid<const T>, Grid<const T>, Size, double*);
DA2S_INSTANTIATE(float)
DA2S_INSTANTIATE(double)

}  // namespace da2s_fast::DA2S_ISA

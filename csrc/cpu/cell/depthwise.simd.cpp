// Depthwise convolutions and the gradient of their weights.
//
// Tiling of the convolution: eight neighbouring outputs of one vector of lanes, of two rows at a
// time where there are registers enough, are summed in registers, row by row of the kernel: two
// multiply-adds a cycle need as many sums as take no notice of each other. An input is read once
// per row and used for every output whose window holds it; the weights of the row stay in
// registers. The gradient of the input is a convolution again; at stride 2 inputs in even and odd
// rows and columns are the outputs of four convolutions, each with the part of the kernel that
// reaches them.
//
// Tiling of the weights' gradient: as many rows of the kernel as registers hold are summed over all
// pixels, then added in double. Four pixels of the gradient are taken together: an input is read
// once for those whose windows hold it.
#include "ask.h"
#include "lanes.h"

namespace da2s_fast::DA2S_ISA {
namespace {

// Rows x Pixels outputs of a kernel of H rows of W taps, D apart, moved by S; without any taps the
// outputs are zero.
template <int H, int W, int D, int S, int Rows, int Pixels, class T>
DA2S_INLINE void outputs(Grid<const T> in, const T* weights, int64_t lanes, Grid<T> out, bool add) {
  Vector<T> sums[Rows][Pixels] = {};
  if (add)
#pragma GCC unroll 2
    for (int y = 0; y < Rows; ++y) {
      const T* to = out.at(y, 0).data;
      for (int x = 0; x < Pixels; ++x, step(to, out.pixel)) sums[y][x] = read(to);
    }
  for (int ky = 0; ky < H; ++ky) {
    Vector<T> factors[W];
    for (int kx = 0; kx < W; ++kx, step(weights, lanes)) factors[kx] = read(weights);
#pragma GCC unroll 2
    for (int y = 0; y < Rows; ++y) {
      const T* at = in.at(y * S + ky * D, 0).data;
#pragma GCC unroll 32
      for (int i = 0; i < (Pixels - 1) * S + (W - 1) * D + 1; ++i, step(at, in.pixel)) {
        Vector<T> value;
        bool used = false;
#pragma GCC unroll 8
        for (int kx = 0; kx < W; ++kx) {
          const int from = i - kx * D;
          if (from < 0 || from % S != 0 || from / S >= Pixels) continue;
          if (!used) value = read_once(at);
          used = true;
          sums[y][from / S] += value * factors[kx];
        }
      }
    }
  }
#pragma GCC unroll 2
  for (int y = 0; y < Rows; ++y) {
    T* to = out.at(y, 0).data;
    for (int x = 0; x < Pixels; ++x, step(to, out.pixel)) write(to, sums[y][x]);
  }
}

template <int H, int W, int D, int S, int Rows, class T>
DA2S_INLINE void output_rows(const Depthwise& conv, Grid<const T> in, const T* weights, Grid<T> out,
                             int64_t width, bool add) {
  const int64_t lanes = conv.lanes;
  for (int64_t lane = 0; lane < lanes; lane += kLanes<T>) {
    for (int y = 0; y < Rows; ++y) ask(conv.ahead);
    const Grid<const T> from = lanes_from(in, lane);
    const Grid<T> to = lanes_from(out, lane);
    int64_t x = 0;
    for (; x + 8 <= width; x += 8)
      outputs<H, W, D, S, Rows, 8>(from.at(0, x * S), weights + lane, lanes, to.at(0, x), add);
    for (; x + 4 <= width; x += 4)
      outputs<H, W, D, S, Rows, 4>(from.at(0, x * S), weights + lane, lanes, to.at(0, x), add);
    for (; x < width; ++x)
      outputs<H, W, D, S, Rows, 1>(from.at(0, x * S), weights + lane, lanes, to.at(0, x), add);
  }
}

template <int H, int W, int D, int S, class T>
void convolve(const Depthwise& conv, Grid<const T> in, const T* weights, Grid<T> out, Size size,
              bool add) {
  int64_t y = 0;
  if constexpr (kManyRegisters)
    for (; y + 2 <= size.height; y += 2)
      output_rows<H, W, D, S, 2>(conv, in.at(y * S, 0), weights, out.at(y, 0), size.width, add);
  for (; y < size.height; ++y)
    output_rows<H, W, D, S, 1>(conv, in.at(y * S, 0), weights, out.at(y, 0), size.width, add);
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

// Adds what so many pixels of the gradient contribute to `Rows` rows of the kernel's.
template <int K, int D, int S, int Rows, int Pixels, class T>
DA2S_INLINE void contributions(Grid<const T> in, Grid<const T> gradient,
                               Vector<T> (&sums)[Rows][K]) {
  Vector<T> factors[Pixels];
  const T* g = gradient.data;
  for (int x = 0; x < Pixels; ++x, step(g, gradient.pixel)) factors[x] = read(g);
  const T* row = in.data;
#pragma GCC unroll 8
  for (int ky = 0; ky < Rows; ++ky, step(row, D * in.row)) {
    const T* at = row;
#pragma GCC unroll 32
    for (int i = 0; i < (Pixels - 1) * S + (K - 1) * D + 1; ++i, step(at, in.pixel)) {
      Vector<T> value;
      bool used = false;
#pragma GCC unroll 8
      for (int x = 0; x < Pixels; ++x) {
        const int tap = i - x * S;
        if (tap < 0 || tap % D != 0 || tap / D >= K) continue;
        if (!used) value = read_once(at);
        used = true;
        sums[ky][tap / D] += value * factors[x];
      }
    }
  }
}

// Adds `Rows` rows of the kernel's gradient, for one vector of lanes.
template <int K, int D, int S, int Rows, class T>
DA2S_INLINE void kernel_rows(const Depthwise& conv, Grid<const T> in, Grid<const T> gradient,
                             Size size, double* sums) {
  // Not more than so many pixels are summed in single precision.
  const int64_t rows = size.width < 512 ? 512 / size.width : 1;
  for (int64_t first = 0; first < size.height; first += rows) {
    const int64_t last = first + rows < size.height ? first + rows : size.height;
    Vector<T> found[Rows][K] = {};
    for (int64_t y = first; y < last; ++y) {
      ask(conv.ahead);
      int64_t x = 0;
      for (; x + 4 <= size.width; x += 4)
        contributions<K, D, S, Rows, 4>(in.at(y * S, x * S), gradient.at(y, x), found);
      for (; x < size.width; ++x)
        contributions<K, D, S, Rows, 1>(in.at(y * S, x * S), gradient.at(y, x), found);
    }
#pragma GCC unroll 8
    for (int ky = 0; ky < Rows; ++ky)
#pragma GCC unroll 8
      for (int kx = 0; kx < K; ++kx) add_to<T>(sums + (ky * K + kx) * conv.lanes, found[ky][kx]);
  }
}

template <int K, int D, int S, class T>
void kernel_gradient(const Depthwise& conv, Grid<const T> in, Grid<const T> gradient, Size size,
                     double* sums) {
  constexpr int kSums = kManyRegisters ? 25 : 10;
  constexpr int kRows = K * K <= kSums ? K : kSums / K;
  for (int64_t lane = 0; lane < conv.lanes; lane += kLanes<T>) {
    const Grid<const T> from = lanes_from(in, lane), g = lanes_from(gradient, lane);
    int64_t ky = 0;
    for (; ky + kRows <= K; ky += kRows)
      kernel_rows<K, D, S, kRows>(conv, from.at(ky * D, 0), g, size,
                                  sums + ky * K * conv.lanes + lane);
    for (; ky < K; ++ky)
      kernel_rows<K, D, S, 1>(conv, from.at(ky * D, 0), g, size, sums + ky * K * conv.lanes + lane);
  }
}

// A kernel of K x K taps, D apart, moved by S.
template <int K, int D, int S>
struct Taps {
  static constexpr int kernel = K, dilation = D, stride = S;
};

// Calls run(Taps) with those of the convolution.
template <class Run>
void for_taps(const Depthwise& conv, Run run) {
  const auto strides = [&]<int K, int D>(Taps<K, D, 1> taps) {
    conv.stride == 1 ? run(taps) : run(Taps<K, D, 2>{});
  };
  if (conv.kernel == 3)
    return conv.dilation == 1 ? strides(Taps<3, 1, 1>{}) : strides(Taps<3, 2, 1>{});
  if (conv.kernel == 5)
    return conv.dilation == 1 ? strides(Taps<5, 1, 1>{}) : strides(Taps<5, 2, 1>{});
  strides(Taps<7, 1, 1>{});
}

}  // namespace

template <class T>
void depthwise(const Depthwise& conv, Grid<const T> in, const T* weights, Grid<T> out,
               Size out_size, bool add) {
  for_taps(conv, [&](auto t) {
    convolve<t.kernel, t.kernel, t.dilation, t.stride>(conv, in, weights, out, out_size, add);
  });
}

template <class T>
void depthwise_back(const Depthwise& conv, Grid<const T> gradient, const T* turned, Grid<T> dx,
                    Size in_size, bool add) {
  for_taps(conv, [&](auto t) {
    if constexpr (t.stride == 1) {
      constexpr int kPadding = t.dilation * (t.kernel - 1) / 2;
      convolve<t.kernel, t.kernel, t.dilation, 1>(conv, gradient.at(-kPadding, -kPadding), turned,
                                                  dx, in_size, add);
    } else if constexpr (t.dilation == 2) {
      dilated_back_by_two<t.kernel>(conv, gradient, turned, dx, in_size, add);
    } else {
      back_by_two<t.kernel>(conv, gradient, turned, dx, in_size, add);
    }
  });
}

template <class T>
void depthwise_weights(const Depthwise& conv, Grid<const T> in, Grid<const T> gradient,
                       Size out_size, double* sums) {
  for_taps(conv, [&](auto t) {
    kernel_gradient<t.kernel, t.dilation, t.stride>(conv, in, gradient, out_size, sums);
  });
}

#define DA2S_INSTANTIATE(T)                                                                     \
  template void depthwise(const Depthwise&, Grid<const T>, const T*, Grid<T>, Size, bool);      \
  template void depthwise_back(const Depthwise&, Grid<const T>, const T*, Grid<T>, Size, bool); \
  template void depthwise_weights(const Depthwise&, Grid<const T>, Grid<const T>, Size, double*);
DA2S_INSTANTIATE(float)
DA2S_INSTANTIATE(double)

}  // namespace da2s_fast::DA2S_ISA

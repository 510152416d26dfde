// The inner loops of the cell, on plain pointers.
//
// Layout. All tensors inside a cell are (groups, rows, pixels, channels, images): a *group* is the
// least number of images that makes channels * images a multiple of a vector, 1 where the channels
// are one already. What a pixel has of a group, channels * images numbers, are its *lanes*. So no
// loop has a remainder in its innermost dimension, whatever the number of channels. Everything that
// works channel by channel (depthwise convolutions, pools, norms, sums) sees lanes only; values per
// channel are repeated for every image once. A product over channels multiplies a channel's
// `images` numbers, repeated to fill a vector, with a vector of weights.
//
// Rows and pixels may lie apart by more than they hold: inside a border of padding, among the
// channels that bypass the operations, between the pixels that a stride skips.
#pragma once

#include <cstdint>

#include "../isa.h"

namespace da2s_fast {

// A grid of pixels in memory; row and pixel are distances in elements.
template <class T>
struct Grid {
  T* data;
  int64_t row;
  int64_t pixel;

  operator Grid<const T>() const { return {data, row, pixel}; }
  Grid at(int64_t y, int64_t x) const { return {data + y * row + x * pixel, row, pixel}; }
};

struct Size {
  int64_t height;
  int64_t width;
  int64_t pixels() const { return height * width; }
  bool operator==(const Size& other) const = default;
};

// Memory that will be read next. Kernels that compute more than they read ask for a few cache lines
// of it with every row, so that it comes from memory while they compute.
struct Ahead {
  const char* at[2] = {};
  const char* end[2] = {};
  int64_t step = 0;  // bytes of each with every row
};

// A depthwise convolution; in starts at the first tap of the first output.
struct Depthwise {
  int64_t kernel;
  int64_t dilation;
  int64_t stride;
  int64_t lanes;
  Ahead* ahead = nullptr;
};

// A tap of a dense convolution: how far its input pixel lies from the output's.
constexpr int64_t kMostTaps = 9;
struct Product {
  int64_t images;
  int64_t in_channels;
  int64_t out_lanes;
  int64_t taps = 1;
  int64_t offsets[kMostTaps] = {};  // in elements of the input
  Ahead* ahead = nullptr;
};

// Where a product's moments are added, see moments.
template <class T>
struct ProductMoments {
  const T* pivot;
  double *sums, *squares;
  bool streaming;  // the product, whole vectors aligned as such, is written past the caches
};

// Numbers per lane with which a norm's gradient is made, see norm_gradient.
template <class T>
struct NormGradient {
  const T* scale;
  const T* mean;
  const T* shift;  // null where the statistics are constants
  const T* slope;
};

// A tensor to be mixed: scale * (z - mean), with numbers per lane; mean may be null.
template <class T>
struct Mixed {
  Grid<const T> z;
  const T* scale;
  const T* mean;
};

// A tensor whose product with a gradient is summed: g * (z - mean); mean may be null.
template <class T>
struct Factor {
  Grid<const T> z;
  const T* mean;
  double* products;  // per lane, added to
};

// The gradient of a sum that a tensor went into with a factor; its products with the tensor.
template <class T>
struct Weighed {
  Grid<const T> g;
  T factor;
  double* products;  // per lane, added to
};

// How one image of a tensor (N, C, H, W) lies in memory, in elements.
struct ImageStrides {
  int64_t channel, row, pixel;
};

// clang-format off
DA2S_DECLARE_SIMD(
int64_t vector_bytes();

// --- depthwise.simd.cpp ---------------------------------------------------------------------
// out = sum over taps of in * weights (taps, lanes); adds to out if asked.
template <class T> void depthwise(const Depthwise& conv, Grid<const T> in, const T* weights,
                                  Grid<T> out, Size out_size, bool add);
// dx = gradient of the input, or dx += that, from the outputs' inside a border of zeros as wide as
// the padding. The kernel is turned around; at stride 2 it lies in up to four
// pieces, one after the other: what inputs in even rows and columns see of it, even rows and odd
// columns, odd and even, odd and odd.
template <class T> void depthwise_back(const Depthwise& conv, Grid<const T> gradient,
                                       const T* turned, Grid<T> dx, Size in_size, bool add);
// sums (taps, lanes) += sum over outputs of in * gradient.
template <class T> void depthwise_weights(const Depthwise& conv, Grid<const T> in,
                                          Grid<const T> gradient, Size out_size, double* sums);

// --- product.simd.cpp -----------------------------------------------------------------------
// out = sum over taps and channels of in * weights (taps, in_channels, out_lanes).
template <class T> void product(const Product& shape, Grid<const T> in, const T* weights,
                                Grid<T> out, Size out_size, bool add);
// The same without adding, and its moments.
template <class T> void product_moments(const Product& shape, Grid<const T> in, const T* weights,
                                        Grid<T> out, Size out_size,
                                        const ProductMoments<T>& moments);
// sums (in_channels, out_lanes) += sum over pixels of in * gradient; one tap.
template <class T> void product_weights(const Product& shape, Grid<const T> in,
                                        Grid<const T> gradient, Size size, double* sums);

// --- elementwise.simd.cpp -------------------------------------------------------------------
// sums += sum (z - pivot), squares += sum (z - pivot)^2, per lane.
template <class T> void moments(const T* z, int64_t pixels, int64_t lanes, const T* pivot,
                                double* sums, double* squares);
// sums += sum g, per lane.
template <class T> void lane_sums(Grid<const T> g, int64_t pixels, int64_t lanes, double* sums);
// Every factor's products with g.
template <class T> void lane_products(Grid<const T> g, const Factor<T>* factors, int64_t count,
                                      Size size, int64_t lanes);
// out = sum over parts of factor * g, and every part's products with x.
template <class T> void weighed_gradient(Grid<const T> x, const Weighed<T>* parts, int64_t count,
                                         Size size, int64_t lanes, Grid<T> out);
// out = sum over parts, or out += that.
template <class T> void mix(const Mixed<T>* parts, int64_t count, Size size, int64_t lanes,
                            bool add, Grid<T> out);
// out = scale * (g - shift - (z - mean) * slope); out may be z.
template <class T> void norm_gradient(Grid<const T> g, const T* z, int64_t pixels, int64_t lanes,
                                      const NormGradient<T>& norm, T* out);
// out = scale * (z - mean), through ReLU if asked; mean null: out = z; scale null: no norm.
template <class T> void normalize(Grid<const T> z, Size size, int64_t lanes, const T* scale,
                                  const T* mean, bool relu, Grid<T> out);
// out = scale * (z - mean) + shift; out may be z.
template <class T> void affine(Grid<const T> z, Size size, int64_t lanes, const T* scale,
                               const T* mean, const T* shift, Grid<T> out);
// out = g, or out += g, 0 where seen, a ReLU's result, is not above 0; NaN lets gradients through.
template <class T> void mask(Grid<const T> seen, Grid<const T> g, Size size, int64_t lanes,
                             bool add, Grid<T> out);
// The same mask, written past the caches if asked, and what norms need of the masked gradient:
// sums += sum out, products += sum out * (z - mean), per lane.
template <class T> void mask_and_sum(Grid<const T> seen, Grid<const T> g, Grid<const T> z,
                                     const T* mean, Size size, int64_t lanes, bool streaming,
                                     Grid<T> out, double* sums, double* products);
// out += in.
template <class T> void add(Grid<const T> in, Size size, int64_t lanes, Grid<T> out);

// --- pool.simd.cpp --------------------------------------------------------------------------
// Windows of kernel x kernel, `padding` cells before the first; cells outside do not take part.
template <class T> void max_pool(Grid<const T> x, Size size, int64_t kernel, int64_t stride,
                                 int64_t padding, int64_t lanes, Grid<T> out, Size out_size);
template <class T> void average_pool(Grid<const T> x, Size size, int64_t stride, int64_t lanes,
                                     Grid<T> out, Size out_size);
// dx += gradient of the pool.
template <class T> void max_pool_gradient(Grid<const T> x, Size size, int64_t kernel,
                                          int64_t stride, int64_t padding, int64_t lanes,
                                          Grid<const T> g, Size out_size, Grid<T> dx);
template <class T> void average_pool_gradient(Size size, int64_t stride, int64_t lanes,
                                              Grid<const T> g, Size out_size, Grid<T> dx);

// --- transfer.simd.cpp ----------------------------------------------------------------------
// `valid` images of a tensor, `image` elements apart, into a group of `images`, the rest zeros.
template <class T, class Outer> void import_group(const Outer* from, const ImageStrides& at,
    int64_t image, int64_t valid, int64_t images, int64_t channels, Size size, bool relu,
    Grid<T> to);
// The other way round.
template <class T, class Outer> void export_group(Grid<const T> from, const ImageStrides& at,
    int64_t image, int64_t valid, int64_t images, int64_t channels, Size size, Outer* to);
)
// clang-format on

}  // namespace da2s_fast

// Depthwise convolutions and products over channels against plain loops.
#include "pixels.h"

namespace da2s_fast::test {
namespace {

constexpr Size kSizes[] = {{1, 1}, {3, 7}, {5, 29}};

Size out_size(Size in, int64_t stride) {
  return {(in.height - 1) / stride + 1, (in.width - 1) / stride + 1};
}

template <class T>
void check_depthwise(const Depthwise& conv, Size size, bool add) {
  Numbers numbers;
  const int64_t border = conv.dilation * (conv.kernel - 1) / 2, taps = conv.kernel * conv.kernel;
  Pixels<T> in(size, conv.lanes, numbers, {3, 7}, border);
  const Buffer<T> weights(taps * conv.lanes, numbers);
  Pixels<T> out(out_size(size, conv.stride), conv.lanes, numbers, {5, 7});
  std::vector<Sum> wanted;
  const auto input = [&](int64_t tap, int64_t y, int64_t x, int64_t lane) -> double {
    return in.at(y * conv.stride - border + tap / conv.kernel * conv.dilation,
                 x * conv.stride - border + tap % conv.kernel * conv.dilation, lane);
  };
  out.for_each([&](int64_t y, int64_t x, int64_t lane) {
    Sum sum;
    if (add) sum.add(out.at(y, x, lane));
    for (int64_t tap = 0; tap < taps; ++tap)
      sum.add(input(tap, y, x, lane) * weights[tap * conv.lanes + lane]);
    wanted.push_back(sum);
  });
  const Grid<const T> window = in.grid().at(-border, -border);
  DA2S_SIMD_CALL(depthwise<T>, conv, window, weights.data(), out.grid(), out.size(), add);
  auto next = wanted.begin();
  out.for_each([&](int64_t y, int64_t x, int64_t lane) {
    DA2S_CHECK_CLOSE(T, out.at(y, x, lane), *next++);
  });
  DA2S_CHECK(out.is_intact());

  Buffer<double> sums(taps * conv.lanes, 0.5);
  DA2S_SIMD_CALL(depthwise_weights<T>, conv, window, out.grid(), out.size(), sums.data());
  for (int64_t tap = 0; tap < taps; ++tap)
    for (int64_t lane = 0; lane < conv.lanes; ++lane) {
      Sum sum;
      sum.add(0.5);
      for (int64_t y = 0; y < out.size().height; ++y)
        for (int64_t x = 0; x < out.size().width; ++x)
          sum.add(input(tap, y, x, lane) * out.at(y, x, lane));
      DA2S_CHECK_CLOSE(T, sums[tap * conv.lanes + lane], sum);
    }
}

// The kernel as depthwise_back reads it: turned around, and at stride 2 the taps that inputs of
// even and odd rows and columns see, one part after the other.
std::vector<int64_t> turned_taps(const Depthwise& conv) {
  const int64_t border = conv.dilation * (conv.kernel - 1) / 2;
  std::vector<int64_t> taps;
  const auto reaches = [&](int64_t tap, int64_t parity) {
    return (parity + border - tap * conv.dilation) % conv.stride == 0;
  };
  for (int64_t row = 0; row < conv.stride; ++row)
    for (int64_t column = 0; column < conv.stride; ++column)
      for (int64_t y = conv.kernel - 1; y >= 0; --y)
        for (int64_t x = conv.kernel - 1; x >= 0; --x)
          if (reaches(y, row) && reaches(x, column)) taps.push_back(y * conv.kernel + x);
  return taps;
}

template <class T>
void check_depthwise_back(const Depthwise& conv, Size size, bool add) {
  Numbers numbers;
  const int64_t border = conv.dilation * (conv.kernel - 1) / 2, taps = conv.kernel * conv.kernel;
  Pixels<T> gradient(out_size(size, conv.stride), conv.lanes, numbers, {5, 7}, border);
  Pixels<T> dx(size, conv.lanes, numbers, {3, 7});
  const Buffer<T> weights(taps * conv.lanes, numbers);
  Buffer<T> turned(taps * conv.lanes);
  int64_t next = 0;
  for (const int64_t tap : turned_taps(conv))
    for (int64_t lane = 0; lane < conv.lanes; ++lane)
      turned[next++] = weights[tap * conv.lanes + lane];
  // The tap of output o that reads input i, along one axis.
  const auto reads = [&](int64_t i, int64_t o) -> int64_t {
    const int64_t distance = i + border - o * conv.stride;
    const bool hit = distance % conv.dilation == 0 && distance / conv.dilation < conv.kernel;
    return distance >= 0 && hit ? distance / conv.dilation : -1;
  };
  std::vector<Sum> wanted;
  dx.for_each([&](int64_t y, int64_t x, int64_t lane) {
    Sum sum;
    if (add) sum.add(dx.at(y, x, lane));
    for (int64_t v = 0; v < gradient.size().height; ++v)
      for (int64_t u = 0; u < gradient.size().width; ++u) {
        const int64_t ky = reads(y, v), kx = reads(x, u);
        if (ky >= 0 && kx >= 0)
          sum.add(static_cast<double>(gradient.at(v, u, lane)) *
                  weights[(ky * conv.kernel + kx) * conv.lanes + lane]);
      }
    wanted.push_back(sum);
  });
  DA2S_SIMD_CALL(depthwise_back<T>, conv, gradient.grid(), turned.data(), dx.grid(), size, add);
  auto expected = wanted.begin();
  dx.for_each([&](int64_t y, int64_t x, int64_t lane) {
    DA2S_CHECK_CLOSE(T, dx.at(y, x, lane), *expected++);
  });
  DA2S_CHECK(dx.is_intact());
}

template <class T>
void check_depthwise_type() {
  for (const auto& [kernel, dilation] : {std::pair{3, 1}, {5, 1}, {7, 1}, {3, 2}, {5, 2}})
    for (const int64_t stride : {1, 2})
      for (const Size& size : kSizes)
        for (const int64_t vectors : {1, 3}) {
          const Depthwise conv{kernel, dilation, stride, vectors * vector_lanes<T>()};
          check_depthwise<T>(conv, size, vectors == 3);
          check_depthwise_back<T>(conv, size, vectors == 3);
        }
}

DA2S_TEST(depthwise_of_float) { check_depthwise_type<float>(); }
DA2S_TEST(depthwise_of_double) { check_depthwise_type<double>(); }

// The same product with its moments, through the caches and past them.
template <class T>
void check_product_moments(const Product& shape, Pixels<T>& in, const Buffer<T>& weights,
                           const Pixels<T>& wanted) {
  Numbers numbers;
  const int64_t lanes = shape.out_lanes;
  const Buffer<T> pivot(lanes, numbers);
  for (const bool streaming : {false, true}) {
    Pixels<T> out(wanted.size(), lanes);
    Buffer<double> sums(lanes, 0.5), squares(lanes, 0.5);
    DA2S_SIMD_CALL(product_moments<T>, shape, in.grid(), weights.data(), out.grid(), out.size(),
                   (ProductMoments<T>{pivot.data(), sums.data(), squares.data(), streaming}));
    std::vector<Sum> sum(lanes), square(lanes);
    for (int64_t lane = 0; lane < lanes; ++lane) {
      sum[lane].add(0.5);
      square[lane].add(0.5);
    }
    out.for_each([&](int64_t y, int64_t x, int64_t lane) {
      DA2S_CHECK(out.at(y, x, lane) == wanted.at(y, x, lane));
      const double apart = static_cast<double>(out.at(y, x, lane)) - pivot[lane];
      sum[lane].add(apart);
      square[lane].add(apart * apart);
    });
    for (int64_t lane = 0; lane < lanes; ++lane) {
      DA2S_CHECK_CLOSE(T, sums[lane], sum[lane]);
      DA2S_CHECK_CLOSE(T, squares[lane], square[lane]);
    }
  }
}

template <class T>
void check_product(int64_t images, int64_t in_channels, int64_t out_lanes, int64_t kernel,
                   Size size, bool add) {
  Numbers numbers;
  const int64_t border = kernel / 2, taps = kernel * kernel;
  Pixels<T> in(size, in_channels * images, numbers, {3, 7}, border);
  Product shape{images, in_channels, out_lanes, taps};
  for (int64_t tap = 0; tap < taps; ++tap)
    shape.offsets[tap] = (tap / kernel - border) * in.row() + (tap % kernel - border) * in.pixel();
  const Buffer<T> weights(taps * in_channels * out_lanes, numbers);
  Pixels<T> out(size, out_lanes, numbers, {5, 7});
  std::vector<Sum> wanted;
  out.for_each([&](int64_t y, int64_t x, int64_t lane) {
    Sum sum;
    if (add) sum.add(out.at(y, x, lane));
    for (int64_t tap = 0; tap < taps; ++tap)
      for (int64_t c = 0; c < in_channels; ++c)
        sum.add(static_cast<double>(in.at(y + tap / kernel - border, x + tap % kernel - border,
                                          c * images + lane % images)) *
                weights[(tap * in_channels + c) * out_lanes + lane]);
    wanted.push_back(sum);
  });
  DA2S_SIMD_CALL(product<T>, shape, in.grid(), weights.data(), out.grid(), size, add);
  auto next = wanted.begin();
  out.for_each([&](int64_t y, int64_t x, int64_t lane) {
    DA2S_CHECK_CLOSE(T, out.at(y, x, lane), *next++);
  });
  DA2S_CHECK(out.is_intact());

  if (!add) check_product_moments(shape, in, weights, out);

  const Product one{images, in_channels, out_lanes};
  Buffer<double> sums(in_channels * out_lanes, 0.5);
  DA2S_SIMD_CALL(product_weights<T>, one, in.grid(), out.grid(), size, sums.data());
  for (int64_t c = 0; c < in_channels; ++c)
    for (int64_t lane = 0; lane < out_lanes; ++lane) {
      Sum sum;
      sum.add(0.5);
      for (int64_t y = 0; y < size.height; ++y)
        for (int64_t x = 0; x < size.width; ++x)
          sum.add(static_cast<double>(in.at(y, x, c * images + lane % images)) *
                  out.at(y, x, lane));
      DA2S_CHECK_CLOSE(T, sums[c * out_lanes + lane], sum);
    }
}

template <class T>
void check_product_type() {
  const int64_t vector = vector_lanes<T>();
  for (int64_t images = 1; images <= vector; images *= 2)
    for (const int64_t vectors : {1, 2, 3}) {
      for (const Size& size : kSizes)
        check_product<T>(images, 21, vectors * vector, 1, size, vectors == 2);
      check_product<T>(images, 3, vectors * vector, 3, {4, 9}, false);
    }
  check_product<T>(vector, 2, vector, 1, {2, 300}, false);  // rows longer than one short sum
}

DA2S_TEST(product_of_float) { check_product_type<float>(); }
DA2S_TEST(product_of_double) { check_product_type<double>(); }

}  // namespace
}  // namespace da2s_fast::test

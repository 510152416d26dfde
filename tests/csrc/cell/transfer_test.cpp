// The way of images into groups and back, exact in all types.
#include "pixels.h"

namespace da2s_fast::test {
namespace {

template <class T, class Outer>
void check_layout(int64_t images, int64_t valid, int64_t channels, bool channels_last,
                  bool with_relu) {
  Numbers numbers;
  const Size size{3, 5};
  const ImageStrides at = channels_last ? ImageStrides{1, size.width * channels, channels}
                                        : ImageStrides{size.pixels(), size.width, 1};
  const int64_t image = size.pixels() * channels;
  const Buffer<Outer> from(valid * image, numbers);
  Buffer<Outer> back(valid * image);
  Pixels<T> group(size, channels * images, numbers, {3, 7}, 1);
  DA2S_SIMD_CALL(import_group, from.data(), at, image, valid, images, channels, size, with_relu,
                 group.grid());
  DA2S_SIMD_CALL(export_group, Grid<const T>(group.grid()), at, image, valid, images, channels,
                 size, back.data());
  group.for_each([&](int64_t y, int64_t x, int64_t lane) {
    const int64_t n = lane % images, c = lane / images;
    const int64_t i = n * image + c * at.channel + y * at.row + x * at.pixel;
    double wanted = n < valid ? number(from[i]) : 0;
    if (with_relu && wanted < 0) wanted = 0;
    DA2S_CHECK(group.at(y, x, lane) == wanted);
    if (n < valid) DA2S_CHECK(number(back[i]) == wanted);
  });
  DA2S_CHECK(group.is_intact());
}

template <class T, class Outer>
void check_type() {
  const int64_t vector = vector_lanes<T>();
  for (const bool channels_last : {false, true})
    for (const bool with_relu : {false, true}) {
      check_layout<T, Outer>(1, 1, 2 * vector, channels_last, with_relu);
      check_layout<T, Outer>(1, 1, vector + 1, channels_last, with_relu);
      check_layout<T, Outer>(vector, 1, 3, channels_last, with_relu);
      // Channels for wide vectors, for narrow ones, and some that are left.
      for (int64_t images = 2; images <= vector; images *= 2)
        for (const int64_t channels : {int64_t{3}, 2 * vector + 7})
          check_layout<T, Outer>(images, images, channels, channels_last, with_relu);
    }
}

DA2S_TEST(transfer_of_float) { check_type<float, float>(); }
DA2S_TEST(transfer_of_double) { check_type<double, double>(); }
DA2S_TEST(transfer_of_bfloat16) { check_type<float, BFloat16>(); }
DA2S_TEST(transfer_of_float16) { check_type<float, Float16>(); }

}  // namespace
}  // namespace da2s_fast::test

// Between tensors of PyTorch's and a cell's groups, and the shuffle of channels.
#include <cstring>

#include "bundle.h"

namespace da2s_fast {
namespace {

// Moves the channels of every pixel, `Bytes` each.
template <int64_t Bytes, class T>
void shuffle_pixels(const Plan& plan, Grid<T> pixels, Size size, bool back, T* scratch) {
  const int64_t partial = plan.partial, mixed = plan.mixed(), bytes = plan.channels * Bytes;
  char* copy = reinterpret_cast<char*>(scratch);
  for (int64_t i = 0; i < size.pixels(); ++i) {
    char* pixel = reinterpret_cast<char*>(pixels.data + i * pixels.pixel);
    std::memcpy(copy, pixel, bytes);
    for (int64_t j = 0; j < partial; ++j)
      for (int64_t c = 0; c < mixed; ++c) {
        const int64_t grouped = (j * mixed + c) * Bytes;
        const int64_t shuffled = (c * partial + j) * Bytes;
        std::memcpy(pixel + (back ? grouped : shuffled), copy + (back ? shuffled : grouped), Bytes);
      }
  }
}

}  // namespace

template <class T>
void CellPass<T>::import_images(const Outer& input, int64_t group, bool relu, int64_t channel,
                                int64_t channels, Grid<T> to) const {
  const int64_t images = images_.per_group, valid = images_.valid(group);
  const int64_t first = group * images * input.image + channel * input.at.channel;
  const auto run = [&](const auto* data) {
    DA2S_SIMD_CALL(import_group, data + first, input.at, input.image, valid, images, channels,
                   input.size, relu, to);
  };
  if constexpr (sizeof(T) == sizeof(double)) {
    run(static_cast<const double*>(input.data));
  } else if (input.type == OuterType::float32) {
    run(static_cast<const float*>(input.data));
  } else if (input.type == OuterType::bfloat16) {
    run(static_cast<const BFloat16*>(input.data));
  } else {
    run(static_cast<const Float16*>(input.data));
  }
}

template <class T>
void CellPass<T>::export_images(Grid<const T> from, int64_t group, int64_t channel,
                                int64_t channels, const Outer& output) const {
  const int64_t images = images_.per_group, valid = images_.valid(group);
  const int64_t first = group * images * output.image + channel * output.at.channel;
  const auto run = [&](auto* data) {
    DA2S_SIMD_CALL(export_group, from, output.at, output.image, valid, images, channels,
                   output.size, data + first);
  };
  if constexpr (sizeof(T) == sizeof(double)) {
    run(static_cast<double*>(output.data));
  } else if (output.type == OuterType::float32) {
    run(static_cast<float*>(output.data));
  } else if (output.type == OuterType::bfloat16) {
    run(static_cast<BFloat16*>(output.data));
  } else {
    run(static_cast<Float16*>(output.data));
  }
}

template <class T>
void CellPass<T>::shuffle(Grid<T> pixels, Size size, bool back, T* scratch) const {
  switch (images_.per_group * static_cast<int64_t>(sizeof(T))) {
    case 8:
      return shuffle_pixels<8>(plan_, pixels, size, back, scratch);
    case 16:
      return shuffle_pixels<16>(plan_, pixels, size, back, scratch);
    case 32:
      return shuffle_pixels<32>(plan_, pixels, size, back, scratch);
    case 64:
      return shuffle_pixels<64>(plan_, pixels, size, back, scratch);
    default:
      return shuffle_pixels<sizeof(T)>(plan_, pixels, size, back, scratch);
  }
}

#define DA2S_INSTANTIATE(T)                                                                        \
  template void CellPass<T>::import_images(const Outer&, int64_t, bool, int64_t, int64_t, Grid<T>) \
      const;                                                                                       \
  template void CellPass<T>::export_images(Grid<const T>, int64_t, int64_t, int64_t, const Outer&) \
      const;                                                                                       \
  template void CellPass<T>::shuffle(Grid<T>, Size, bool, T*) const;
DA2S_INSTANTIATE(float)
DA2S_INSTANTIATE(double)

}  // namespace da2s_fast

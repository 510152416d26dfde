#include "sums.h"

#include <cmath>

namespace da2s_fast {

template <class T>
void Moments<T>::add(const Images& images, int64_t chunk, int64_t group, const T* z, int64_t pixels,
                     double* scratch) const {
  const int64_t channels = sums_.channels, per_group = images.per_group;
  const int64_t lanes = channels * per_group, valid = images.valid(group);
  T* pivot = pivots_ + chunk * lanes;
  std::fill_n(scratch, 2 * lanes, 0.0);
  if (group == images.first(chunk)) {
    std::fill_n(sums_.of(chunk), channels, 0.0);
    std::fill_n(squares_.of(chunk), channels, 0.0);
    DA2S_SIMD_CALL(lane_sums<T>, (Grid<const T>{z, 0, lanes}), pixels, lanes, scratch);
    for (int64_t c = 0; c < channels; ++c) {
      double sum = 0;
      fold_lanes(scratch + c * per_group, 1, per_group, valid, &sum);
      const double mean = sum / static_cast<double>(valid * pixels);
      std::fill_n(pivot + c * per_group, per_group, static_cast<T>(std::isfinite(mean) ? mean : 0));
    }
    std::fill_n(scratch, lanes, 0.0);
  }
  DA2S_SIMD_CALL(moments<T>, z, pixels, lanes, pivot, scratch, scratch + lanes);
  fold(images, chunk, group, scratch);
}

template <class T>
void Moments<T>::fold(const Images& images, int64_t chunk, int64_t group,
                      const double* scratch) const {
  const int64_t channels = sums_.channels, per_group = images.per_group;
  const int64_t valid = images.valid(group);
  fold_lanes(scratch, channels, per_group, valid, sums_.of(chunk));
  fold_lanes(scratch + channels * per_group, channels, per_group, valid, squares_.of(chunk));
}

template <class T>
void Moments<T>::finish(const Images& images, int64_t pixels, T* mean, T* variance) const {
  for (int64_t c = 0; c < sums_.channels; ++c) {
    double count = 0, center = 0, spread = 0;
    for (int64_t chunk = 0; chunk < images.chunks; ++chunk) {
      const double more = static_cast<double>(images.count(chunk) * pixels);
      const double shift = sums_.of(chunk)[c] / more;
      const double here = pivots_[(chunk * sums_.channels + c) * images.per_group] + shift;
      const double apart = here - center;
      spread += squares_.of(chunk)[c] - shift * sums_.of(chunk)[c] +
                apart * apart * count * more / (count + more);
      count += more;
      center += apart * more / count;
    }
    mean[c] = static_cast<T>(center);
    variance[c] = static_cast<T>(spread / count);
  }
}

template class Moments<float>;
template class Moments<double>;

}  // namespace da2s_fast

// Backward through a norm, in plain doubles.
#pragma once

#include <cmath>
#include <cstdint>

namespace da2s_fast::test {

// dL/dz of one value of channel c. `sums` are (chunks, 2, channels) of the gradients behind the
// norm and of their products with centred z, `statistics` (2, channels).
inline double before_norm(const double* sums, int chunks, int channels, int c, int64_t pixels,
                          const float* statistics, double eps, double weight, double gradient,
                          double z) {
  double shift = 0, slope = 0;
  for (int chunk = 0; chunk < chunks; ++chunk) {
    shift += sums[chunk * 2 * channels + c] / pixels;
    slope += sums[(chunk * 2 + 1) * channels + c] / pixels;
  }
  const double rstd = 1 / std::sqrt(statistics[channels + c] + eps);
  const double back = shift + (z - statistics[c]) * slope * rstd * rstd;
  return weight * rstd * (gradient - back);
}

}  // namespace da2s_fast::test

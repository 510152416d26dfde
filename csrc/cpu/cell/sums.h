// Sums per channel over the batch: of a norm's input, of gradients.
#pragma once

#include <cstdint>

#include "../workspace.h"
#include "images.h"
#include "kernels.h"

namespace da2s_fast {

// Adds lanes (channels, images) of the valid images to channels.
inline void fold_lanes(const double* lanes, int64_t channels, int64_t images, int64_t valid,
                       double* sums) {
  for (int64_t c = 0; c < channels; ++c)
    for (int64_t n = 0; n < valid; ++n) sums[c] += lanes[c * images + n];
}

// Sums of `channels` numbers for each chunk.
struct ChannelSums {
  ChannelSums() = default;
  ChannelSums(int64_t channels, const Images& images, Arena& arena)
      : channels(channels), data(arena.take<double>(images.chunks * channels)) {}
  double* of(int64_t chunk) const { return data + chunk * channels; }
  void clear(int64_t chunks) const { std::fill_n(data, chunks * channels, 0.0); }
  double total(int64_t channel, int64_t chunks) const {
    double found = 0;
    for (int64_t chunk = 0; chunk < chunks; ++chunk) found += data[chunk * channels + channel];
    return found;
  }

  int64_t channels = 0;
  double* data = nullptr;
};

// Mean and variance of a tensor, of which every chunk sums differences from a pivot, the mean of
// its own first group: sums of squares do not cancel then. Chunks merge as in Chan et al. (1979).
template <class T>
class Moments {
 public:
  Moments() = default;
  Moments(int64_t channels, const Images& images, Arena& arena)
      : sums_(channels, images, arena),
        squares_(channels, images, arena),
        pivots_(arena.take<T>(images.chunks * channels * images.per_group)) {}

  // Adds a group; scratch has 2 * lanes numbers.
  void add(const Images& images, int64_t chunk, int64_t group, const T* z, int64_t pixels,
           double* scratch) const;

  // The same while compute(where) writes z. If `where` is not null, it may add the sums itself, and
  // `streaming` then writes z past the caches; it returns whether it did.
  template <class Compute>
  void add_while(const Images& images, int64_t chunk, int64_t group, const T* z, int64_t pixels,
                 bool streaming, double* scratch, Compute compute) const {
    const int64_t lanes = sums_.channels * images.per_group;
    const bool first = group == images.first(chunk);  // no mean is known yet
    const ProductMoments<T> where{pivots_ + chunk * lanes, scratch, scratch + lanes, streaming};
    std::fill_n(scratch, 2 * lanes, 0.0);
    compute(first ? nullptr : &where) ? fold(images, chunk, group, scratch)
                                      : add(images, chunk, group, z, pixels, scratch);
  }

  // Mean and biased variance per channel.
  void finish(const Images& images, int64_t pixels, T* mean, T* variance) const;

 private:
  void fold(const Images& images, int64_t chunk, int64_t group, const double* scratch) const;

  ChannelSums sums_, squares_;
  T* pivots_ = nullptr;
};

}  // namespace da2s_fast

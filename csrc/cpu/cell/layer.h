// One layer of a cell on one group of images: ReLU's result in, features before the norm out.
//
// A separable layer's depthwise result stays in scratch memory in the second cache and is computed
// again in backward instead of being kept. Its gradient with respect to the input is a depthwise
// convolution again, of the gradient inside a border of zeros, with the kernel turned around. A
// dense layer's likewise, but at stride 2, where it is added tap by tap to where the tap had read.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "../workspace.h"
#include "plan.h"

namespace da2s_fast {

// A layer for images of one size, with its weights in the orders the loops read them in.
template <class T>
class PackedLayer {
 public:
  // `images` in a group; inputs lie inside a border of `border` zeros.
  PackedLayer(const Layer& layer, Size size, int64_t images, int64_t border);

  // Takes memory for the weights; `turned` ones are needed by backward only.
  void lay_out(bool turned, Arena& arena);
  // Puts the weights there.
  void pack(const std::vector<const T*>& weights, bool turned) const;

  const Layer& layer() const { return layer_; }
  Size in_size() const { return size_; }
  Size out_size() const { return layer_.out_size(size_); }
  int64_t in_lanes() const { return in_lanes_; }
  int64_t out_lanes() const { return out_lanes_; }
  // Elements of an input or of the features' gradient with a border, of the features, of the sums
  // of weight gradients.
  int64_t padded() const {
    return (size_.height + 2 * border_) * (size_.width + 2 * border_) *
           std::max(in_lanes_, out_lanes_);
  }
  int64_t features() const { return out_size().pixels() * out_lanes(); }
  int64_t sums() const { return spatial_sums() + layer_.taps_of_product() * product_sums(); }

  // The image inside the border.
  Grid<T> inside(T* padded) const;

  // z from the image inside its border; `middle` holds out pixels * in lanes. Of `ahead` the second
  // place is taken for z. Returns whether z's moments were added to those given.
  bool forward(Grid<const T> in, T* middle, T* z, Ahead* ahead = nullptr,
               const ProductMoments<T>* moments = nullptr) const;

  struct Scratch {
    T* middle;  // out pixels * in lanes
    T* padded;  // padded(), zero between uses but for what backward itself writes
    Ahead* ahead = nullptr;
  };
  // Writes dx, the gradient of the image, or adds to it, and adds to the weights' sums; either may
  // be null.
  void backward(Grid<const T> in, const T* dz, const Scratch& scratch, Grid<T> dx, bool add,
                double* sums) const;
  // An image's gradient in memory of its own.
  Grid<T> dense(T* image) const { return {image, size_.width * in_lanes_, in_lanes_}; }

  // Gradients of the weights, one after the other as they lie in the list, from the chunks' sums,
  // of which the first chunk's become the total.
  void fold(double* sums, int64_t chunk_stride, int64_t chunks, T* gradients) const;

 private:
  int64_t spatial_sums() const { return layer_.separable ? layer_.taps() * in_lanes_ : 0; }
  int64_t product_sums() const { return layer_.in_channels * out_lanes_; }
  Depthwise depthwise_shape(Ahead* ahead) const;
  Product product_shape(Ahead* ahead) const;
  // How many taps of a dense kernel read numbers that follow each other, like one with as many
  // times the channels.
  int64_t joined() const { return layer_.separable || layer_.halves ? 1 : layer_.kernel; }
  int64_t tap_offset(int64_t tap) const { return tap_offset(tap, in_pixel_); }
  int64_t tap_offset(int64_t tap, int64_t pixel) const;
  int64_t turned_tap(int64_t tap) const;
  template <class Visit>
  void for_each_product_weight(Visit visit) const;
  void multiply(Grid<const T> in, Grid<T> z, Ahead* ahead, const ProductMoments<T>* moments) const;
  void halves_forward(Grid<const T> in, T* middle, Grid<T> z) const;
  void separable_backward(Grid<const T> in, const T* dz, const Scratch& scratch, Grid<T> dx,
                          bool add, double* sums) const;
  void dense_backward(Grid<const T> in, const T* dz, const Scratch& scratch, Grid<T> dx, bool add,
                      double* sums) const;
  void gather_input(Grid<const T> g, const Scratch& scratch, Grid<T> dx, bool add) const;
  void spread_input(Grid<const T> g, const Scratch& scratch, Grid<T> dx, bool add) const;

  const Layer& layer_;
  Size size_;
  int64_t images_, border_;
  int64_t in_lanes_, out_lanes_;  // filled up to whole vectors
  int64_t in_pixel_;              // distance of an input's pixels
  T* spatial_ = nullptr;          // (taps, in lanes)
  T* turned_ = nullptr;           // the same, as depthwise_back reads it
  T* product_ = nullptr;          // (taps, in channels, out lanes)
  T* transposed_ = nullptr;       // (taps, out channels, in lanes)
};

}  // namespace da2s_fast

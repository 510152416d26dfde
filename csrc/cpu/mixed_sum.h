// The inner loops of mixed_sum, on one block of every tensor.
//
// Results have a value for every channel of the block. scale, shift, mean_g and slope have a value
// for every column (csrc/cpu/blocks.h) and point at the block's; where they exist per input, those
// of input k are `columns` further than those of input k-1.
#pragma once

#include "blocks.h"
#include "isa.h"
#include "scalar.h"

namespace da2s_fast {

DA2S_DECLARE_SIMD(
    // The mean and the sum of squared deviations from it, per channel.
    template <class T>
    void block_moments(const Block& block, const T* y, double* mean, double* deviations);

    // out = sum_k scale_k (y_k - shift_k)
    template <class T>
    void block_sum(const Block& block, const T* const* ys, int64_t inputs,
                   const compute_t<T>* scale, const compute_t<T>* shift, int64_t columns, T* out);

    // sum_g = sum of g, per channel
    template <class T> void block_total(const Block& block, const T* g, double* sum_g);

    // dot = sum of g (y - shift), per channel
    template <class T> void block_dot(const Block& block, const T* g, const T* y,
                                      const compute_t<T>* shift, double* dot);

    // dy = scale g
    template <class T>
    void block_scale(const Block& block, const T* g, const compute_t<T>* scale, T* dy);

    // dy = scale ((g - mean_g) - slope (y - shift))
    template <class T>
    void block_norm_gradient(const Block& block, const T* g, const T* y, const compute_t<T>* scale,
                             const compute_t<T>* mean_g, const compute_t<T>* slope,
                             const compute_t<T>* shift, T* dy);)

}  // namespace da2s_fast

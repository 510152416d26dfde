// The two passes over a cell. A stage is one parallel loop over the images; between two stages
// lies a barrier, where a norm needs sums over the whole batch (da2s_fast/ops/cell/reference.py).
#pragma once

#include "bundle.h"

namespace da2s_fast {

// Writes the output and the statistics of norms that are not frozen (those of frozen ones are
// given), and what backward needs into saved.
template <class T>
void cell_forward(const CellArguments<T>& arguments, const Outer& output, T* statistics, T* saved);

// What backward is asked for.
template <class T>
struct CellGradients {
  std::vector<const Outer*> inputs;  // null: not wanted
  double* p;                         // (edges, operations), zeros
  double* g;                         // (edges,), zeros
  T* weights;                        // all of them one after the other, zeros; null: not wanted
  std::vector<int64_t> offsets;      // where every weight begins
};

template <class T>
void cell_backward(const CellArguments<T>& arguments, const Outer& gradient, const T* statistics,
                   const T* saved, const CellGradients<T>& wanted);

}  // namespace da2s_fast

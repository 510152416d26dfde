// The one place where compiled CPU implementations meet their operators. The schemas are defined in
// Python (da2s_fast/ops), so the operators exist without this library.
#include <torch/csrc/stable/library.h>

#include "cpu/operators.h"

STABLE_TORCH_LIBRARY_IMPL(da2s_fast, CPU, library) {
  da2s_fast::register_cell(library);
  da2s_fast::register_cell_running(library);
  da2s_fast::register_conv_norm(library);
  da2s_fast::register_discretization_loss(library);
  da2s_fast::register_mixed_sum(library);
  da2s_fast::register_separable_conv(library);
}

STABLE_TORCH_LIBRARY_IMPL(da2s_fast, CompositeExplicitAutograd, library) {
  da2s_fast::register_without_tensors(library);
}

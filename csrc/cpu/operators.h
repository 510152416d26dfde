// What registration.cpp calls: one function per operation file, which names its implementations.
#pragma once

#include <torch/csrc/stable/library.h>

namespace da2s_fast {

void register_cell(torch::stable::detail::StableLibrary& library);
void register_cell_running(torch::stable::detail::StableLibrary& library);
void register_conv_norm(torch::stable::detail::StableLibrary& library);
void register_discretization_loss(torch::stable::detail::StableLibrary& library);
void register_mixed_sum(torch::stable::detail::StableLibrary& library);
void register_separable_conv(torch::stable::detail::StableLibrary& library);
// Operators that take no tensor have no device.
void register_without_tensors(torch::stable::detail::StableLibrary& library);

}  // namespace da2s_fast

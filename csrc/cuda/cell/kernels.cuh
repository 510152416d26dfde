// The kernels by number of channels: a file of csrc/cuda for each number, which compile side by
// side.
#pragma once

#include "backward.cuh"
#include "nodes.cuh"

#define DA2S_KERNELS(C) DA2S_CELL_NODES(C) DA2S_CELL_REACH(C) DA2S_CELL_REACH_7X7(C)

#define DA2S_DECLARE(name, Call) \
  extern "C" __global__ void name(const __grid_constant__ da2s_fast::cell::Call call)

// For who starts them.
#define DA2S_DECLARE_KERNELS(C)        \
  DA2S_DECLARE(cell_nodes_##C, Nodes); \
  DA2S_DECLARE(cell_reach_##C, Reach); \
  DA2S_DECLARE(cell_reach_##C##_7x7, Reach);

// The nodes of a cell: first layers and pools, second layers of separable convolutions, and what
// they mix to.
//
// One launch has all of these tasks (task.cuh) of all nodes. What a task waits for, `node_tasks.py`
// of the driver knows.
#pragma once

#include "entry.cuh"
#include "mix.cuh"

namespace da2s_fast::cell {

template <int C>
__device__ __forceinline__ void nodes(const Nodes& call, char* shared) {
  const Room<C> room(shared, call);
  take_task(call, room.turn);
  const int64_t* task = task_of(call, room.turn);
  const int work = static_cast<int>(task[kTaskWork]);
  if (work == kWorkMix) {
    mix<C>(call, room, call.mixes + task[kTaskRow] * kMix);
    done(task_of(call, room.turn), call.counters);
  } else if (work == kWorkSecond) {
    convolve<C, true>(call, room);
  } else {
    convolve<C, false>(call, room);
  }
}

}  // namespace da2s_fast::cell

#define DA2S_CELL_NODES(C) DA2S_ENTRY(cell_nodes_##C, Nodes, 2, nodes<C>)

// The cell's backward pass from the nodes' gradients to those of the states: for every node, the
// last first, the sums of its candidates, its second layers down to their inner norms, and all that
// reaches the states before it. Then the sums of the preprocessed inputs.
//
// One launch has all of these tasks (task.cuh) of all nodes, or those of one node. What a task
// waits for, `reach_tasks.py` of the driver knows. So a GPU's multiprocessors have work while the
// last programs of a task run, where a launch for each would leave them idle.
#pragma once

#include "candidate_sums.cuh"
#include "entry.cuh"
#include "reach_inner.cuh"
#include "reach_states.cuh"
#include "task.cuh"

namespace da2s_fast::cell {

// kMost: the largest kernel among the rows; those of 7x7 take the registers of two programs.
template <int C, int kMost>
__device__ __forceinline__ void reach(const Reach& call, char* shared) {
  const ReachRoom<C> room(shared, call);
  take_task(call, room.program);
  const int64_t* task = task_of(call, room.program);
  const int row = static_cast<int>(task[kTaskRow]), work = static_cast<int>(task[kTaskWork]);
  if (work == kWorkStates)
    reach_states<C, kMost>(call, room, call.groups + row * kGroup);
  else if (work == kWorkInner)
    reach_inner<C, kMost>(call, room, call.seconds + row * kLayer);
  else if (work == kWorkSums)
    candidate_sums<C>(call, room, call.candidates + row * kLayer);
  else
    input_sums<C>(call, room, call.candidates + row * kLayer);
  done(task_of(call, room.program), call.counters);
}

}  // namespace da2s_fast::cell

#define DA2S_CELL_REACH(C) DA2S_ENTRY(cell_reach_##C, Reach, 2, reach<C, 5>)
#define DA2S_CELL_REACH_7X7(C) DA2S_ENTRY(cell_reach_##C##_7x7, Reach, 1, reach<C, 7>)

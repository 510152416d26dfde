// The tables that tell programs what to do: the columns of kernels/cell/rows.py, all int64.
#pragma once

#include <cstdint>

namespace da2s_fast::cell {

// Columns of a `Layer`.
enum : int {
  kKind,
  kSource,
  kHeight,
  kWidth,
  kStride,
  kDilation,
  kKernel,
  kPadding,
  kCout,
  kColumn,
  kSpatial,
  kProduct,
  kZ,
  kPosition,
  kMoments,
  kStatistics,
  kFrozen,
  kInner,
  kInnerMoments,
  kInnerFrozen,
  kEdge,
  kOperation,
  kGradient,
  kGradientPitch,
  kSums,
  kReached,
  kInnerGradient,
  kInnerSums,
  kLayer
};  // clang-format skip
enum : int { kSeparable, kDense, kMaximum, kAverage, kSkip, kNothing, kBypass };

// Columns of a `Group`: consecutive layers that read one state.
enum : int {
  kGroupFirst,
  kGroupLength,
  kGroupState,
  kGroupGradient,
  kGroupShuffled,
  kGroup
};  // clang-format skip

// Columns of a `Task`: what a program for each chunk does, what it waits for and what it counts up.
enum : int { kTaskWork, kTaskRow, kTaskFirst, kTaskLength, kTaskCounter, kTaskArrivals, kTask };
enum : int { kWorkFirst, kWorkSecond, kWorkMix, kWorkSums, kWorkInner, kWorkStates, kWorkInput };

// Columns of a `Wait`: until a counter is that high.
enum : int { kWaitCounter, kWaitCount, kWait };

// Columns of a `Pack`: consecutive layers with one source and stride, pools first.
enum : int { kPackFirst, kPackLength, kPackPools, kPack };

// Columns of a `Mix`: a part of every chunk of a node, and the candidates and bypasses it sums.
enum : int {
  kMixFirst,
  kMixCandidates,
  kMixRows,
  kMixState,
  kMixColumn,
  kMixPart,
  kMixParts,
  kMix
};

// Of a pack: with more channels, each row's sums would take more room from the tile.
template <int C>
constexpr int kMostRows = C > 24 ? 192 / C : 8;

}  // namespace da2s_fast::cell

// What the cell's forward kernel is given and keeps in shared memory.
#pragma once

#include "table.cuh"
#include "task.cuh"

namespace da2s_fast::cell {

// What a launch is given; tests/gpu/ptx/cuda.py packs the same fields.
struct Nodes {
  const int64_t* tasks;   // of `Task`
  const int64_t* waits;   // of `Wait`, the tasks'
  int* counters;          // of tickets, then the tasks'
  const int64_t* packs;   // of `Pack`, rows of the tasks
  const int64_t* layers;  // of `Layer`, the packs' rows
  const int64_t* mixes;   // of `Mix`, rows of the tasks
  const int64_t* mixed;   // of `Layer`, the mixes' rows
  float* states;
  float* z;
  const float* weights;
  const float* p_weights;  // (edges, operations)
  const float* g_weights;  // (edges,), or none
  double* moments;
  float* statistics;  // of all norms
  void* output;
  int64_t output_image;  // numbers from image to image of the output
  int64_t output_channel;
  int64_t output_row;
  int64_t output_column;
  double eps;
  int pixels;        // of a node
  int chunk_pixels;  // of a chunk
  int height;        // of a node
  int width;
  int images;
  int chunks;
  int operations;   // columns of p
  int pitch;        // channels of a state
  int known;        // all statistics are known, nobody needs the moments
  int type;         // of the output, see `store_as`
  int halo;         // pixels around a tile of first layers
  int second_halo;  // likewise of second layers
  int taps;         // most of a depthwise convolution
  int log_width;    // extents of a tile
  int log_height;
  int log_images;
};

// What a program works on, once it knows; in registers, threads would miss the room meanwhile.
struct Turn {
  int task;
  int chunk;
  int first;   // pixel of the chunk
  int end;     // of its pixels
  int length;  // rows of the pack
  int pools;   // of which are pools
  int fresh;   // pixels of the chunk's first tile while it is at that, then 0
  int last;    // whether it is the last program of its task
};

__device__ inline void begin(const Nodes& call, int task, int chunk, Turn* turn) {
  const int first = chunk * call.chunk_pixels, end = first + call.chunk_pixels;
  turn->task = task;
  turn->chunk = chunk;
  turn->first = first < call.pixels ? first : call.pixels;
  turn->end = end < call.pixels ? end : call.pixels;
}

// Shared memory of a program. What the tile takes is behind everything else.
template <int C>
struct Room {
  double* sums;   // (rows, C, 2) of the chunk
  int64_t* rows;  // of the table
  Turn* turn;
  float* norm;     // (2, C)
  float* pivots;   // (rows, C)
  float* partial;  // (warps, C, 2)
  float* product;  // (C, C)
  float* spatial;  // (taps, C)
  float* between;  // (pixels of the tile, C), or two numbers per thread
  float* tile;

  __device__ Room(char* start, const Nodes& call) {
    const int numbers = C << (call.log_width + call.log_height + call.log_images);
    Shared shared{start};
    sums = shared.take<double>(kMostRows<C> * C * 2);
    rows = shared.take<int64_t>(kMostRows<C> * kLayer);
    turn = shared.take<Turn>(1);
    norm = shared.take<float>(2 * C);
    pivots = shared.take<float>(kMostRows<C> * C);
    partial = shared.take<float>(kWarps * C * 2);
    product = shared.take<float>(C * C);
    spatial = shared.take<float>(call.taps * C);
    between = shared.take<float>(numbers > 2 * kThreads ? numbers : 2 * kThreads);
    tile = shared.take<float>(0);
  }
};

}  // namespace da2s_fast::cell

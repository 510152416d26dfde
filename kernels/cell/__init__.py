"""Triton kernels of the cell; da2s_fast/ops/cell says what is computed, docs/engine.md how.

Inside a cell a tensor is (pixels, channels): all pixels of all images, row by row, the channels of
a pixel adjacent. A launch works on everything between two barriers at once: its grid has an axis
of *rows* (`rows`), each a layer or candidate, which say where its tensors are and what to do with
them. One kernel serves all kernel sizes, dilations and strides that way.

Sums over the batch are taken chunk by chunk: a program sums one chunk of the pixels, tile by tile,
and whoever needs the sum adds up the chunks in order, in float64. Nothing is added atomically, so
that results are the same bits from run to run.

| file | kernels |
| --- | --- |
| `prepare` | the inputs' preprocessing: convolutions, then states |
| `convolve` | layers and pools with their moments |
| `mix` | a node |
| `sums` | the output's gradient; the sums of the norms' backward passes |
| `reach` | from the gradient behind a norm to a state (`reach_states`) or an inner norm |
| `prepare_backward` | the preprocessing's gradients |
| `finish` | gradients of weights, of p and of g, from the chunks' sums |

`window`, `norm_backward`, `pull` and `gather` have what these are made of, `rows` the tables'
columns, `common` what all share.

A cell of two inputs and four nodes takes 14 launches forward, 3 of them for each node, and 15
backward, 3 for each node. Where layers are computed again, 8 more. With the kernels of csrc/cuda
those of all nodes are one launch each way.

What one image of 32 x 32 moves in such a cell with 16 channels and 7 operations, float32, z saved:
different sectors of each launch, summed, from executing the code compiled for sm_80 (MB):

| kernel | launches | read | written |
| --- | --- | --- | --- |
| `prepare`, `settle` | 2 | 0.60 | 0.26 |
| `convolve` | 8 | 2.97 | 6.59 |
| `mix` | 4 | 6.52 | 0.54 |
| `begin` | 1 | 2.56 | 0.40 |
| `reach_inner` | 4 | 5.85 | 3.74 |
| `reach_states` | 4 | 11.44 | 1.95 |
| `candidate_sums` | 4 | 4.60 | 0.02 |
| `leave`, `finish` | 2 | 0.95 | 0.65 |
| all | 29 | 35.5 | 14.2 |
"""

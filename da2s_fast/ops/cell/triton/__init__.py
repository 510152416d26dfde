"""The cell on GPUs: what the Triton kernels of `da2s_fast.kernels.cell` are started with.

- `tiling`: the tiles and chunks that a cell is cut into; needs no Triton;
- `layout`: where in flat buffers every tensor of a cell lies; likewise;
- `tables`: the rows that tell the kernels' programs what to do, kept on the device;
- `forward`, `backward`: the operators' drivers, launch by launch; `drivers` collects them.
"""

"""The cell on GPUs: what the Triton kernels of `da2s_fast.kernels.cell` are started with.

- `layout`: where in flat buffers every tensor of a cell lies; needs no Triton;
- `tables`: the rows that tell the kernels' programs what to do, kept on the device;
- `forward`, `backward`: the operators' drivers, launch by launch; `drivers` collects them.
"""

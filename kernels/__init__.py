"""The room for Triton kernels, installed as `da2s_fast.kernels`.

One file per fused operation, under the operation's name (`kernels/mixed_sum.py` holds the Triton
kernels of `da2s_fast/ops/mixed_sum.py`). A file here imports triton and nothing of da2s_fast;
importing this package itself needs no triton.

What kernels keep to: indices that grow with the batch are 64 bits wide (program ids are cast before
they are multiplied); no atomics, so that a result is the same every time; and no sum over a tile
of bare products. Those the compiler may fuse with the first addition, whose two operands then are
rounded differently, so that the lanes that share a sum end with different ones: a `tl.where` with
the tile's mask keeps product and addition apart.
"""


def can_run() -> tuple[bool, str]:
    """Tell whether Triton kernels can run here.

    Returns:
        Whether they can, and a sentence for people: what is missing and what to do, or what they
        would run on.
    """
    try:
        from triton.backends import backends  # noqa: PLC0415 - this package must import without it
    except ImportError:
        return False, "Triton is not installed: install a torch build for GPUs, which brings it."
    active = [name for name, backend in backends.items() if backend.driver.is_active()]
    if not active:
        return False, "no GPU that Triton can use is visible: run on a machine with one."
    return True, f"Triton runs on {', '.join(active)}."

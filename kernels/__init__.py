"""The room for Triton kernels, installed as `da2s_fast.kernels`.

One file per fused operation, under the operation's name (`kernels/mixed_sum.py` holds the Triton
kernels of `da2s_fast/ops/mixed_sum.py`). A file here imports triton and nothing of da2s_fast;
importing this package itself needs no triton.
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

"""The scratch memory that fused operations keep from one call to the next."""

import torch

from da2s_fast.ops._backend import define_operator

# Without tensor arguments there is no device to choose an implementation by: the compiled library
# registers these for every device at once.
_BYTES = define_operator("workspace_bytes() -> int")
_RELEASE = define_operator("release_workspaces() -> ()")


def workspace_bytes() -> int:
    """Tell how much memory the fused operations hold as scratch, for all threads together.

    Scratch grows to what the largest call needed and is used again by later calls; a call to
    :func:`release_workspaces` gives it back.

    Returns:
        The bytes held now; 0 where no compiled operation keeps any.
    """
    return torch.ops.da2s_fast.workspace_bytes() if _has_kernel(_BYTES) else 0


def release_workspaces() -> None:
    """Give back the scratch memory of the fused operations, that of all threads.

    Later calls allocate it again; what a call in another thread is using stays. Does nothing where
    no compiled operation keeps any.
    """
    if _has_kernel(_RELEASE):
        torch.ops.da2s_fast.release_workspaces()


def _has_kernel(operator: str) -> bool:
    key = "CompositeExplicitAutograd"
    return bool(torch._C._dispatch_has_kernel_for_dispatch_key(operator, key))

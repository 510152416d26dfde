"""What the machine finds wrong in a kernel."""

from __future__ import annotations


class KernelFault(AssertionError):
    """A kernel did what would be undefined or nondeterministic on a GPU."""


class MemoryFault(KernelFault):
    """An access outside of every tensor, misaligned, or to what must not be written."""


class UninitializedRead(KernelFault):
    """Shared or local memory was read before anything was written there."""


class Race(KernelFault):
    """Threads touch the same bytes without a barrier, or a release and an acquire, between them."""


class DivergentBarrier(KernelFault):
    """Threads of a program wait at a barrier that the others do not reach."""


class NoProgress(KernelFault):
    """Programs wait for what nobody does, or more instructions ran than a launch may execute."""

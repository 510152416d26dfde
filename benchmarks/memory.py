"""The peak memory of a stretch of code, in the process that runs it."""

from __future__ import annotations

import contextlib
import ctypes
import gc
from pathlib import Path

import torch

from da2s_fast.ops.workspace import release_workspaces

_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


class PeakMemory:
    """From now on, how much more memory the process, or the GPU, has held at most."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        release_memory(device)
        self.start: int | None
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
            self.start = torch.cuda.memory_allocated(device)
            return
        # Elsewhere than on Linux, a fresh process's peak is that of its largest step anyway.
        with contextlib.suppress(OSError):
            _CLEAR.write_text("5", encoding="ascii")  # resets VmHWM, see man 5 proc
        self.start = _status("VmRSS")

    def above_start(self) -> int | None:
        """Bytes; None where the system does not tell."""
        if self.device.type == "cuda":
            return torch.cuda.max_memory_allocated(self.device) - (self.start or 0)
        peak = _status("VmHWM")
        return None if peak is None or self.start is None else max(0, peak - self.start)


def release_memory(device: torch.device) -> None:
    """Give what was freed back to the system, fused operators' workspaces included."""
    gc.collect()
    release_workspaces()
    if device.type == "cuda":
        torch.cuda.empty_cache()
    with contextlib.suppress(AttributeError, OSError):  # only glibc has it
        ctypes.CDLL(None).malloc_trim(0)


def _status(key: str) -> int | None:
    try:
        lines = _STATUS.read_text(encoding="ascii").splitlines()
    except OSError:
        return None
    found = [line.split()[1] for line in lines if line.startswith(f"{key}:")]
    return int(found[0]) * 1024 if found else None

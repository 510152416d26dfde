"""Whether a cell may keep what its backward pass needs, or had better compute it again."""

from __future__ import annotations

import os
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

import torch

from da2s_fast.errors import UserError
from da2s_fast.ops._backend import constant_in_graphs
from da2s_fast.ops._triton import rounds_to_tf32
from da2s_fast.ops.cell.triton.layout import saved_size as saved_size_on_gpus

MemoryChoice = Literal["auto", "save", "recompute"]
"""save: keep every z for the backward pass, the fastest. recompute: keep the nodes only and
compute the rest again. auto: save where that leaves a quarter of the memory free, asked at every
call; a graph that was compiled keeps the answer of its compilation. The numbers are the same."""

_LEFT_FREE = 1 / 4  # for the backward pass, the data and everybody else on the machine


_answers: dict[tuple[Any, ...], bool] = {}  # the last one for every cell on a GPU


class _Group(NamedTuple):
    """A control group (container) that limits memory."""

    limit: int
    usage: Path
    stat: Path


def fits(needed: int, device: torch.device) -> bool:
    """Whether `needed` bytes more leave a quarter of the memory free: a GPU's, or the machine's."""
    total, available = gpu_memory(device) if device.type == "cuda" else memory()
    return available - needed >= _LEFT_FREE * total


def gpu_memory(device: torch.device) -> tuple[int, int]:
    """Bytes of a GPU's memory in all and free for use.

    Free is what the driver has, and what torch holds without using it.
    """
    free, total = torch.cuda.mem_get_info(device)
    # Flat statistics, which `torch.cuda.memory_reserved` reads, take longer than small kernels.
    held = torch.cuda.memory_stats_as_nested_dict(device)
    reserved, allocated = (
        held.get(f"{kind}_bytes", {}).get("all", {}).get("current", 0)
        for kind in ("reserved", "allocated")
    )
    return total, free + reserved - allocated


def memory(root: Path = Path("/")) -> tuple[int, int]:
    """Bytes of memory in all and free for use: of the machine or the tightest container around.

    Where the system does not say what is free, half of all is taken to be.

    Args:
        root: where `proc` and `sys` are.
    """
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    available = total // 2
    try:
        lines = dict(
            line.split(":") for line in (root / "proc/meminfo").read_text().splitlines() if line
        )
        total, available = (
            int(lines[key].split()[0]) * 1024 for key in ("MemTotal", "MemAvailable")
        )
    except (OSError, ValueError, KeyError):  # not Linux
        pass
    for group in _groups(root, total):
        # Pages of files count as used, but are given back when they are needed.
        used = int(group.usage.read_text()) - _file_pages(group.stat)
        total, available = min(total, group.limit), min(available, group.limit - used)
    return total, available


@cache
def _groups(root: Path, total: int) -> list[_Group]:
    """The limited control groups that this process is in (versions 1 and 2)."""
    try:
        entries = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        return []
    found = []
    for _, controllers, path in (entry.split(":", 2) for entry in entries):
        if controllers == "":
            base, limit, usage = root / "sys/fs/cgroup", "memory.max", "memory.current"
        elif "memory" in controllers.split(","):
            base = root / "sys/fs/cgroup/memory"
            limit, usage = "memory.limit_in_bytes", "memory.usage_in_bytes"
        else:
            continue
        own = base / path.lstrip("/")
        for folder in (own, *(parent for parent in own.parents if parent.is_relative_to(base))):
            try:
                bytes_ = int((folder / limit).read_text())
                int((folder / usage).read_text())
            except (OSError, ValueError):  # no such group here, or "max"
                continue
            if bytes_ < total:
                found.append(_Group(bytes_, folder / usage, folder / "memory.stat"))
    return found


def _file_pages(stat: Path) -> int:
    lines = (line.split() for line in stat.read_text().splitlines())
    numbers = {name: int(value) for name, value in lines}
    # Version 1 counts the groups below in separate lines.
    prefix = "total_" if "total_inactive_file" in numbers else ""
    return sum(numbers.get(f"{prefix}{name}", 0) for name in ("inactive_file", "active_file"))


def saved_size(  # noqa: PLR0917 - the operator's arguments
    device: torch.device,
    code: Sequence[int],
    batch: int,
    sizes: Sequence[int],
    save: bool,
    element: int,
) -> int:
    """How many numbers the kernels for a device keep for the backward pass; see `saves`."""
    if device.type == "cuda":
        return saved_size_on_gpus(code, batch, sizes, save, rounds_to_tf32())
    return int(torch.ops.da2s_fast.cell_saved_size(list(code), batch, list(sizes), save, element))


@constant_in_graphs
def saves(  # noqa: PLR0917 - the operator's arguments
    choice: MemoryChoice,
    device: torch.device,
    code: tuple[int, ...],
    batch: int,
    sizes: tuple[int, ...],
    element: int,
) -> bool:
    """Whether a cell that will be differentiated keeps what its backward pass needs.

    Args:
        choice: what was asked for.
        device: where it is computed.
        code: the encoded plan.
        batch: N.
        sizes: channels, height and width of every input.
        element: bytes of a number in the arithmetic's type.

    Raises:
        UserError: an unknown choice.
    """
    if choice not in get_args(MemoryChoice):
        raise UserError(f"cell got memory={choice!r}; choose one of {get_args(MemoryChoice)}")
    if choice != "auto":
        return choice == "save"
    key = (device, code, batch, sizes, element)
    if device.type == "cuda" and torch.cuda.is_current_stream_capturing():
        # A recorded step is to run as the steps before it did, and their memory is still taken.
        return _answers.get(key, False)
    answer = fits(saved_size(device, code, batch, sizes, True, element) * element, device)
    if device.type == "cuda":
        _answers[key] = answer
    return answer

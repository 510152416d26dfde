"""All meters of the report, by as many processes as there are processors."""

from __future__ import annotations

import multiprocessing
import sys
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import triton

from benchmarks import traffic
from da2s_fast.kernels.launch import CudaKernel, Launch
from da2s_fast.ops.cell.reference import Memory
from da2s_fast.spaces.space import DA2S
from tests.gpu.ptx.cuda import nvcc_version
from tests.gpu.ptx.launcher import PtxLauncher
from tests.gpu.ptx.meter import Meter
from tests.gpu.report import network
from tests.gpu.report.cases import (
    BATCH_SIZE,
    CASES,
    COUNTING,
    EXECUTED,
    cuda_kernels,
    in_cuda,
    is_cuda,
)
from tests.gpu.report.compiled import compiled_rows
from tests.gpu.report.executed import Chunked, chunked, chunks, executed_rows, rows_of
from tests.gpu.report.table import Report, Row

ARCHITECTURES = (80, 90, 100)
_FIRST = ARCHITECTURES[0]
# Sectors hardly depend on the architecture: what takes long is executed for one of them.
_EVERYWHERE = ("discretization_loss", "mixed_sum", "cell, C=16")
_SUMMED = ("instructions", "requested", "read", "written", "once")

Job = tuple[Callable[..., list[Row]], tuple[Any, ...]]


def measure() -> Report:
    """Everything; deterministic for a version of Triton."""
    networks: list[Job] = [(executed_network, (memory,)) for memory in ("save", "recompute")]
    executed: list[Job] = [
        (_executed, (name, arch))
        for name in EXECUTED
        for arch in ARCHITECTURES
        if arch == _FIRST or name in _EVERYWHERE
    ]
    compiled: list[Job] = [(_compiled, (name, arch)) for name in CASES for arch in ARCHITECTURES]
    # Each process is spawned: Triton, torch and their threads do not outlive a fork well.
    with ProcessPoolExecutor(mp_context=multiprocessing.get_context("spawn")) as pool:
        waiting = [
            [pool.submit(_run, *job) for job in own] for own in (networks, executed, compiled)
        ]
        rows = [[row for job in own for row in job.result()] for own in waiting]
    return {
        "triton": triton.__version__,
        "nvcc": nvcc_version(),
        "batch": BATCH_SIZE,
        "network": rows[0],
        "executed": rows[1],
        "compiled": rows[2],
    }


def _run(function: Callable[..., list[Row]], arguments: tuple[Any, ...]) -> list[Row]:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    found = function(*arguments)
    print(function.__name__.strip("_"), *arguments, file=sys.stderr, flush=True)
    return found


def _compiled(name: str, arch: int) -> list[Row]:
    return compiled_rows(name, CASES[name], arch)


def _executed(name: str, arch: int) -> list[Row]:
    return executed_rows(name, EXECUTED[name], arch)


def counted_network(name: str) -> Row:
    """What of the network's row needs nothing executed, by the row's name."""
    with _kernels_of(name):
        one, two = (
            network.run_step(_memory_of(name), lambda launch: None, images=images)
            for images in (1, 2)
        )
    return {
        "case": name,
        "kernel": "all",
        "arch": _FIRST,
        "launches": one.launches.total(),
        "calls": one.calls.total(),
        "torch": one.bytes,
        "torch further": two.bytes - one.bytes,
    }


def _memory_of(name: str) -> Memory:
    return "save" if name.startswith("save") else "recompute"


def _kernels_of(name: str) -> AbstractContextManager[None]:
    return cuda_kernels() if is_cuda(name) else nullcontext()


def chunked_network(name: str, images: int) -> list[Chunked]:
    """What the launches of a batch have of partial sums, by the row's name; none is executed."""
    found: list[Chunked] = []
    with _kernels_of(name):
        network.run_step(
            _memory_of(name), lambda launch: found.append(chunked(launch)), images=images
        )
    return found


def executed_network(memory: Memory) -> list[Row]:
    """The network's rows, with the sectors of all launches; then with kernels of csrc/cuda."""
    launcher = PtxLauncher(_FIRST)
    network.run_step(memory, launcher)
    before, launcher.meters = launcher.meters, []
    metered: dict[str, list[Meter]] = {}
    for meter in before:
        metered.setdefault(meter.kernel, []).append(meter)

    def start(launch: Launch) -> None:
        name = network.kernel_of(launch)
        # What is left to Triton has been metered, but for what counts for csrc/cuda's kernels.
        if isinstance(launch.kernel, CudaKernel) or name in COUNTING:
            launcher(launch)
        else:
            launcher.meters.append(metered[name].pop(0))

    with cuda_kernels():
        network.run_step(memory, start)
    return [_network_row(memory, before), _network_row(in_cuda(memory), launcher.meters)]


def _network_row(name: str, meters: list[Meter]) -> Row:
    rows = rows_of("network", meters, _FIRST)
    least = traffic.search_network(
        DA2S, network.CHANNELS, network.CELLS, 1, network.SIDE, needs_weights=True
    )
    summed = {part: sum(row[part] for row in rows) for part in _SUMMED}
    one, several = (chunked_network(name, images) for images in (1, BATCH_SIZE))
    parts = chunks(meters, one, several, BATCH_SIZE)
    return {**counted_network(name), **summed, **parts, "least": least}

"""Meters of launches that are executed: instructions, sectors asked for and different ones."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from torch import Tensor

from da2s_fast.kernels.launch import Launch, launched_by
from tests.gpu.ptx.launcher import PtxLauncher
from tests.gpu.ptx.meter import Meter, total
from tests.gpu.report.cases import COUNTING, Case, is_metered
from tests.gpu.report.network import kernel_of

Row = dict[str, Any]
SECTOR = 32

# What is there once, however many images a batch has; all else is there for every image, but for
# partial sums.
_ONCE = (
    "table", "tasks", "waits", "counters", "packs", "layers", "mixes", "mixed", "candidates",
    "seconds", "groups", "completed", "weights", "p_weights", "g_weights", "statistics",
    "mean", "variance", "slope", "mean_grad", "grad_weights", "to_p", "to_g", "to_weights",
    "spatial", "channel", "to_spatial", "to_channel", "rows",
)  # fmt: skip
# Partial sums, which are there for every chunk of a batch.
_CHUNKED = ("moments", "sums", "weight_gradients")


class Chunked(NamedTuple):
    """What a launch has of partial sums.

    Attributes:
        kernel: its name.
        numbers: how many its chunks have together, by parameter.
    """

    kernel: str
    numbers: dict[str, int]


def executed_rows(name: str, case: Case, arch: int) -> list[Row]:
    """A row for each kernel that a case launches, for one image."""
    launcher = PtxLauncher(arch)

    def start(launch: Launch) -> None:
        if is_metered(case, launch):
            launcher(launch)
        elif kernel_of(launch) in COUNTING:
            launcher(launch)
            launcher.meters.pop()

    with launched_by(start):
        case.run(1, "cpu")
    rows = rows_of(name, launcher.meters, arch)
    for kernels, size in case.least().items():
        last = [row for row in rows if row["kernel"] in kernels][-1:]
        for row in last:
            row["least"] = size
    return rows


def rows_of(name: str, meters: Iterable[Meter], arch: int) -> list[Row]:
    """Meters summed by kernel."""
    kernels: dict[str, list[Meter]] = {}
    for meter in meters:
        kernels.setdefault(meter.kernel, []).append(meter)
    return [
        {"case": name, "kernel": kernel, "arch": arch, **_summed(found)}
        for kernel, found in kernels.items()
    ]


def _summed(meters: list[Meter]) -> Row:
    summed = total(meters)
    return {
        "launches": len(meters),
        "instructions": summed.instructions.total(),
        "requested": SECTOR * summed.requested,
        "read": SECTOR * summed.sectors_read,
        "written": SECTOR * summed.sectors_written,
        "once": SECTOR * sum(map(_once, meters)),
        "wide": round(summed.share_of_128_bits, 3),
        "atomics": sum(summed.atomics.values()),
    }


def _once(meter: Meter) -> int:
    """Sectors that a batch has but once."""
    return sum(
        read + written
        for name, (read, written) in meter.by_tensor.items()
        if name.split("[")[0] in _ONCE
    )


def chunked(launch: Launch) -> Chunked:
    """What a launch, executed or not, has of partial sums."""
    given = {name: launch.arguments.get(name) for name in _CHUNKED}
    return Chunked(
        kernel_of(launch),
        {name: value.numel() for name, value in given.items() if isinstance(value, Tensor)},
    )


def chunks(
    meters: Sequence[Meter], one: Sequence[Chunked], several: Sequence[Chunked], batch: int
) -> Row:
    """Bytes of partial sums: what one image has, as it was metered, and what each of a batch has.

    They grow more slowly than the batch: one large image is cut into several chunks, while of a
    batch many share one.

    Args:
        meters: of one image's launches.
        one: the same launches.
        several: those of a batch.
        batch: its images.

    Raises:
        ValueError: if these are not launches of the same kernels in the same order.
    """
    kernels = [meter.kernel for meter in meters]
    if any(kernels != [launch.kernel for launch in launches] for launches in (one, several)):
        raise ValueError(f"{batch} images are not launched as one is")
    alone, each = 0, 0.0
    for meter, own, shared in zip(meters, one, several, strict=True):
        for name, numbers in own.numbers.items():
            # Parameters that a kernel was compiled without have no sectors, nor have empty tensors.
            if size := SECTOR * sum(meter.by_tensor.get(name, ())):
                alone += size
                each += size * shared.numbers[name] / (batch * numbers)
    return {"chunks": alone, "chunks of each": round(each)}

"""Meters of launches that are executed: instructions, sectors asked for and different ones."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from da2s_fast.kernels.launch import Launch, launched_by
from tests.gpu.ptx.launcher import PtxLauncher
from tests.gpu.ptx.meter import Meter, total
from tests.gpu.report.cases import COUNTING, Case, is_metered
from tests.gpu.report.network import kernel_of

Row = dict[str, Any]
SECTOR = 32

# What is there once, however many images a batch has; all else is there for every image, or, as
# sums are, for every chunk of images.
_ONCE = (
    "table", "tasks", "waits", "counters", "packs", "layers", "mixes", "mixed", "candidates",
    "seconds", "groups", "completed", "weights", "p_weights", "g_weights", "statistics",
    "mean", "variance", "slope", "mean_grad", "grad_weights", "to_p", "to_g", "to_weights",
    "spatial", "channel", "to_spatial", "to_channel",
)  # fmt: skip


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

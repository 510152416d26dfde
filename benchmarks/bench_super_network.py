"""Forward and backward of the full super-networks: eager in two layouts, and ours.

The architecture step alone and the weight step alone compute half of the gradients; they stand
against the full backward of eager PyTorch, which is what the public code runs in either step.
"""

from typing import Any

import pytest

from benchmarks.cases import EAGER, EAGER_CHANNELS_LAST, all_rows, gpu_rows, half_steps, our_rows
from benchmarks.conftest import Options
from benchmarks.measure import DEVICES
from benchmarks.networks import DA2S, IMAGENET, PC_DARTS, TITLES, SearchNetwork
from benchmarks.results import Measurement
from benchmarks.rounds import check_and_measure
from benchmarks.tables import Table, results_table, seconds

EPOCH_IMAGES = 25_000  # half of CIFAR-10's training set teaches the weights


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("case", [DA2S, PC_DARTS], ids=["da2s", "pc-darts"])
def bench_super_network(benchmark, options, publish, case, device):
    found, table = measured(benchmark, options, case, device)
    table.notes += epoch_notes(found, options.batch)
    publish(table)


@pytest.mark.parametrize("device", [device for device in DEVICES if device == "cuda"])
def bench_imagenet(benchmark, options, publish, device):
    """Large images: hours on a CPU."""
    publish(measured(benchmark, options._replace(batch=256), IMAGENET, device)[1])


def measured(
    benchmark: Any, options: Options, case: SearchNetwork, device: str
) -> tuple[Measurement, Table]:
    """All rows of a network, with those that only GPUs have."""
    rows = [*all_rows(case), *half_steps(our_rows(case))]
    if device == "cuda":
        rows += gpu_rows([EAGER, *our_rows(case)])
    found = check_and_measure(benchmark, options, case, rows, device)
    return found, results_table(f"{TITLES[case]}, batch {options.batch}, {device}", found)


def epoch_notes(found: Measurement, batch: int) -> list[str]:
    """An epoch of the search on CIFAR-10: as many architecture steps as weight steps."""
    steps = EPOCH_IMAGES // batch
    epochs = {}
    for row in (EAGER, EAGER_CHANNELS_LAST):
        if result := found.result(row.name):
            epochs[row.name] = 2 * result.median
    for result in found.results:
        name = result.row.name.removesuffix(", architecture step")
        if name != result.row.name and (weights := found.result(f"{name}, weight step")):
            epochs[name] = result.median + weights.median
    times = "; ".join(f"{name} {seconds(steps * step)}" for name, step in epochs.items())
    return [
        f"a CIFAR-10 search epoch, extrapolated, not measured: {steps} architecture steps and "
        f"{steps} weight steps of the medians above (eager: two full backwards each time), "
        f"without data and optimizers: {times}"
    ]

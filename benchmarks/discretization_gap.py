"""The README's evidence: what cutting costs after DARTS, DA2S and DA2S on partial channels.

Runs every search of the table in a process of its own, then retrains what it found:

    python -m benchmarks.discretization_gap --out runs/gap [--jobs 2] [--figure docs/gap.svg]

Finished runs are kept and interrupted ones continued; `da2s compare runs/gap/*` shows them side by
side. CIFAR-10 comes from DA2S_DATA or is downloaded by torchvision.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import mean, stdev

import matplotlib
from matplotlib import pyplot as plt
from matplotlib.ticker import MaxNLocator

from da2s_fast.report import RunRecord, load_run
from da2s_fast.search.discretize import DISCRETE_BETA, DISCRETE_P

# Small enough for two cores: 3,000 images, 5 cells of 8 channels; all else are the defaults for
# that size.
DATA = ["--data=cifar10", "--limit=3000"]
SIZE = [
    "--cells=5",
    "--channels=8",
    "--epochs=20",
    "--batch_size=64",
    "--measure_images=500",
]
VARIANTS = {
    "DARTS": ["--method=darts"],
    "DA2S": ["--method=da2s"],
    "DA2S, partial channels": ["--method=da2s", "--partial_channels=4"],
}
IMBALANCED = "DA2S, imbalanced"
KEEP = ["--method=da2s", "--keep_normal=[1,2,3,2]", "--keep_reduce=[2,1,3,2]"]
RETRAIN = ["--channels=16", "--cells=5", "--epochs=10", "--batch_size=64"]


def searches(seeds: int) -> dict[tuple[str, int], list[str]]:
    """Settings of every search, by variant and seed."""
    runs = {(name, seed): flags for seed in range(seeds) for name, flags in VARIANTS.items()}
    return runs | {(IMBALANCED, 0): KEEP}


def folder(out: Path, variant: str, seed: int) -> Path:
    """Run folder of a search; its retraining lies in `retrain` below."""
    return out / f"{variant.lower().replace(', ', '-').replace(' ', '-')}-seed{seed}"


def da2s(*arguments: str) -> None:
    """Run the command line on one thread, so that jobs do not disturb each other."""
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    subprocess.run([sys.executable, "-m", "da2s_fast", *arguments], check=True, env=environment)


def search(out: Path, variant: str, seed: int, flags: list[str]) -> None:
    """Search, or go on searching, as far as it is not done."""
    path = folder(out, variant, seed)
    complete(path, "search", f"--out={path}", *DATA, f"--seed={seed}", *SIZE, *flags)


def retrain(out: Path, variant: str, seed: int) -> None:
    """Train what a search has found from scratch."""
    found = folder(out, variant, seed)
    path = found / "retrain"
    complete(path, "retrain", str(found), f"--out={path}", *DATA, f"--seed={seed}", *RETRAIN)


def complete(path: Path, command: str, *arguments: str) -> None:
    """Run a command whose run folder is `path`, unless it is done; resume it if it was cut off."""
    if (path / "summary.json").exists():
        return
    begun = (path / "config.yaml").exists()
    da2s(command, *([f"--resume={path}"] if begun else arguments))


def row(variant: str, runs: list[Path]) -> str:
    """One line of the table: means (and standard deviations) over the seeds."""
    records = [load_run(path) for path in runs]
    retrained = [json.loads((path / "retrain" / "summary.json").read_text()) for path in runs]

    def last(key: str) -> list[float]:
        return [value for record in records if (value := record.last(key)) is not None]

    parts = [record.accuracies("search") for record in records]
    betas = last("kept_beta")
    discrete = sum(
        p > DISCRETE_P and beta >= DISCRETE_BETA
        for p, beta in zip(last("kept_p"), betas or [1.0] * len(runs), strict=True)
    )
    cells = [
        variant,
        str(len(runs)),
        percent([part.super for part in parts]),
        percent([part.cut for part in parts]),
        percent([part.gap for part in parts]),
        percent([part.gap_bn for part in parts]),
        f"{mean(last('mean_max_p')):.2f}",
        f"{mean(betas):.2f}" if betas else "-",
        f"{discrete} of {len(runs)}",
        percent([summary["test_accuracy"] for summary in retrained]),
    ]
    return f"| {' | '.join(cells)} |"


def percent(values: list[float | None]) -> str:
    """Mean and standard deviation in percent."""
    known = [100 * value for value in values if value is not None]
    spread = f" ± {stdev(known):.1f}" if len(known) > 1 else ""
    return f"{mean(known):.1f}{spread}"


def table(out: Path, seeds: int) -> str:
    """The results in Markdown."""
    head = (
        "| search | seeds | super-network % | cut % | gap, points | gap, BN re-estimated "
        "| mean max p | kept beta | discrete | retrained, test % |"
    )
    runs: dict[str, list[Path]] = {}
    for variant, seed in searches(seeds):
        runs.setdefault(variant, []).append(folder(out, variant, seed))
    rows = [row(variant, paths) for variant, paths in runs.items()]
    return "\n".join([head, "|" + " --- |" * head.count(" | ") + " --- |", *rows])


def figure(out: Path, seeds: int, path: Path) -> None:
    """Accuracy of super-network and cut network over the epochs, a thin line per seed."""
    matplotlib.rcParams["svg.hashsalt"] = "da2s_fast"  # the same runs give the same file
    variants = ["DARTS", "DA2S"]
    canvas, axes = plt.subplots(1, len(variants), figsize=(9, 3.2), sharey=True)
    for axis, variant in zip(axes, variants, strict=True):
        for seed in range(seeds):
            record = load_run(folder(out, variant, seed))
            draw(axis, record, labelled=seed == 0)
        axis.set(title=variant, xlabel="epoch")
        axis.xaxis.set_major_locator(MaxNLocator(integer=True))
        axis.spines[["top", "right"]].set_visible(False)
    axes[0].set_ylabel("accuracy, %")
    axes[0].legend(frameon=False, loc="center right")
    canvas.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    canvas.savefig(path, metadata={"Date": None})


def draw(axis: plt.Axes, record: RunRecord, labelled: bool) -> None:
    """Both curves of one run."""
    epochs = range(1, len(record.epochs) + 1)
    for key, name, color in (
        ("accuracy_super", "super-network", "tab:blue"),
        ("accuracy_cut", "after cutting", "tab:red"),
    ):
        label = name if labelled else None
        axis.plot(epochs, 100 * record.series(key), color=color, linewidth=1.2, label=label)


def main() -> None:
    """Run what is missing, print the table, draw the figure."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=Path("runs/gap"))
    parser.add_argument("--jobs", type=int, default=2, help="searches at a time, a core each")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--figure", type=Path, help="write the accuracy curves here")
    arguments = parser.parse_args()
    with ThreadPoolExecutor(arguments.jobs) as pool:
        runs = searches(arguments.seeds)
        jobs = [pool.submit(search, arguments.out, *run, flags) for run, flags in runs.items()]
        for job in jobs:
            job.result()
        for job in [pool.submit(retrain, arguments.out, *run) for run in runs]:
            job.result()
    print(table(arguments.out, arguments.seeds))
    if arguments.figure:
        figure(arguments.out, arguments.seeds, arguments.figure)


if __name__ == "__main__":
    main()

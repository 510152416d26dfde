"""The committed meters: a file for machines, a page for people, and what is worse than them."""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import triton

from da2s_fast.search.checkpoint import write_text
from tests.gpu.ptx.cuda import nvcc_version
from tests.gpu.report.cases import is_cuda

Row = dict[str, Any]
Report = dict[str, Any]

_DOCS = Path(__file__).parents[3] / "docs"
NUMBERS, PAGE = _DOCS / "gpu_meters.json", _DOCS / "gpu_meters.md"

COMPILED, EXECUTED, NETWORK = "compiled", "executed", "network"
_KEY = ("case", "kernel", "arch")
MORE_IS_WORSE = (
    "launches", "registers", "spilled", "shared", "atomics", "instructions", "requested", "read",
    "written", "calls", "chunks of each",
)  # fmt: skip
LESS_IS_WORSE = ("occupancy", "wide")
# Another Triton compiles otherwise, for which nobody here is to blame.
_BY_COMPILER = (
    "registers", "spilled", "shared", "instructions", "requested", "occupancy", "wide",
)  # fmt: skip

# What eager PyTorch does for the same network, counted by dispatch mode (docs/engine.md), and the
# share of it that is aimed at.
_EAGER_CALLS, _EAGER_BYTES = 14_248, 1_117e6
_LAUNCHES, _SHARE = 200, 10


def load() -> Report:
    """The committed meters."""
    return json.loads(NUMBERS.read_text())


def save(report: Report) -> None:
    """Replace both files."""
    write_text(NUMBERS, text_of(report))
    write_text(PAGE, page_of(report))


def text_of(report: Report) -> str:
    """The file for machines: a line for every row."""
    parts = []
    for name, value in report.items():
        if isinstance(value, list):
            rows = ",\n  ".join(map(json.dumps, value))
            parts.append(f'"{name}": [\n  {rows}\n]')
        else:
            parts.append(f"{json.dumps(name)}: {json.dumps(value)}")
    return "{" + ",\n".join(parts) + "}\n"


def worse(committed: Report, section: str, found: Sequence[Row]) -> list[str]:
    """What of a section's rows is worse than the committed ones of the same cases.

    Where a compiler is not the one of the table, only what does not depend on it is compared, with
    a warning that says so.
    """
    places = {(row["case"], row["arch"]) for row in found}
    rows = [row for row in committed[section] if (row["case"], row["arch"]) in places]
    known, now = ({_key(row): row for row in own} for own in (rows, found))
    others = {compiler_of(row) for row in found} & _other_compilers(committed)
    said = [f"{_name(key)}: not launched any more" for key in known if key not in now]
    for key, row in now.items():
        if key not in known:
            said.append(f"{_name(key)}: not in the table")
            continue
        said += [
            f"{_name(key)}: {name} {value}, was {known[key][name]}"
            for name, value in row.items()
            if name in (*MORE_IS_WORSE, *LESS_IS_WORSE)
            and not (name in _BY_COMPILER and compiler_of(row) in others)
            and _is_worse(name, value, known[key][name])
        ]
    return said


def compiler_of(row: Row) -> str:
    """Who compiled what a row is about."""
    return "nvcc" if is_cuda(row["case"]) else "triton"


def _other_compilers(committed: Report) -> set[str]:
    """Those that are not the table's, each with a warning."""
    other = set()
    for name, version in (("triton", triton.__version__), ("nvcc", nvcc_version())):
        if committed[name] != version:
            other.add(name)
            warnings.warn(
                f"the meters are of {name.title()} {committed[name]}, this is {version}: "
                f"{', '.join(_BY_COMPILER)} are NOT compared",
                stacklevel=3,
            )
    return other


def all_worse(committed: Report, found: Report) -> list[str]:
    """What of a whole report is worse than in the committed one."""
    sections = COMPILED, EXECUTED, NETWORK
    return [what for name in sections for what in worse(committed, name, found[name])]


def _is_worse(name: str, value: float, committed: float) -> bool:
    return value > committed if name in MORE_IS_WORSE else value < committed


def _key(row: Row) -> tuple[Any, ...]:
    return tuple(row[name] for name in _KEY)


def _name(key: tuple[Any, ...]) -> str:
    case, kernel, arch = key
    return f"{case}, {kernel}, sm_{arch}"


def page_of(report: Report) -> str:
    """The page for people."""
    return "\n".join(
        [
            "# Meters of the GPU kernels",
            "",
            "Made by `make gpu-report`. `make gpu-report-check` fails when one of them gets worse; "
            "tests/gpu/test_report.py",
            "does so for what is quick to measure. Times are in gpu_times.md.",
            f"Compiled by Triton {report['triton']} and nvcc {report['nvcc']}, whose ptxas says "
            "registers and spills; what is",
            "executed is that code, by the PTX machine of the tests. Another compiler compiles "
            "otherwise: there,",
            "launches, calls, atomics and different sectors are compared, the rest is not, and a "
            "warning says so.",
            "",
            "Rows of CUDA are those of the kernels of csrc/cuda, which take the place of Triton's "
            "of the case above",
            "where they were compiled: `cell_nodes` that of `convolve` and `mix`, `cell_reach` "
            "that of what is between",
            "`begin` and `leave`, and of the sums of `begin`. The case's other kernels stay "
            "Triton's.",
            "",
            *_network_section(report),
            "",
            *_executed_section(report),
            "",
            *_compiled_section(report),
            "",
        ]
    )


def _network_section(report: Report) -> list[str]:
    network, batch = report[NETWORK], report["batch"]
    lines = [
        "## The super-network",
        "",
        "Forward and backward of DA2S's super-network with cross entropy: C=16, 8 cells, 7 "
        "operations, 32x32,",
        "float32, all gradients, sm_80. Every launch of the whole network is executed for one "
        "image. DRAM is",
        "what moves if nothing stays in the cache from launch to launch: the different sectors of "
        "32 bytes of",
        "each launch, summed; rows with CUDA are bounds from below, because tasks of one launch "
        "read what others wrote.",
        "Of these, tensors that do not grow with the batch (weights, tables, statistics)",
        "count once for a batch, and partial sums (moments, gradients of norms and weights) once "
        "for each of its",
        f"chunks, of which one image has several where images are large, and of {batch} images "
        "several share one where",
        f"they are small; the column of {batch} spreads both over that many images, by the chunks "
        "that so many have.",
        "Calls of torch's are what is left of stem, classifier, loss, architecture weights and the "
        "drivers' own;",
        "views and allocations do not count, and `cell_update_running`, one launch, counts as a "
        "call.",
        "Their bytes are those of the tensors that they are given and return, linear in the batch.",
        "",
        f"Aimed at: {_LAUNCHES} launches (eager makes {_EAGER_CALLS:,} calls) and a tenth of the "
        f"{_EAGER_BYTES / 1e6:,.0f} MB that eager's",
        f"tensors have per image, {_mb(_EAGER_BYTES / _SHARE)} MB. The least is "
        "benchmarks/traffic.py's.",
        "",
    ]
    head = [
        "memory", "launches", "torch calls", "instructions", "requested", "read", "written",
        "torch", "one image", f"each of {batch}", "least",
    ]  # fmt: skip
    rows = []
    for row in network:
        ours = row["read"] + row["written"]
        rows.append(
            [
                row["case"], row["launches"], row["calls"], _millions(row["instructions"]),
                *map(_mb, (row["requested"], row["read"], row["written"], row["torch"])),
                _mb(ours + row["torch"]), _mb(per_image(row, batch)), _mb(row["least"]),
            ]
        )  # fmt: skip
    return [*lines, *_table(head, rows), "", "In millions, of warps, and MB."]


def per_image(row: Row, batch: int) -> float:
    """Bytes to and from DRAM for an image of a batch, by a row of the network."""
    ours = row["read"] + row["written"] - row["once"] * (1 - 1 / batch)
    ours += row["chunks of each"] - row["chunks"]
    return ours + row["torch further"] + (row["torch"] - row["torch further"]) / batch


def _executed_section(report: Report) -> list[str]:
    lines = [
        "## Executed",
        "",
        "For one image, all launches of a kernel together. Instructions: of PTX, of warps. "
        "Requested: sectors of",
        "32 bytes that these ask for, which is traffic of L1 and L2. Unique: different sectors of "
        "each launch, read",
        "or written.",
        "Least: every tensor once on either side of a barrier, without weights and sums "
        "(da2s_fast/ops/cell/cost.py);",
        "it stands where the last of the kernels that share it stands. 128 bits: the share of "
        "bytes that lanes",
        "load and store 16 at a time. Atomics: instructions of warps.",
        "",
    ]
    head = [
        "case", "kernel", "sm", "launches", "instructions", "requested KB", "unique KB", "read",
        "written", "least KB", "128 bits", "atomics",
    ]  # fmt: skip
    rows = [
        [
            row["case"], row["kernel"], row["arch"], row["launches"],
            f"{row['instructions']:,}", _kb(row["requested"]),
            *map(_kb, (row["read"] + row["written"], row["read"], row["written"])),
            _kb(row["least"]) if "least" in row else "",
            _percent(row["wide"]), row["atomics"],
        ]
        for row in report[EXECUTED]
    ]  # fmt: skip
    return [*lines, *_table(head, rows)]


def _compiled_section(report: Report) -> list[str]:
    lines = [
        "## Compiled",
        "",
        f"For a batch of {report['batch']}. A kernel is compiled for several alignments: the worst "
        "of them. Spills are bytes of a",
        "thread, stores and loads; shared memory is a program's, in bytes; occupancy is resident "
        "warps over the",
        "most that the architecture holds, by registers, shared memory and warps. 128 bits: the "
        "share among loads",
        "and stores as written, by their bytes, not by how often they run; loads of single numbers "
        "of tables count.",
        "",
    ]
    head = [
        "case", "kernel", "sm", "launches", "registers", "spills", "shared", "occupancy",
        "128 bits", "atomics",
    ]  # fmt: skip
    rows = [
        [
            row["case"], row["kernel"], row["arch"], row["launches"], row["registers"],
            row["spilled"], row["shared"], _percent(row["occupancy"]), _percent(row["wide"]),
            row["atomics"],
        ]
        for row in report[COMPILED]
    ]  # fmt: skip
    return [*lines, *_table(head, rows)]


def _table(head: list[str], rows: Iterable[list[Any]]) -> list[str]:
    lines = [head, ["---"] * len(head), *rows]
    return ["| " + " | ".join(map(str, line)) + " |" for line in lines]


def _millions(count: float) -> str:
    return f"{count / 1e6:.1f}"


def _mb(size: float) -> str:
    return f"{size / 1e6:.1f}"


def _kb(size: float) -> str:
    return f"{size / 1e3:,.1f}"


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %"

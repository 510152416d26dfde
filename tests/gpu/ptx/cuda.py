"""Kernels of csrc/cuda as nvcc compiles them, and how their arguments lie in memory."""

from __future__ import annotations

import fcntl
import hashlib
import re
import shutil
import struct
import subprocess
import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path

from torch import Tensor

from da2s_fast.kernels.launch import Launch
from tests.gpu.ptx.compile import Compiled, Static, said_by_ptxas
from tests.gpu.ptx.memory import GlobalMemory

_ROOT = Path(__file__).parents[3]
# Tests plant faults in copies.
SOURCES = _ROOT / "csrc"
_BUILT = _ROOT / "build" / "ptx"
_HEADERS = {"cell_nodes": "nodes.cuh", "cell_reach": "backward.cuh"}
# Of a program; kThreads of csrc/cuda/cell/tile.cuh.
_WARPS = 8
_FLAGS = ("-std=c++17", "-O3")
MISSING = "nvcc was not found: CUDA kernels are NOT executed here, install the CUDA toolkit"

# The struct that a kernel gets: its fields in order, with the letters of the struct module.
_FIELDS = {
    "cell_nodes": [
        ("P", "tasks waits counters packs layers mixes mixed states z weights p_weights g_weights"),
        ("P", "moments statistics output"),
        ("4q", "output_strides"),
        ("d", "eps"),
        ("i", "pixels chunk_pixels"),
        ("i", "height width images chunks operations pitch known type halo second_halo taps"),
        ("i", "log_width log_height log_images"),
    ],
    "cell_reach": [
        ("P", "tasks waits counters candidates seconds groups layers states z gradients weights"),
        ("P", "weight_gradients p_weights g_weights statistics sums"),
        ("q", "pixels weight_count"),
        ("d", "eps"),
        ("i", "height width chunks images operations pitch halo inner_halo taps"),
        ("i", "log_width log_height log_images kept"),
    ],
}


def has_nvcc() -> bool:
    """Whether the kernels can be compiled here."""
    return shutil.which("nvcc") is not None


class CudaCompiled(Compiled):
    """A kernel of csrc/cuda/cell."""

    @property
    def static(self) -> Static:
        """What the ptxas of nvcc says of the entry."""
        return said_by_ptxas(_ptxas(self.ptx, self.arch), self)


@cache
def nvcc_version() -> str:
    """Such as "13.0", or that there is none."""
    if not has_nvcc():
        return "(not found)"
    found = re.search(r"release ([\d.]+)", _nvcc("--version"))
    return found[1] if found else "(unknown)"


def compile_cuda(launch: Launch, arch: int) -> CudaCompiled:
    """The entry that a launch starts, for compute capability `arch`."""
    entry = entry_of(launch)
    return CudaCompiled(
        ptx=_ptx(entry, arch, SOURCES),
        name=entry,
        arch=arch,
        warps=_WARPS,
        shared=launch.arguments["shared"],
        signature={},
        cubin=b"",
    )


def entry_of(launch: Launch) -> str:
    """The name of the kernel that a launch starts: with the number of channels."""
    given, name = launch.arguments, launch.kernel.name
    suffix = "_7x7" if name == "cell_reach" and given["taps"] > 25 else ""
    return f"{name}_{given['channels']}{suffix}"


@cache
def _ptx(entry: str, arch: int, sources: Path) -> str:
    """PTX of a kernel, and of no other: all of them take nvcc minutes."""
    (name, channels, suffix), *_ = re.findall(r"([a-z_]+)_(\d+)(\w*)", entry)
    header = sources / "cuda/cell" / _HEADERS[name]

    def compiled(folder: Path) -> str:
        source, made = folder / "cell.cu", folder / "cell.ptx"
        source.write_text(f'#include "{header}"\n{f"DA2S_{name}{suffix}".upper()}({channels})\n')
        _nvcc("-ptx", f"-arch=compute_{arch}", str(source), "-o", str(made))
        return made.read_text()

    return _kept(f"{_digest_of(header)[:16]}-{entry}-{arch}.ptx", compiled)


def _digest_of(header: Path) -> str:
    """Of everything that a kernel is made of."""
    digest = hashlib.sha256(" ".join(_FLAGS).encode())
    waiting, known = [header], {header}
    while waiting:
        text = waiting.pop().read_text()
        digest.update(text.encode())
        included = {header.parent / name for name in re.findall(r'(?m)^#include "(.+)"', text)}
        waiting += sorted(included - known)
        known |= included
    return digest.hexdigest()


@cache
def _ptxas(ptx: str, arch: int) -> str:
    """What ptxas says."""

    def said(folder: Path) -> str:
        source, made = folder / "cell.ptx", folder / "cell.cubin"
        source.write_text(ptx)
        return _nvcc("-cubin", f"-arch=sm_{arch}", "-Xptxas=-v", str(source), "-o", str(made))

    return _kept(f"{hashlib.sha256(ptx.encode()).hexdigest()[:16]}-{arch}.txt", said)


def _kept(name: str, make: Callable[[Path], str]) -> str:
    """What `make`, given a folder to work in, says once: build/ keeps it for all processes."""
    built = _BUILT / nvcc_version()
    built.mkdir(parents=True, exist_ok=True)
    kept = built / name
    with kept.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not kept.exists():
            with tempfile.TemporaryDirectory(dir=built) as folder:
                made = Path(folder) / "made"
                made.write_text(make(Path(folder)))
                made.replace(kept)
    return kept.read_text()


def _nvcc(*arguments: str) -> str:
    if not has_nvcc():
        raise RuntimeError(MISSING)
    done = subprocess.run(
        ["nvcc", *_FLAGS, *arguments], capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise RuntimeError(f"nvcc refuses {arguments}: {done.stderr}")
    return done.stdout + done.stderr


def parameters_of(launch: Launch, memory: GlobalMemory, read_only: frozenset[str]) -> bytes:
    """The kernel's struct; tensors are made known to the memory."""
    fields = [
        (letter, name) for letter, names in _FIELDS[launch.kernel.name] for name in names.split()
    ]
    values = []
    for _, name in fields:
        value = launch.arguments[name]
        if isinstance(value, Tensor):
            value = memory.add_tensor(name, value, writable=name not in read_only)
        elif value is None:
            value = 0
        values.extend(value if isinstance(value, (tuple, list)) else (value,))
    return struct.pack("".join(letter for letter, _ in fields), *values)

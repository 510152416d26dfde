"""Kernels of csrc/cuda as nvcc compiles them, and how their arguments lie in memory."""

from __future__ import annotations

import hashlib
import re
import shutil
import struct
import subprocess
import tempfile
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
# Of a program; kThreads of csrc/cuda/cell/tile.cuh.
_WARPS = 8
_FLAGS = ("-std=c++17", "-O3", "-DDA2S_STANDALONE")
MISSING = "nvcc was not found: CUDA kernels are NOT executed here, install the CUDA toolkit"

# The struct that a kernel gets: its fields in order, with the letters of the struct module.
_REACH = [
    ("P", "table layers states z gradients weights weight_gradients p_weights g_weights"),
    ("P", "statistics sums"),
    ("q", "pixels weight_count"),
    ("d", "eps"),
    ("i", "height width images operations pitch halo taps log_width log_height log_images"),
]
_FIELDS = {
    "cell_convolve": [
        ("P", "table packs source z weights moments statistics"),
        ("q", "pixels chunk_pixels"),
        ("d", "eps"),
        ("i", "height width pitch known halo taps log_width log_height log_images"),
    ],
    "cell_reach_inner": _REACH,
    "cell_reach_states": _REACH,
}


def has_nvcc() -> bool:
    """Whether the kernels can be compiled here."""
    return shutil.which("nvcc") is not None


class CudaCompiled(Compiled):
    """An entry of csrc/cuda/cell.cu."""

    @property
    def static(self) -> Static:
        """What the ptxas of nvcc says of the entry."""
        return said_by_ptxas(_registers(self.ptx, self.arch)[self.name], self)


def nvcc_version() -> str:
    """Such as "13.0", or that there is none."""
    if not has_nvcc():
        return "(not found)"
    found = re.search(r"release ([\d.]+)", _nvcc("--version"))
    return found[1] if found else "(unknown)"


def compile_cuda(launch: Launch, arch: int) -> CudaCompiled:
    """The entry that a launch starts, for compute capability `arch`."""
    return CudaCompiled(
        ptx=ptx_of(arch, SOURCES),
        name=entry_of(launch),
        arch=arch,
        warps=_WARPS,
        shared=launch.arguments["shared"],
        signature={},
        cubin=b"",
    )


def entry_of(launch: Launch) -> str:
    """The kernel's name in csrc/cuda/cell.cu."""
    given, name = launch.arguments, launch.kernel.name
    suffix = "_second" if given.get("second") else ""
    if name.startswith("cell_reach") and given["taps"] > 25:
        suffix = "_7x7"
    return f"{name}_{given['channels']}{suffix}"


def digest_of(sources: Path) -> str:
    """Of everything that the kernels are made of."""
    digest = hashlib.sha256(" ".join(_FLAGS).encode())
    for path in sorted((sources / "cuda").rglob("*.cu*")):
        digest.update(path.read_bytes())
    return digest.hexdigest()


@cache
def ptx_of(arch: int, sources: Path) -> str:
    """PTX of cuda/cell.cu, kept in build/."""
    kept = _BUILT / f"{digest_of(sources)[:16]}-{arch}.ptx"
    if not kept.exists():
        _BUILT.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=_BUILT) as folder:
            made = Path(folder) / "ptx"
            _nvcc("-ptx", f"-arch=compute_{arch}", str(sources / "cuda/cell.cu"), "-o", str(made))
            made.replace(kept)
    return kept.read_text()


@cache
def _registers(ptx: str, arch: int) -> dict[str, str]:
    """What ptxas says, by entry."""
    with tempfile.TemporaryDirectory() as folder:
        source, made = Path(folder) / "cell.ptx", Path(folder) / "cell.cubin"
        source.write_text(ptx)
        said = _nvcc("-cubin", f"-arch=sm_{arch}", "-Xptxas=-v", str(source), "-o", str(made))
    parts = re.split(r"Compiling entry function '(\w+)'", said)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


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
        values.append(value)
    return struct.pack("".join(letter for letter, _ in fields), *values)

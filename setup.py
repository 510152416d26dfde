"""Build of the compiled parts; everything else is in pyproject.toml.

Three extensions, each allowed to fail without breaking the install (the package then runs on plain
PyTorch, and `da2s info` shows the reason recorded here in `da2s_fast/_build.json`):

- `_cpu`: operators on torch's stable ABI, no Python inside, one binary for every torch from 2.10;
- `_build_info`: a small pybind11 module;
- `_cuda`: operators for GPUs, only where nvcc and a CUDA torch exist and csrc/cuda has sources.
"""

from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
import sys
import sysconfig
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from unittest.mock import patch

from setuptools import Extension, find_packages, setup

ROOT = Path(__file__).resolve().parent
MINIMUM_TORCH = (2, 10)
TARGET_TORCH = "-DTORCH_TARGET_VERSION=0x020a000000000000"
# The standard is named because the one that torch asks for depends on its version.
CPU_FLAGS = ["-std=c++20", "-O3", "-g0", "-fvisibility=hidden"]
CPU_FLAGS += ["-Wall", "-Wextra", "-Wno-unused-parameter"]
# What a *.simd.cpp is compiled for, and with which flags; csrc/cpu/isa.h describes the scheme.
ISA_FLAGS = {
    words[0]: words[1:]
    for words in map(str.split, (ROOT / "csrc/cpu/isa_flags.txt").read_text().splitlines())
    if words[0] == "portable" or platform.machine().lower() in ("x86_64", "amd64")
}
# What runs everywhere. For one GPU its own is enough, such as "89", and takes a third of the time.
CUDA_ARCHITECTURES = os.environ.get("DA2S_CUDA_ARCHITECTURES", "80 90 100").split()
CUDA_NAMED = os.environ.get("CUDA_HOME") or os.environ.get("CUDA_PATH")


def find_cuda_home() -> str | None:
    """Return the CUDA toolkit's folder; a wrapper script named nvcc does not count as one.

    Where the environment names a folder, no other one is looked for: CUDA_HOME=none builds without.
    """
    nvcc = shutil.which("nvcc")
    candidates = [str(Path(nvcc).resolve().parents[1]) if nvcc else None, "/usr/local/cuda"]
    for home in [CUDA_NAMED] if CUDA_NAMED else filter(None, candidates):
        if Path(home, "bin/nvcc").exists() and Path(home, "include/cuda_runtime.h").exists():
            return home
    return None


CUDA_HOME = find_cuda_home()
if CUDA_HOME:
    os.environ["CUDA_HOME"] = CUDA_HOME  # torch reads it when it is imported

try:
    import torch
    from torch.utils.cpp_extension import BuildExtension, CppExtension, CUDAExtension, include_paths
except ImportError:
    raise SystemExit(
        "da2s_fast is compiled against the installed torch, and none is visible to this build: "
        "install torch>=2.10 first, then run pip with --no-build-isolation."
    ) from None
if tuple(int(part) for part in torch.__version__.split(".")[:2]) < MINIMUM_TORCH:
    raise SystemExit(
        f"da2s_fast needs torch 2.10 or newer, found {torch.__version__}: "
        "upgrade torch, then run pip with --no-build-isolation."
    )


def sources(pattern: str) -> list[str]:
    """Return the files of csrc that match, relative to the root as setuptools wants them."""
    return sorted(str(path.relative_to(ROOT)) for path in ROOT.glob(f"csrc/{pattern}"))


def cpu_extension() -> Extension:
    """Return the operator library for CPUs, without its *.simd.cpp sources."""
    plain = [path for path in sources("cpu/**/*.cpp") if not path.endswith(".simd.cpp")]
    return CppExtension(
        "da2s_fast._cpu",
        ["csrc/registration.cpp", *plain],
        include_dirs=[str(ROOT / "csrc")],
        extra_compile_args=[TARGET_TORCH, *CPU_FLAGS],
        depends=sources("**/*.h"),
        py_limited_api=True,
    )


def module_extension() -> Extension:
    """Return the pybind11 module; it uses the pybind11 headers that torch ships."""
    return Extension(
        "da2s_fast._build_info",
        ["csrc/module.cpp", "csrc/cpu/isa.cpp"],
        include_dirs=[str(ROOT / "csrc"), *include_paths()],
        define_macros=[
            ("DA2S_FLAGS", f'"{" ".join(CPU_FLAGS)}"'),
            ("DA2S_TORCH_VERSION", f'"{torch.__version__}"'),
        ],
        extra_compile_args=CPU_FLAGS,
        depends=sources("**/*.h"),
        language="c++",
    )


def cuda_extension() -> Extension:
    """Return the operator library for GPUs."""
    known = subprocess.run(
        [f"{CUDA_HOME}/bin/nvcc", "--list-gpu-arch"], capture_output=True, text=True, check=True
    ).stdout.split()
    wanted = [arch for arch in CUDA_ARCHITECTURES if f"compute_{arch}" in known]
    if not wanted:
        asked = " ".join(CUDA_ARCHITECTURES)
        raise SystemExit(
            f"{CUDA_HOME}/bin/nvcc compiles for none of DA2S_CUDA_ARCHITECTURES, {asked!r}, but "
            f"for {' '.join(known)}: name some of these numbers"
        )
    flags = [f"-gencode=arch=compute_{arch},code=sm_{arch}" for arch in wanted]
    flags.append(f"-gencode=arch=compute_{wanted[-1]},code=compute_{wanted[-1]}")
    # The headers of CUDA's libraries come with torch's own wheels, not with a bare toolkit.
    wheels = Path(torch.__file__).parents[1] / "nvidia"
    return CUDAExtension(
        "da2s_fast._cuda",
        sources("cuda/*.cu") + sources("cuda/*.cpp"),
        include_dirs=[str(ROOT / "csrc"), *map(str, wheels.glob("*/include"))],
        extra_compile_args={
            "cxx": [TARGET_TORCH, "-DUSE_CUDA", *CPU_FLAGS],
            "nvcc": [TARGET_TORCH, "-DUSE_CUDA", "-O3", "--threads=0", *flags],
        },
        depends=sources("**/*.h") + sources("cuda/**/*.cuh"),
        py_limited_api=True,
    )


def why_no_cuda() -> str | None:
    """Return why the CUDA library cannot be built, None if it can."""
    if not sources("cuda/*.cu"):
        return "this version has no CUDA sources"
    if torch.version.cuda is None:
        return f"torch {torch.__version__} is built without CUDA: install a CUDA build of torch"
    if CUDA_HOME is None:
        where = f" in {CUDA_NAMED}" if CUDA_NAMED else ""
        return f"nvcc was not found{where}: install the CUDA toolkit or set CUDA_HOME to its folder"
    return None


class BuildCompiled(BuildExtension):
    """Builds what can be built and records, for each extension, what became of it."""

    def build_extensions(self) -> None:
        """Build the extensions one by one, so that a failing one takes no other with it."""
        record: dict[str, dict[str, object]] = {}
        wanted = list(self.extensions)
        reason = why_no_cuda()
        if reason:
            record["_cuda"] = {"built": False, "reason": reason}
            print(f"note: da2s_fast._cuda is not built: {reason}", file=sys.stderr)
        for extension in wanted:
            self.extensions = [extension]
            reason = self._build(extension)
            record[extension.name.rpartition(".")[2]] = {"built": not reason, "reason": reason}
            if reason:
                # An earlier build in the same folder may have left one that no longer fits.
                Path(self.get_ext_fullpath(extension.name)).unlink(missing_ok=True)
                print(f"warning: {extension.name} was not built: {reason}", file=sys.stderr)
        self.extensions = [e for e in wanted if record[e.name.rpartition(".")[2]]["built"]]
        self._record_file().write_text(json.dumps(record, indent=2) + "\n")

    def build_extension(self, extension: Extension) -> None:
        """Compile the *.simd.cpp of the CPU library once per instruction set, then the rest."""
        if extension.name == "da2s_fast._cpu":
            # The instruction sets side by side, each with its share of the processors; torch's
            # build asks the environment how many compilers it may start.
            jobs = int(os.environ.get("MAX_JOBS") or os.cpu_count() or 1)
            share = {"MAX_JOBS": str(max(1, jobs // len(ISA_FLAGS)))}
            workers = min(jobs, len(ISA_FLAGS))
            with patch.dict(os.environ, share), ThreadPoolExecutor(workers) as pool:
                for objects in pool.map(lambda isa: self._compile_simd(extension, isa), ISA_FLAGS):
                    extension.extra_objects += objects
        super().build_extension(extension)

    def _compile_simd(self, extension: Extension, isa: str) -> list[str]:
        """Compile the inner loops for one instruction set; return the objects."""
        return self.compiler.compile(
            sources("cpu/**/*.simd.cpp"),
            output_dir=f"{self.build_temp}/{isa}",
            include_dirs=extension.include_dirs,
            extra_postargs=[*CPU_FLAGS, f"-DDA2S_ISA={isa}", *ISA_FLAGS[isa]],
            depends=extension.depends,
        )

    def copy_extensions_to_source(self) -> None:
        """Copy the record beside the extensions of an editable install, and no stale library."""
        package = Path(self.get_finalized_command("build_py").get_package_dir("da2s_fast"))
        for stale in [*package.glob("_cpu.*"), *package.glob("_cuda.*")]:
            stale.unlink()
        super().copy_extensions_to_source()
        self.copy_file(str(self._record_file()), str(package / "_build.json"))

    def _build(self, extension: Extension) -> str | None:
        """Build one extension; return why it failed, None if it did not."""
        compiler = os.environ.get("CXX", "c++")
        if shutil.which(compiler.split()[0]) is None:
            return f"the C++ compiler '{compiler}' was not found: install g++ and reinstall"
        header = Path(sysconfig.get_path("include"), "Python.h")
        if extension.name == "da2s_fast._build_info" and not header.exists():
            return f"{header} is missing: install Python's headers (python3-dev) and reinstall"
        try:
            super().build_extensions()
        except Exception as error:  # whatever went wrong, the package works without it
            line = str(error).splitlines()[0] if str(error) else type(error).__name__
            return f"the build failed ({line}): reinstall with pip install -v to see why"
        return None

    def _record_file(self) -> Path:
        folder = Path(self.build_lib, "da2s_fast")
        folder.mkdir(parents=True, exist_ok=True)
        return folder / "_build.json"


# The ninja that pip installed lies beside the interpreter, which need not be on the PATH.
os.environ["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])

setup(
    packages=[
        *find_packages(include=["da2s_fast", "da2s_fast.*"]),
        "da2s_fast.kernels",
        *(f"da2s_fast.kernels.{name}" for name in find_packages("kernels")),
    ],
    package_dir={"da2s_fast": "da2s_fast", "da2s_fast.kernels": "kernels"},
    ext_modules=[
        cpu_extension(),
        module_extension(),
        *([] if why_no_cuda() else [cuda_extension()]),
    ],
    cmdclass={"build_ext": BuildCompiled},
)

"""Which compiled libraries exist and run here, and why not where they do not."""

import json
import warnings
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

import torch

from da2s_fast.errors import UserError

_PACKAGE = Path(__file__).parent
_MINIMUM_TORCH = (2, 10)
_REINSTALL = "reinstall with pip install --no-build-isolation"


class BackendStatus(NamedTuple):
    """Whether a backend can run here, and a sentence that says on what or why not."""

    name: str
    available: bool
    detail: str


@cache
def load_libraries() -> None:
    """Load the compiled operator libraries into torch, once; what cannot be loaded is left out.

    The operators' schemas are defined in Python, so nothing but speed depends on this.
    :func:`backend_report` tells what became of each library. A library that is there but cannot
    be used also causes a RuntimeWarning.

    Raises:
        UserError: torch is older than 2.10.
    """
    if _version(torch.__version__) < _MINIMUM_TORCH:
        raise UserError(f"da2s_fast needs torch 2.10 or newer, found {torch.__version__}: upgrade.")
    for name in ("_cpu", "_cuda"):
        problem = _problem(name)
        if problem and _library(name):
            warnings.warn(
                f"The compiled {name[1:]} operators stay off: {problem}",
                RuntimeWarning,
                stacklevel=2,
            )


def backend_report() -> list[BackendStatus]:
    """Tell of every backend of the fused operations whether it can run in this process.

    Returns:
        One status each for "reference" (plain PyTorch), "cpu" and "cuda" (compiled) and "triton".
    """
    load_libraries()
    return [
        BackendStatus("reference", True, f"plain PyTorch {torch.__version__}, on any device."),
        _cpu_status(),
        _cuda_status(),
        _triton_status(),
    ]


def build_info() -> dict[str, Any]:
    """Describe the build of the compiled parts.

    Returns:
        "compiler", "cxx_standard", "flags", "torch" (the version built against),
        "instruction_sets" (compiled, the best last), "usable_instruction_sets" (those of them that
        this processor runs) and "instruction_set" (chosen for this process); only "problem", a
        sentence, where this cannot be told.
    """
    problem = _problem("_build_info")
    if problem:
        return {"problem": problem}
    module = import_module("da2s_fast._build_info")
    return {**module.build_info(), "instruction_set": module.instruction_set()}


def _cpu_status() -> BackendStatus:
    problem = _problem("_cpu")
    if problem:
        return BackendStatus("cpu", False, problem)
    chosen = build_info().get("instruction_set", "chosen by the library")
    return BackendStatus("cpu", True, f"compiled operators, instruction set {chosen}.")


def _cuda_status() -> BackendStatus:
    problem = _problem("_cuda")
    if problem is None and not torch.cuda.is_available():
        problem = "torch sees no CUDA device: run on a machine with a GPU and its driver."
    if problem:
        return BackendStatus("cuda", False, problem)
    return BackendStatus("cuda", True, f"compiled operators on {torch.cuda.get_device_name()}.")


def _triton_status() -> BackendStatus:
    try:
        kernels = import_module("da2s_fast.kernels")
    except ModuleNotFoundError:
        return BackendStatus("triton", False, f"da2s_fast.kernels is not installed: {_REINSTALL}.")
    runs, sentence = kernels.can_run()
    if not (runs and torch.cuda.is_available()):
        return BackendStatus("triton", runs, sentence)
    device = torch.device("cuda", torch.cuda.current_device())
    # Imported late: operators need this module.
    reason = import_module("da2s_fast.ops._triton").device_reason(device)
    if reason:
        return BackendStatus("triton", False, f"{reason}.")
    major, minor = torch.cuda.get_device_capability(device)
    free, total = torch.cuda.mem_get_info(device)
    return BackendStatus(
        "triton",
        True,
        f"kernels on {torch.cuda.get_device_name(device)}, compute capability {major}.{minor}, "
        f"{free / 2**30:.1f} of {total / 2**30:.1f} GiB free.",
    )


@cache
def _problem(name: str) -> str | None:
    """Load a compiled part on first use; return why it cannot be used, None if it can."""
    library = _library(name)
    if library is None:
        return f"not compiled: {_build_failure(name)}"
    try:
        if name == "_build_info":
            import_module("da2s_fast._build_info").instruction_set()
            return None
        # Asked first, because a library whose instruction set is refused fails in every call.
        if _library("_build_info") and (problem := _problem("_build_info")):
            return problem
        torch.ops.load_library(str(library))
    except (ImportError, OSError) as error:
        return f"{library.name} does not load with this torch or Python ({error}): {_REINSTALL}."
    except RuntimeError as error:  # an instruction set that cannot be had
        return str(error)
    return None


def _library(name: str) -> Path | None:
    return next(iter(sorted(_PACKAGE.glob(f"{name}.*so"))), None)


def _build_failure(name: str) -> str:
    try:
        record = json.loads((_PACKAGE / "_build.json").read_text(encoding="utf-8"))
        reason = record[name]["reason"]
    except (OSError, ValueError, KeyError):
        reason = None
    return f"{reason or f'{_REINSTALL}, with a C++ compiler at hand'}."


def _version(text: str) -> tuple[int, int]:
    """Return major and minor of a version; as numbers, because "2.9" sorts after "2.10"."""
    major, minor = text.split(".")[:2]
    return int(major), int(minor)

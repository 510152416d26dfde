"""What the Triton backends of the fused operations share: where they run and how they are found.

The kernels are in `da2s_fast.kernels`. What allocates and launches for the operator NAME is called
its driver: the function NAME of a module `da2s_fast/ops/..._triton.py`, with the schema's
arguments. A driver takes tensors of any device and starts kernels by `kernels.launch.launch` only,
so that tests can run it without a GPU. It neither waits for the device nor reads a number from it
nor lets a shape depend on one, so that CUDA graphs can record it.
"""

from collections.abc import Callable, Iterable, Mapping
from functools import cache
from importlib import import_module
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import unset_fake_temporarily

from da2s_fast.errors import UserError
from da2s_fast.ops._autotune import autotuned
from da2s_fast.ops._backend import LIBRARY, REFERENCE, constant_in_graphs

T = TypeVar("T")

# As major * 10 + minor. Kernels use bfloat16 and asynchronous copies, which Turing lacks.
_OLDEST_ARCHITECTURE = 80

# The drivers that are registered, by operator.
DRIVERS: dict[str, Callable[..., Any]] = {}


def triton_reason(*tensors: Tensor) -> str | None:
    """Say why Triton kernels cannot run on these tensors; None where they can."""
    for tensor in tensors:
        reason = _device_reason(tensor.device)
        if reason:
            return reason
        if tensor.device != tensors[0].device:
            return f"tensors are on {tensors[0].device} and {tensor.device}"
    return None


def register_triton(operator: str, module: str) -> None:
    """Let an operator of `LIBRARY` run its driver, a function of its name, for CUDA tensors.

    The module is imported when the operator is first called, because it imports Triton, which is
    slow, and not there where torch is built for CPUs.
    """

    def run(*arguments: Any) -> Any:
        driver = getattr(import_module(module), operator)
        # Kernels start on the current device, which need not be that of the tensors.
        with torch.cuda.device_of(_first_tensor(arguments)), autotuned():
            try:
                return driver(*arguments)
            except import_module("triton").runtime.errors.OutOfResources as error:
                raise UserError(
                    f"a kernel of {operator} needs {error.name} of {error.required}, and this GPU "
                    f"has {error.limit}: compute inside `with da2s_fast.nn.use_backend("
                    f"'{REFERENCE}')`, or on the CPU"
                ) from error

    DRIVERS[operator] = run
    LIBRARY.impl(operator, run, "CUDA")


def architecture(device: torch.device) -> int:
    """Return a GPU's compute capability as major * 10 + minor; for other devices the oldest."""
    if device.type != "cuda":
        return _OLDEST_ARCHITECTURE
    major, minor = torch.cuda.get_device_capability(device)
    return major * 10 + minor


def tuned(table: Mapping[int, T], device: torch.device) -> T:
    """Choose launch parameters: those of the newest architecture that is no newer than the GPU.

    Args:
        table: launch parameters by architecture; 80, the oldest that is supported, must be there.
        device: where the kernel will run.
    """
    return table[max(known for known in table if known <= architecture(device))]


def launched_as(kernel: str, device: torch.device, numbers: int | None = None) -> dict[str, Any]:
    """How to launch a kernel, as arguments of `kernels.launch.launch`.

    Args:
        kernel: an entry of `kernels.tuning.TABLE`.
        device: where it will run.
        numbers: of a tile: no more warps than these fill.
    """
    chosen = tuned(import_module("da2s_fast.kernels.tuning").TABLE[kernel], device)
    if numbers is not None:
        chosen = chosen._replace(warps=max(1, min(chosen.warps, numbers // 32)))
    return dict(chosen._asdict())


def rounds_to_tf32() -> bool:
    """Whether PyTorch may round the factors of float32 matrix products to TF32 on GPUs.

    That is what `torch.set_float32_matmul_precision("high")`,
    `torch.backends.cuda.matmul.allow_tf32 = True` and `...fp32_precision = "tf32"` say.
    """
    return torch.backends.cuda.matmul.fp32_precision == "tf32"


def precision_of(dtype: torch.dtype, tf32: bool) -> str:
    """Choose the precision of products in tensor shapes, a kernel's parameter.

    Numbers of 16 bits go through tensor cores as TF32, which has at least their digits.

    Args:
        dtype: of the inputs.
        tf32: whether float32 may be rounded.
    """
    return "tf32" if dtype.itemsize == 2 or tf32 else "ieee"


# Whether a GPU can be used does not change while a compiled function lives.
@constant_in_graphs
def _device_reason(device: torch.device) -> str | None:
    return device_reason(device)


@cache
def device_reason(device: torch.device) -> str | None:
    """Say why Triton kernels cannot run on a device; None where they can, which one has shown."""
    if device.type != "cuda":
        return f"a tensor is on {device}"
    if torch.version.hip is not None:
        return "torch is built for AMD GPUs, on which the kernels have not been tried"
    try:
        kernels = import_module("da2s_fast.kernels")
    except ModuleNotFoundError:
        return "da2s_fast.kernels is not installed"
    runs, sentence = kernels.can_run()
    if not runs:
        return sentence.rstrip(".")
    found = architecture(device)
    if found < _OLDEST_ARCHITECTURE:
        return (
            f"{device} is a {torch.cuda.get_device_name(device)} of compute capability "
            f"{found / 10}, and the kernels need 8.0"
        )
    return _starting_problem(device)


def _starting_problem(device: torch.device) -> str | None:
    """Start the smallest kernel: Triton needs a C compiler, and a driver that takes its code."""
    launch = import_module("da2s_fast.kernels.launch").launch
    kernel = import_module("da2s_fast.kernels.probe").probe
    # Who asks may be a compiler, whose tensors have no memory.
    with unset_fake_temporarily(), torch.no_grad():
        try:
            place = torch.zeros(1, device=device)
            with torch.cuda.device_of(place):
                launch(kernel, (1,), place=place)
            wrong = place.item() != 1
        except Exception as error:  # of the driver, of Triton's compilers, of the C compiler: many
            text = str(error).strip() or type(error).__name__
            return (
                f"Triton cannot start kernels on {device} ({text.splitlines()[0]}); it needs a C "
                "compiler and an NVIDIA driver no older than torch's CUDA"
            )
    return f"a kernel on {device} wrote a wrong number" if wrong else None


def _first_tensor(arguments: Iterable[Any]) -> Tensor:
    """Return the first tensor of an operator's arguments, some of which are lists."""
    for argument in arguments:
        for item in argument if isinstance(argument, list | tuple) else [argument]:
            if isinstance(item, Tensor):
                return item
    raise TypeError("an operator of CUDA tensors was called without tensors")

"""The same computation under other conditions: threads, instruction sets, compiled, counted."""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

import torch
from torch.utils.flop_counter import FlopCounterMode

Result = TypeVar("Result")


@contextmanager
def threads(number: int) -> Iterator[None]:
    """Inside, torch computes with this number of threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def with_threads(function: Callable[[], Result]) -> list[Result]:
    """What a function returns with 1, 2, 8 and again with 8 threads."""
    results = []
    for number in (1, 2, 8, 8):
        with threads(number):
            results.append(function())
    return results


def printed_last(code: str, **environment: str) -> str:
    """The last word that Python code prints in a process of its own, with these variables set."""
    run = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    return run.stdout.split()[-1]


def run_with_instruction_set(isa: str, code: str) -> None:
    """Run Python code in a process whose kernels use an instruction set, and see that they did."""
    code += "\nfrom da2s_fast.backends import build_info; print(build_info()['instruction_set'])"
    assert printed_last(code, DA2S_ISA=isa) == isa


def compiled_whole(
    function: Callable[..., Result], compiler: str = "aot_eager", dynamic: bool | None = None
) -> Callable[..., Result]:
    """A function or module compiled without a graph break, as the first in its process.

    Before torch 2.11 all functions share one wrapper, which is compiled for a few of them only:
    in a process of many tests it would depend on their order which ones fail.
    """
    torch.compiler.reset()
    return torch.compile(function, backend=compiler, fullgraph=True, dynamic=dynamic)


def counted(function: Callable[[], object]) -> int:
    """Floating-point operations that torch counts in a call."""
    with FlopCounterMode(display=False) as counter:
        function()
    return counter.get_total_flops()

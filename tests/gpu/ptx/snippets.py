"""Runs a few hand-written instructions on arrays, one lane per element."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from tests.gpu.ptx.machine import Machine
from tests.gpu.ptx.memory import GlobalMemory
from tests.gpu.ptx.meter import Counts
from tests.gpu.ptx.operands import Array
from tests.gpu.ptx.parse import parse

_HEAD = """
.version 8.7
.target sm_90a
.address_size 64
.extern .shared .align 16 .b8 dynamic[];
.visible .entry snippet({parameters})
{{
    .reg .pred %p<16>;
    .reg .b16 %h<32>;
    .reg .b32 %r<64>;
    .reg .b64 %d<64>;
    .reg .b32 %tid, %index;
    .reg .b64 %at, %base;
    mov.u32 %tid, %tid.x;
    mov.u32 %index, %ctaid.x;
    mad.lo.u32 %index, %index, {threads}, %tid;
"""


def run(text: str, *tensors: Any, programs: int = 1, threads: int = 32, shared: int = 0) -> Counts:
    """Execute a whole kernel; its parameters are the tensors' addresses."""
    memory = GlobalMemory()
    addresses = [memory.add_tensor(f"tensor{i}", t) for i, t in enumerate(tensors)]
    kernel = parse(text)
    counts = Counts(kernel)
    machine = Machine(
        kernel,
        (programs, 1, 1),
        (threads, 1, 1),
        np.array(addresses, np.uint64).tobytes(),
        memory,
        shared=shared,
        counts=counts,
    )
    machine.run()
    return counts


def kernel(body: str, tensors: int, threads: int = 32) -> str:
    """A kernel with %tid, %index (of the lane in the launch) and tensor i's address in %t<i>."""
    parameters = ", ".join(f".param .u64 p{i}" for i in range(tensors))
    loads = "".join(
        f"    .reg .b64 %t{i};\n    ld.param.u64 %t{i}, [p{i}];\n" for i in range(tensors)
    )
    head = _HEAD.format(parameters=parameters, threads=threads)
    return f"{head}{loads}{body}\n    ret;\n}}\n"


def _register(size: int, number: int) -> str:
    return {2: "%h", 4: "%r", 8: "%d"}[size] + str(number)


def evaluate(code: str, *inputs: Array, results: Sequence[Any], threads: int = 32) -> list[Array]:
    """Compute `code` with input i in register {i} and results in {o0}, {o1}, ...

    Args:
        code: with {0}, {1}, ... and {o0}, {o1}, ... for registers of the arrays' sizes; it has the
            predicates %p0 to %p15 and %h20.., %r40.., %d40.. of its own.
        inputs: arrays of one length, of 2, 4 or 8 bytes per element.
        results: numpy types.
        threads: of a program.

    Returns:
        One array per result.
    """
    given = np.broadcast_arrays(*inputs)
    length = given[0].size
    padded = -(-length // threads) * threads
    sized = [np.resize(np.ascontiguousarray(array), padded) for array in given]
    outs = [np.zeros(padded, dtype) for dtype in results]
    arrays = [*sized, *outs]
    names = [_register(array.itemsize, number) for number, array in enumerate(arrays)]

    def address(number: int) -> str:
        size = arrays[number].itemsize
        return f"    mad.wide.u32 %at, %index, {size}, %t{number};\n"

    body = ""
    for number, array in enumerate(sized):
        body += address(number)
        body += f"    ld.global.b{8 * array.itemsize} {names[number]}, [%at];\n"
    outputs = {f"o{i}": names[len(sized) + i] for i in range(len(outs))}
    body += code.format(*names[: len(sized)], **outputs) + "\n"
    for number in range(len(sized), len(arrays)):
        body += address(number)
        body += f"    st.global.b{8 * arrays[number].itemsize} [%at], {names[number]};\n"
    tensors = [torch.from_numpy(array.view(f"i{array.itemsize}")) for array in arrays]
    run(kernel(body, len(arrays), threads), *tensors, programs=padded // threads, threads=threads)
    return [out[:length] for out in outs]


def bits(values: Array) -> Array:
    """For comparisons to the last bit, signs of zeros and NaN included."""
    return np.ascontiguousarray(values).view(f"u{values.itemsize}")


def assert_same(got: Array, expected: Array) -> None:
    """Equal bits, but any NaN equals any other."""
    expected = np.asarray(expected, got.dtype)
    if got.dtype.kind == "f":
        both = np.isnan(got) & np.isnan(expected)
        equal = both | (bits(got) == bits(expected))
    else:
        equal = got == expected
    wrong = np.flatnonzero(~equal)
    assert not wrong.size, (
        f"{wrong.size} differ, first at {wrong[0]}: {got[wrong[0]]!r}, not {expected[wrong[0]]!r}"
    )

"""Products on tensor cores: for inputs of 16 bits, and in float32 where PyTorch may use TF32.

Executed are those of sm_80; what later architectures have instead is only looked at.
"""

import copy
import re
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch

from da2s_fast.kernels.launch import Launch, launched_by
from da2s_fast.nn import Cell, use_backend
from da2s_fast.ops import _triton
from da2s_fast.ops.cell.triton import forward
from tests.gpu.cells import WIDE, evaluate, gradients_of, on
from tests.gpu.ptx.compile import compile_launch
from tests.gpu.ptx.launcher import PtxLauncher
from tests.gpu.report.cases import CASES, launches_of
from tests.gpu.test_cell import ONE_PLACE
from tests.gpu.test_separable_conv import fused
from tests.nn import reference
from tests.nn.cell_modules import Example
from tests.nn.evaluate import evaluate as evaluate_module
from tests.nn.evaluate import to_double
from tests.nn.test_cell_autocast import assert_more_accurate, autocast, call
from tests.ops.cell_cases import make_case
from tests.ops.compare import Mismatch, assert_as_accurate
from tests.ops.test_separable_conv import evaluate as evaluate_convolution
from tests.ops.test_separable_conv import make_case as make_convolution
from tests.ops.test_separable_conv import reference as plain_convolution

PRIMITIVES = ("sep_conv_3x3", "dil_conv_3x3", "skip_connect")


@contextmanager
def tf32_allowed(allowed: bool = True) -> Iterator[None]:
    matmul = torch.backends.cuda.matmul
    before = matmul.fp32_precision
    matmul.fp32_precision = "tf32" if allowed else "ieee"
    try:
        yield
    finally:
        matmul.fp32_precision = before


@contextmanager
def watched() -> Iterator[list[str]]:
    """The precisions of products in tensor shapes that are launched; nothing is executed."""
    found: list[str] = []

    def start(launch: Launch) -> None:
        if launch.arguments.get("DOT"):
            found.append(launch.arguments["PRECISION"])

    with launched_by(start):
        yield found


def build() -> Example:
    torch.manual_seed(0)
    ours = Cell(1, 1, 17, 18, 16, False, False, primitives=PRIMITIVES)
    theirs = reference.Cell(
        (17, 18), 16, reduction=False, reduction_prev=False, primitives=PRIMITIVES, nodes=1
    )
    theirs.load_state_dict(ours.state_dict())
    return Example(ours, theirs, [(17, 5, 6), (18, 5, 6)], 2, len(PRIMITIVES))


def check_module(dtype: torch.dtype, low: torch.dtype) -> None:
    """Errors below twice those of torch's own modules, computed in a type of 16 bits."""
    example = build()
    tensors = [x.to(dtype) if x.dim() == 4 else x for x in example.tensors(images=2)]
    exact = evaluate_module(copy.deepcopy(example.theirs).double(), call, to_double(tensors))
    eager = evaluate_module(example.theirs, autocast(call, low), tensors)
    if dtype == torch.float32:
        with tf32_allowed(), use_backend("triton"):
            found = evaluate_module(example.ours, call, tensors)
        eager = {name: value.to(found[name].dtype) for name, value in eager.items()}
    else:
        found = evaluate_module(example.ours, autocast(call, low, "triton"), tensors)
    assert_more_accurate(found, eager, exact)


@pytest.mark.parametrize("device", ["sm_80"], indirect=True)
@pytest.mark.parametrize(
    ("dtype", "low"),
    [
        (torch.bfloat16, torch.bfloat16),
        (torch.float16, torch.float16),
        # TF32 has the digits of float16.
        (torch.float32, torch.float16),
    ],
    ids=["bfloat16", "float16", "TF32"],
)
def test_a_cell_is_as_accurate_as_its_modules_in_16_bits(device, dtype, low):
    check_module(dtype, low)


@pytest.mark.parametrize("device", ["sm_80"], indirect=True)
def test_digits_that_are_cut_off_are_noticed(device):
    """Without rounding tensor cores lose more than torch's own float16."""

    def cut(text: str) -> str:
        rounded = re.findall(r"and\.b32\s+%r\d+, (%r\d+), -8192;", text)
        assert rounded or "mma" not in text
        for register in rounded:
            text = re.sub(rf"(add\.s32\s+{register}, %r\d+, )4096;", r"\g<1>0;", text)
        return text

    with launched_by(PtxLauncher(80, change=cut)), pytest.raises(AssertionError, match="running"):
        check_module(torch.float16, torch.float16)


@pytest.mark.parametrize("device", ["sm_80"], indirect=True)
def test_a_separable_convolution_in_tf32(device):
    case = make_convolution((2, 18, 6, 7), 20, 3)
    exact = evaluate_convolution(plain_convolution, case.to(torch.float64))
    eager = evaluate_convolution(plain_convolution, case.to(torch.float16))
    with tf32_allowed():
        found = evaluate_convolution(fused, case)
    for name, value in found.items():
        assert (value - exact[name]).norm() < (eager[name] - exact[name]).norm(), name
    with pytest.raises(Mismatch):  # float32 it is not
        assert_as_accurate(found, evaluate_convolution(plain_convolution, case), exact)


@ONE_PLACE
def test_recomputing_gives_the_same_bits(device):
    case = on(make_case(WIDE, (2, 4, 4)).to(torch.float32), device)
    with tf32_allowed():
        saved, again = evaluate(case), evaluate(case, memory="recompute")
    for key, value in saved.items():
        assert torch.equal(again[key], value), key


@pytest.mark.parametrize(
    ("dtype", "allowed", "expected"),
    [
        (torch.float32, False, {"ieee"}),
        (torch.float32, True, {"tf32"}),
        (torch.bfloat16, False, {"tf32"}),
        (torch.float16, False, {"tf32"}),
        (torch.float64, True, set()),
    ],
)
def test_the_choice(dtype, allowed, expected):
    with tf32_allowed(allowed), watched() as found:
        gradients_of(make_case(WIDE, (2, 4, 4)).to(dtype))
    assert set(found) == expected


@pytest.mark.parametrize("memory", ["save", "recompute"])
@pytest.mark.parametrize("allowed", [True, False])
def test_backward_does_as_forward_did(monkeypatch, allowed, memory):
    """Whatever is allowed by then."""
    answers = iter([allowed])
    monkeypatch.setattr(forward, "rounds_to_tf32", lambda: next(answers))
    with watched() as found:
        gradients_of(make_case(WIDE, (2, 4, 4)).to(torch.float32), memory)
    assert len(found) > 3
    assert set(found) == {"tf32" if allowed else "ieee"}


def test_all_ways_to_allow_it():
    matmul = torch.backends.cuda.matmul
    before = matmul.fp32_precision
    try:
        for precision in ("high", "highest"):
            torch.set_float32_matmul_precision(precision)
            assert _triton.rounds_to_tf32() == (precision == "high")
        for allowed in (True, False):
            matmul.allow_tf32 = allowed
            assert _triton.rounds_to_tf32() == allowed
        with tf32_allowed():
            assert _triton.rounds_to_tf32()
    finally:
        matmul.fp32_precision = before


INSTRUCTIONS = {80: r"mma\.sync\S*tf32", 90: r"wgmma\S*tf32", 100: r"tcgen05\.mma\S*tf32"}


@pytest.mark.parametrize("architecture", INSTRUCTIONS)
def test_instructions(architecture):
    """Every product of a cell is one of the architecture's own."""
    launches = launches_of(CASES["cell, C=16, bfloat16"])
    products = {
        launch.kernel.__name__: launch for launch in launches if "PRECISION" in launch.arguments
    }
    assert set(products) == {"prepare", "convolve", "reach_inner", "reach_states", "leave"}
    for name, launch in products.items():
        assert re.search(INSTRUCTIONS[architecture], compile_launch(launch, architecture).ptx), name


@pytest.mark.parametrize("device", ["sm_80"], indirect=True)
def test_they_are_executed(device):
    ptx = PtxLauncher(80)
    with launched_by(ptx):
        gradients_of(make_case(WIDE, (1, 4, 4)).to(torch.bfloat16))
    with_products = {m.kernel for m in ptx.meters if any(n[:3] == "mma" for n in m.instructions)}
    assert with_products == {"prepare", "convolve", "reach_inner", "reach_states", "leave"}

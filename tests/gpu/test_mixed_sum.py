"""The code compiled of mixed_sum's kernels; `interpreted/` has the many cases."""

import functools
from importlib import import_module

import pytest
import torch

from da2s_fast.ops import mixed_sum
from da2s_fast.ops.mixed_sum_tiles import Tuning
from tests.gpu.ptx.errors import KernelFault
from tests.ops.compare import Mismatch, assert_as_accurate
from tests.ops.mixed_sum_cases import BATCH, NONE, RUNNING, Case, evaluate, make_case

fused = functools.partial(mixed_sum, backend="triton")
reference = functools.partial(mixed_sum, backend="reference")

LAYOUTS = [torch.contiguous_format, torch.channels_last]


def lay_out(case, layout):
    inputs = [y.contiguous(memory_format=layout) for y in case.inputs]
    return case._replace(inputs=inputs)


def check(device, case, **masks):
    norms = [n if n is None else n.to(device) for n in case.norms]
    inputs = [y.to(device) for y in case.inputs]
    case = Case(inputs, case.weights.to(device), norms, case.grad.to(device))
    results = evaluate(fused, case, **masks)
    eager = evaluate(reference, case, **masks)
    assert_as_accurate(results, eager, evaluate(reference, case.to(torch.float64), **masks))
    return results


# Where one architecture's code is as good as another's.
ONE_PLACE = ["sm_90", pytest.param("gpu", marks=pytest.mark.gpu)]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_as_accurate_as_eager(device, layout):
    check(device, lay_out(make_case((4, 6, 9, 16), [BATCH, NONE, RUNNING]), layout))


@pytest.mark.parametrize("device", ONE_PLACE, indirect=True)
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_other_types(device, dtype):
    check(device, make_case((4, 6, 9, 16), [BATCH, NONE, RUNNING], dtype))


@pytest.mark.parametrize("device", ONE_PLACE, indirect=True)
@pytest.mark.parametrize("shape", [(1, 3, 7, 5), (9, 6), (3, 17, 16)])
def test_odd_shapes(device, shape):
    check(device, make_case(shape, [BATCH, BATCH]))


@pytest.mark.parametrize("device", ONE_PLACE, indirect=True)
def test_without_norms(device):
    check(device, make_case((10000,), [NONE] * 3))


@pytest.mark.parametrize("device", ONE_PLACE, indirect=True)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_not_finite(device, layout):
    case = lay_out(make_case((4, 6, 9, 16), [BATCH, NONE, RUNNING]), layout)
    case.inputs[0][1, 2, 0, 3] = float("nan")
    case.inputs[1][1, 3, 1, 3] = float("-inf")
    case.inputs[2][1, 4, 2, 3] = float("inf")
    case.weights[1] = 0
    results = check(device, case)
    assert results["output"][1, 3, 1, 3].isnan()


def make_several_tiles(monkeypatch, layout=torch.contiguous_format):
    """Return a case in which two programs with two tiles each share a channel."""
    driver = import_module("da2s_fast.ops.mixed_sum_triton")
    tuning = Tuning(largest=2048, smallest=2048, programs=1024, parts=2)
    monkeypatch.setattr(driver, "_TUNING", {80: tuning})
    shape = (8, 6, 9, 16) if layout == torch.contiguous_format else (2, 6, 9, 16)
    return driver, lay_out(make_case(shape, [BATCH, NONE, RUNNING, BATCH]), layout)


@pytest.mark.parametrize("device", ONE_PLACE, indirect=True)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_several_tiles_and_parts(device, monkeypatch, layout):
    _, case = make_several_tiles(monkeypatch, layout=layout)
    check(device, case)


@pytest.mark.parametrize("device", ["sm_80"], indirect=True)
@pytest.mark.parametrize(
    ("name", "old", "new"),
    [
        ("kernels", "range(part + PARTS, tiles, PARTS)", "range(part + PARTS, tiles - 1, PARTS)"),
        ("kernels", " + count * off * off", ""),
        ("kernels", "(part < PARTS) & is_channel, other=0)", "part < PARTS - 1, other=0)"),
        ("kernels", "(y - center)", "y"),
        ("kernels", "weight * y", "tl.where(weight == 0, 0, weight * y)"),
        ("kernels", "element_ty), mask=mask)", "element_ty), mask=mask & (at != 5))"),
        ("backward_kernels", "tilt * (y - center)", "tilt * y"),
        ("backward_kernels", "g - level - ", "g - "),
        ("backward_kernels", "sums / squared / values", "sums / values"),
        ("backward_kernels", "range(part, tiles, PARTS)", "range(part, tiles - 1, PARTS)"),
        ("backward_kernels", "variance += channels", "variance += 0"),
        ("backward_kernels", "element_ty), mask=mask)", "element_ty), mask=mask & (at != 5))"),
    ],
)
def test_planted_bugs_are_noticed(device, monkeypatch, plant, name, old, new):  # noqa: PLR0917
    driver, case = make_several_tiles(monkeypatch)
    case.inputs[1][1, 2, 3, 4] = float("nan")
    case.weights[1] = 0
    plant(driver, old, new, name)
    with pytest.raises((Mismatch, KernelFault)):
        check(device, case)


@pytest.mark.parametrize("device", ["sm_80"], indirect=True)
@pytest.mark.parametrize("argument", ["row_stride", "tiles", "channels", "values"])
def test_wrong_arguments_are_noticed(device, monkeypatch, argument):
    driver, case = make_several_tiles(monkeypatch)

    def launch(kernel, grid, **arguments):
        if argument in arguments:
            arguments[argument] -= 1
        correct_launch(kernel, grid, **arguments)

    correct_launch = driver.launch
    monkeypatch.setattr(driver, "launch", launch)
    with pytest.raises((Mismatch, KernelFault)):
        check(device, case)

"""The code compiled of separable_conv's kernels; `interpreted/` has the many cases."""

import functools

import pytest
import torch

from da2s_fast.ops import separable_conv, separable_conv_triton
from tests.gpu.ptx.errors import KernelFault
from tests.ops.compare import Mismatch, assert_as_accurate
from tests.ops.test_separable_conv import LAYOUTS, Case, evaluate, make_case, reference

fused = functools.partial(separable_conv, backend="triton")


def check(device: torch.device, case: Case) -> dict[str, torch.Tensor]:
    own = case._replace(**{n: getattr(case, n).to(device) for n in ("x", "spatial", "channel")})
    found = {name: value.cpu() for name, value in evaluate(fused, own).items()}
    exact = evaluate(reference, case.to(torch.float64))
    assert_as_accurate(found, evaluate(reference, case), exact)
    return found


def small_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    """Several tiles, blocks and chunks even of tiny tensors."""
    for name in ("_TUNING", "_DOUBLE"):
        tuning = getattr(separable_conv_triton, name)[80]
        tuning = tuning._replace(pixels=16, block=16, outs=16, chunks=3, chunk_pixels=16, added=64)
        monkeypatch.setattr(separable_conv_triton, name, {80: tuning})


def make_several_tiles(monkeypatch: pytest.MonkeyPatch, seed: int = 0) -> Case:
    """Return a case of three chunks of two tiles, of two blocks of channels on either side."""
    small_tiles(monkeypatch)
    return make_case((2, 17, 5, 9), 18, 3, seed=seed)


# Where one architecture's code is as good as another's.
TENSOR_CORES = ["sm_80", pytest.param("gpu", marks=pytest.mark.gpu)]  # that can be executed
ONE_PLACE = pytest.mark.parametrize(
    "device", ["sm_90", pytest.param("gpu", marks=pytest.mark.gpu)], indirect=True
)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_as_accurate_as_eager(device, layout):
    case = make_case((2, 6, 9, 8), 5, 3)
    check(device, case._replace(x=case.x.contiguous(memory_format=layout)))


@pytest.mark.parametrize("device", TENSOR_CORES, indirect=True)
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_other_types(device, dtype):
    found = check(device, make_case((2, 6, 7, 8), 5, 3, dilation=2).to(dtype))
    assert all(value.dtype == dtype for value in found.values())


@ONE_PLACE
@pytest.mark.parametrize(
    ("shape", "k", "stride", "dilation"),
    [((1, 3, 7, 5), 5, 2, 2), ((3, 17, 1, 1), 7, 1, 1), ((2, 1, 6, 3), 3, 2, 1)],
)
def test_odd_shapes(device, shape, k, stride, dilation):
    check(device, make_case(shape, 3, k, stride, dilation))


@ONE_PLACE
def test_several_tiles_blocks_and_chunks(device, monkeypatch):
    check(device, make_several_tiles(monkeypatch))


@ONE_PLACE
def test_not_finite(device):
    case = make_case((2, 4, 6, 6), 4, 3)
    case.x[0, 0, 2, 2], case.x[0, 1, 2, 2], case.x[0, 0, 0, 0] = 0.0, -0.0, torch.nan
    case.x[1, 2, 4, 4], case.x[1, 3, 1, 1] = torch.inf, -torch.inf
    found = check(device, case)
    assert found["output"][0, 0, 0, 0].isnan()


@pytest.mark.parametrize("device", ["sm_80"], indirect=True)
@pytest.mark.parametrize(
    ("name", "old", "new"),
    [
        ("kernels", "live = n < images", "live = n <= images"),
        ("kernels", "tl.cdiv(channels, BLOCK))", "tl.cdiv(channels, BLOCK) - 1)"),
        ("kernels", "place // width, place % width", "place // height, place % height"),
        ("kernels", "rectified(values), factor", "values, factor"),
        ("kernels", "KERNEL * dilation, left", "KERNEL, left"),
        ("kernels", "live[:, None] & known[None, :]", "live[:, None] & (channel != 3)[None, :]"),
        ("backward_kernels", "range(0, tiles_per_chunk)", "range(0, tiles_per_chunk - 1)"),
        ("backward_kernels", "range(1, tl.cdiv(outs, OUTS))", "range(2, tl.cdiv(outs, OUTS))"),
        ("backward_kernels", "[:, None] == tap", "[:, None] == tap + 1"),
        ("backward_kernels", "through_relu(found, values)", "found"),
        ("backward_kernels", "block - first, CHUNKS", "block, CHUNKS"),
        ("backward_kernels", "mask=(out < outs)[:", "mask=(out < outs - 1)[:"),
    ],
)
def test_planted_bugs_are_noticed(device, monkeypatch, plant, name, old, new):  # noqa: PLR0917
    case = make_several_tiles(monkeypatch)._replace(dilation=2)
    plant(separable_conv_triton, old, new, name)
    with pytest.raises((Mismatch, KernelFault)):
        check(device, case)


@pytest.mark.parametrize("device", ["sm_80"], indirect=True)
@pytest.mark.parametrize(
    "argument", ["tiles_per_chunk", "channels", "outs", "width", "padding", "channel_numbers"]
)
def test_wrong_arguments_are_noticed(device, monkeypatch, argument):
    case = make_several_tiles(monkeypatch)

    def launch(kernel, grid, **arguments):
        if argument in arguments:
            arguments[argument] -= 1
        correct(kernel, grid, **arguments)

    correct = separable_conv_triton.launch
    monkeypatch.setattr(separable_conv_triton, "launch", launch)
    with pytest.raises((Mismatch, KernelFault)):
        check(device, case)

"""What drivers do around their kernels, on CUDA tensors without memory: no GPU is needed."""

import contextlib

import pytest
import torch
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from da2s_fast import kernels
from da2s_fast.errors import UserError
from da2s_fast.kernels.launch import launched_by
from da2s_fast.ops import _triton, discretization_loss, mixed_sum, separable_conv

OPERATORS = [
    "discretization_loss",
    "mixed_sum",
    "mixed_sum_backward",
    "separable_conv",
    "separable_conv_backward",
]
ALLOCATIONS = {
    "aten.empty",
    "aten.empty_like",
    "aten.new_empty",
    "aten.clone",
    "prim.device",
}
MODES, EPS = [1, 0, 2, 1], [1e-5, 0.0, 1e-3, 1e-5]


class Called(TorchDispatchMode):
    """Writes down torch's operators."""

    def __init__(self):
        super().__init__()
        self.names = set()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.names.add(str(function.overloadpacket))
        return function(*args, **kwargs or {})


@pytest.fixture
def fake(monkeypatch):
    """Let tensors be made on a GPU that is not there, an H100 by what drivers ask."""
    monkeypatch.setattr(_triton, "_device_reason", lambda device: None)
    monkeypatch.setattr(_triton, "architecture", lambda device: 90)
    guarded = []

    def device_of(tensor):
        guarded.append(tensor.device)
        return contextlib.nullcontext()

    monkeypatch.setattr(torch.cuda, "device_of", device_of)
    with FakeTensorMode():
        yield guarded


def arguments_of(operator, layout=torch.contiguous_format):
    def new(*shape):
        return torch.empty(shape, device="cuda")

    if operator == "discretization_loss":
        return [new(14, 7)] * 2, [new(14)] * 2, [2, 3, 4, 5], [2] * 8
    if operator.startswith("separable_conv"):
        x = new(2, 8, 5, 4).contiguous(memory_format=layout)
        arguments = x, new(8, 1, 3, 3), new(6, 8, 1, 1), 2, 1, 1
        backward = operator == "separable_conv_backward"
        return (new(2, 6, 3, 2), *arguments, [True, False, True]) if backward else arguments
    inputs = [new(2, 8, 5, 4).contiguous(memory_format=layout) for _ in MODES]
    if operator == "mixed_sum":
        return inputs, new(4), [new(8)], [new(8)], MODES, EPS
    masks = [True, False, True, True], True
    return new(2, 8, 5, 4), inputs, new(4), new(3, 8), new(3, 8), MODES, EPS, *masks


def flat(outputs):
    outputs = [outputs] if isinstance(outputs, torch.Tensor) else outputs
    return [t for item in outputs for t in ([item] if isinstance(item, torch.Tensor) else item)]


@pytest.mark.parametrize("operator", OPERATORS)
def test_cuda_tensors_get_the_driver(operator):
    assert torch._C._dispatch_has_kernel_for_dispatch_key(f"da2s_fast::{operator}", "CUDA")
    assert operator in _triton.DRIVERS


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize(
    ("operator", "kernels"),
    [
        ("discretization_loss", ["discretization_loss"]),
        ("mixed_sum", ["moments", "statistics", "forward"]),
        ("mixed_sum_backward", ["dots", "coefficients", "gradients"]),
        ("separable_conv", ["forward"]),
        ("separable_conv_backward", ["pull", "spread", "collect"]),
    ],
)
def test_drivers_only_allocate_and_launch(fake, operator, kernels, layout):
    arguments, started = arguments_of(operator, layout), []
    with Called() as called, launched_by(started.append):
        outputs = _triton.DRIVERS[operator](*arguments)
    assert [launch.kernel.__name__ for launch in started] == kernels
    assert fake == [torch.device("cuda", 0)]  # made the current device
    assert called.names <= ALLOCATIONS  # nothing that waits for the device or copies from it
    expected = getattr(torch.ops.da2s_fast, operator)(*arguments)
    for got, fake_output in zip(flat(outputs), flat(expected), strict=True):
        assert (got.shape, got.stride(), got.dtype, got.device) == (
            *(fake_output.shape, fake_output.stride(), fake_output.dtype, fake_output.device),
        )


def test_waiting_for_the_device_would_be_noticed(fake):
    with pytest.raises(DataDependentOutputException):
        torch.empty(1, device="cuda").item()


@pytest.mark.parametrize(
    ("modes", "mask", "kernels"),
    [
        ([0, 0], (True, True), [["forward"], ["dots", "coefficients", "gradients"]]),
        ([0, 0], (True, False), [["forward"], ["gradients"]]),
        ([2, 2], (True, False), [["statistics", "forward"], ["gradients"]]),
        ([1, 1], (False, True), [["moments", "statistics", "forward"], ["dots", "coefficients"]]),
        ([1, 1], (False, False), [["moments", "statistics", "forward"], []]),
    ],
)
def test_launches_that_nobody_needs_are_left_out(fake, modes, mask, kernels):
    inputs = [torch.empty(2, 8, 5, 4, device="cuda") for _ in modes]
    running = [torch.empty(8, device="cuda") for mode in modes if mode == 2]
    weights, eps = torch.empty(2, device="cuda"), [1e-5] * 2
    forward, backward = [], []
    with launched_by(forward.append):
        output, *statistics = _triton.DRIVERS["mixed_sum"](
            inputs, weights, running, running, modes, eps
        )
    masks = [mask[0]] * 2, mask[1]
    with launched_by(backward.append):
        _triton.DRIVERS["mixed_sum_backward"](
            output, inputs, weights, *statistics, modes, eps, *masks
        )
    assert [[launch.kernel.__name__ for launch in ls] for ls in (forward, backward)] == kernels


@pytest.mark.parametrize(
    ("mask", "kernels"),
    [
        ([True, False, False], ["pull", "spread"]),
        ([False, True, False], ["pull", "collect"]),
        ([False, False, True], ["pull", "collect"]),
        ([False] * 3, []),
    ],
)
def test_gradients_of_a_separable_convolution_that_nobody_needs_are_left_out(fake, mask, kernels):
    started = []
    with launched_by(started.append):
        found = _triton.DRIVERS["separable_conv_backward"](
            *arguments_of("separable_conv_backward")[:-1], mask
        )
    assert [launch.kernel.__name__ for launch in started] == kernels
    assert [gradient.numel() > 0 for gradient in found] == mask


def test_separable_convolutions_of_cuda_tensors_choose_triton(fake):
    x = torch.empty(2, 8, 5, 4, device="cuda", requires_grad=True)
    weights = torch.empty(8, 1, 3, 3, device="cuda"), torch.empty(6, 8, 1, 1, device="cuda")
    for backend in (None, "triton"):
        output = separable_conv(x, *weights, backend=backend)
        assert "da2s_fast_separable_conv" in output.grad_fn.name()


def test_cuda_tensors_choose_triton(fake):
    weights = torch.empty(2, device="cuda", requires_grad=True)
    y = torch.empty(2, 8, 5, 4, device="cuda")
    for backend in (None, "triton"):
        assert "da2s_fast_mixed_sum" in mixed_sum([y, y], weights, backend=backend).grad_fn.name()
    with pytest.raises(UserError, match="a tensor is on cuda:0"):
        mixed_sum([y, y], weights, backend="cpu")


def test_what_triton_leaves_to_the_reference():
    y, ones = torch.ones(2, 3, 4, 4), torch.ones(1)
    with pytest.raises(UserError, match="'triton' of mixed_sum cannot run: a tensor is on cpu"):
        mixed_sum([y], ones, backend="triton")
    with pytest.raises(UserError, match="takes up to 64 inputs, not 65"):
        mixed_sum([y] * 65, torch.ones(65), backend="triton")
    channel = torch.ones(2, 3, 1, 1)
    for spatial, reason in (
        (torch.ones(3, 1, 3, 3), "a tensor is on cpu"),
        (torch.ones(3, 1, 3, 3, dtype=torch.float16), "float32 and torch.float16"),
    ):
        with pytest.raises(UserError, match=f"'triton' of separable_conv cannot run: .*{reason}"):
            separable_conv(y, spatial, channel, backend="triton")
    with pytest.raises(UserError, match="'triton' of discretization_loss cannot run"):
        discretization_loss(
            [torch.ones(2, 3)],
            [],
            edges_per_node=[2],
            keep=[],
            operation_weight=1.0,
            edge_weight=1.0,
            backend="triton",
        )


@pytest.mark.parametrize(
    ("architecture", "expected"), [(80, "a"), (89, "a"), (90, "b"), (120, "b")]
)
def test_launch_parameters_by_architecture(monkeypatch, architecture, expected):
    monkeypatch.setattr(_triton, "architecture", lambda device: architecture)
    assert _triton.tuned({80: "a", 90: "b"}, torch.device("cuda", 0)) == expected


def test_old_gpus_are_refused(monkeypatch):
    monkeypatch.setattr(kernels, "can_run", lambda: (True, "runs"))
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Tesla T4")
    reason = _triton.device_reason.__wrapped__(torch.device("cuda", 0))
    assert reason == "cuda:0 is a Tesla T4 of compute capability 7.5, and the kernels need 8.0"

"""The scratch memory of the compiled operations."""

import gc
from collections.abc import Callable, Iterator
from functools import partial
from itertools import accumulate

import pytest
import torch
from torch import Tensor, nn
from torch.library import _scoped_library
from torch.profiler import ProfilerActivity, profile

from da2s_fast.nn import DARTS_PRIMITIVES, Cell, MixedOp
from da2s_fast.ops import release_workspaces, workspace, workspace_bytes
from tests.conditions import threads
from tests.nn import reference
from tests.ops.cell_cases import compiled

# Of torch 2.10 the operators cannot take memory for outputs (docs/engine.md, "Memory").
pooled = pytest.mark.skipif(
    torch.torch_version.TorchVersion(torch.__version__) < "2.11", reason="needs torch 2.11"
)

PRIMITIVES = ("max_pool_3x3", "skip_connect", "sep_conv_3x3", "dil_conv_5x5")


class Steps:
    """A cell of which every state has 1 MiB, and what a step of it needs."""

    def __init__(self, memory: str) -> None:
        torch.manual_seed(0)
        self.cell = Cell(2, 2, 48, 48, 16, False, False, primitives=PRIMITIVES)
        self.cell.memory = memory
        x = torch.randn(16, 48, 32, 32).contiguous(memory_format=torch.channels_last)
        self.x = x.requires_grad_()
        self.p = torch.rand(5, len(PRIMITIVES), requires_grad=True)
        self.gradient = torch.ones(16, 32, 32, 32)

    def __call__(self) -> Tensor:
        output = self.cell(self.x, self.x, self.p)
        torch.autograd.grad(output, [self.x, self.p, *self.cell.parameters()], self.gradient)
        return output

    def large_allocations(self) -> dict[str, int]:
        """Bytes that a step takes from torch's allocator, by event, where they are many."""
        with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
            self()
        taken = {event.key: event.self_cpu_memory_usage for event in profiler.key_averages()}
        return {name: bytes_ for name, bytes_ in taken.items() if bytes_ > 1 << 17}


@pytest.fixture
def one_thread() -> Iterator[None]:
    """On a busy machine threads may first meet, and need scratch each, in a later step."""
    with threads(1):
        yield


@pooled
@compiled
@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("memory", ["save", "recompute"])
def test_steps_after_the_first_ones_allocate_nothing_large(memory: str) -> None:
    step = Steps(memory)
    release_workspaces()
    step()
    step()
    held = workspace_bytes()
    assert held > 1 << 20
    # Two gradients of x add up outside of the operator.
    assert set(step.large_allocations()) <= {"aten::add"}
    assert workspace_bytes() == held


@pooled
@compiled
def test_what_is_kept_for_backward_counts_and_goes_with_the_graph() -> None:
    step = Steps("save")
    step()
    release_workspaces()
    without = workspace_bytes()
    output = step.cell(step.x, step.x, step.p)
    release_workspaces()
    kept = workspace_bytes() - without
    # 5 edges with 3 features each, 2 pools, 4 states.
    assert kept >= (5 * 3 + 2 + 4) << 20
    del output
    release_workspaces()
    assert workspace_bytes() == without


def peak_of_allocator(step: Callable[[], object]) -> int:
    """Bytes that a step holds of torch's allocator at most, beyond what it found."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        step()
    assert profiler.profiler is not None
    events = profiler.profiler.kineto_results.events()
    events = sorted(events, key=lambda event: event.start_ns())
    return max(accumulate(event.nbytes() for event in events if event.name() == "[memory]"))


@pooled
@compiled
@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize(("channels", "size"), [(16, 32), (32, 16)])
def test_a_mixed_operation_takes_a_quarter_of_eager_pytorchs_memory(
    channels: int, size: int, stride: int
) -> None:
    x = torch.randn(64, channels, size, size, requires_grad=True)
    p = torch.rand(len(DARTS_PRIMITIVES), requires_grad=True)
    gradient = torch.ones(64, channels, size // stride, size // stride)

    def step(module: nn.Module) -> None:
        torch.autograd.grad(module(x, p), [x, p, *module.parameters()], gradient)

    eager = peak_of_allocator(partial(step, reference.MixedOp(channels, stride, DARTS_PRIMITIVES)))
    ours = MixedOp(channels, stride)
    ours.memory = "recompute"
    gc.collect()
    release_workspaces()
    before = workspace_bytes()
    allocated = peak_of_allocator(partial(step, ours))
    assert workspace_bytes() - before + allocated <= eager / 4


def test_release_leaves_nothing() -> None:
    gc.collect()  # graphs in cycles keep theirs
    release_workspaces()
    assert workspace_bytes() == 0


def test_registered_implementations_are_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Operators without tensors: the dispatcher finds implementations for every device only."""
    held = [123]
    # What is left of a library that is not taken back makes torch 2.10 refuse to export to ONNX.
    with _scoped_library("da2s_workspace_test", "FRAGMENT") as library:
        for schema, run in (
            ("workspace_bytes() -> int", lambda: held[0]),
            ("release_workspaces() -> ()", held.clear),
        ):
            library.define(schema)
            library.impl(schema.split("(", maxsplit=1)[0], run, "CompositeExplicitAutograd")
        monkeypatch.setattr(workspace, "_BYTES", "da2s_workspace_test::workspace_bytes")
        monkeypatch.setattr(workspace, "_RELEASE", "da2s_workspace_test::release_workspaces")
        monkeypatch.setattr(torch.ops, "da2s_fast", torch.ops.da2s_workspace_test)
        assert workspace_bytes() == 123
        release_workspaces()
        assert held == []

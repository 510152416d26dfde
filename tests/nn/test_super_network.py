"""Super-networks against the plain PyTorch networks of reference.py."""

import copy
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor, nn

from da2s_fast.errors import UserError
from da2s_fast.nn import (
    DARTS_PRIMITIVES,
    ArchitectureParameters,
    EdgeMode,
    Mixture,
    NasBench201SuperNetwork,
    SuperNetwork,
)
from tests.nn import reference
from tests.nn.evaluate import assert_equal_to_reference

FEW = ("none", "avg_pool_3x3", "skip_connect", "dil_conv_3x3")
NAS_BENCH_201 = ("none", "skip_connect", "nor_conv_1x1", "nor_conv_3x3", "avg_pool_3x3")
# What each method mixes with: edge mode, s(alpha), partial channels.
METHODS = {
    "darts": ("none", False, 1),
    "pc-darts": ("softmax", False, 2),
    "da2s": ("da2s", True, 1),
}


def architecture(
    primitives: Sequence[str],
    nodes: int,
    mode: EdgeMode = "da2s",
    strengthen: bool = True,
    *,
    keep: dict[str, tuple[int, ...]] | None = None,
    inputs: int = 2,
) -> ArchitectureParameters:
    kinds = ("normal", "reduce") if inputs == 2 else ("normal",)
    counts = tuple(inputs + node for node in range(nodes))
    return ArchitectureParameters(
        kinds,
        counts,
        len(primitives),
        keep=keep or {kind: tuple(min(2, count) for count in counts) for kind in kinds},
        strengthen_operations=strengthen,
        edge_mode=mode,
        noise=0.7,
        generator=torch.Generator().manual_seed(3),
    )


def build(
    method: str = "da2s", *, nodes: int = 2, size: int = 8, C_in: int = 3, cells: int = 3
) -> tuple[SuperNetwork, reference.Network]:
    mode, strengthen, K = METHODS[method]
    torch.manual_seed(0)
    ours = SuperNetwork(
        4,
        5,
        cells,
        architecture(FEW, nodes, mode, strengthen),
        primitives=FEW,
        nodes=nodes,
        in_channels=C_in,
        image_size=size,
        partial_channels=K,
    )
    theirs = reference.Network(4, 5, cells, FEW, nodes=nodes, C_in=C_in, K=K, imagenet=size >= 128)
    return ours, theirs


def images(size: int, C_in: int = 3, count: int = 3) -> Tensor:
    return torch.randn(count, C_in, size, size, generator=torch.Generator().manual_seed(1))


def mixtures(
    parameters: Sequence[Tensor], method: str, counts: Sequence[int]
) -> reference.Mixtures:
    """From alpha normal, alpha reduce, beta normal, beta reduce."""
    mode, strengthen, _ = METHODS[method]
    result = {}
    for row, kind in enumerate(("normal", "reduce")):
        alpha = parameters[row]
        p = (reference.strong(alpha) if strengthen else alpha).softmax(1)
        g = None
        if mode != "none":
            g = reference.edge_weights(parameters[2 + row], counts, mode, [2] * len(counts))
        result[kind] = (p, g)
    return result


def assert_network_equals(
    ours: SuperNetwork, theirs: reference.Network, method: str, x: Tensor
) -> None:
    """Scores, gradients of images, weights, alpha and beta, and buffers."""
    counts = ours.architecture.edges_per_node

    def call(network: SuperNetwork, x: Tensor, *parameters: Tensor) -> Tensor:
        given = network.architecture
        given.alphas = dict(zip(given.alphas, parameters, strict=False))
        given.betas = dict(zip(given.betas, parameters[2:], strict=True))
        return network(x)

    def reference_call(network: nn.Module, x: Tensor, *parameters: Tensor) -> Tensor:
        return network(x, mixtures(parameters, method, counts))

    inputs = [x, *ours.arch_parameters()]
    exact = [torch.float64]
    assert_equal_to_reference(
        ours, theirs, call, inputs, reference_call=reference_call, dtypes=exact
    )


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("size", [8, 15])
def test_equals_reference(method: str, size: int) -> None:
    assert_network_equals(*build(method, size=size), method, images(size))


@pytest.mark.parametrize("method", METHODS)
def test_equals_reference_in_channels_last(method: str) -> None:
    ours, theirs = build(method)
    ours.memory_format = torch.channels_last
    layouts = []
    ours.cells[0].register_forward_pre_hook(lambda cell, args: layouts.append(args[0]))
    assert_network_equals(ours, theirs, method, images(8))
    ours(images(8))
    assert layouts[-1].is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("method", METHODS)
def test_equals_reference_in_evaluation_mode(method: str) -> None:
    ours, theirs = build(method)
    with torch.no_grad():
        for _ in range(2):
            ours(images(8))
    assert_network_equals(ours.eval(), theirs.eval(), method, images(8))


def test_equals_reference_with_one_channel_and_more_nodes_and_cells() -> None:
    ours, theirs = build(nodes=3, C_in=1, cells=5)
    assert_network_equals(ours, theirs, "da2s", images(8, 1))


def test_equals_reference_behind_the_imagenet_stem() -> None:
    ours, theirs = build(size=128)
    assert {"stem0.0.weight", "stem1.1.weight"} <= set(ours.state_dict())
    assert_network_equals(ours, theirs, "da2s", images(128, count=2))


@pytest.mark.parametrize("size", [8, 28, 32, 64, 127])
def test_smaller_images_go_through_the_cifar_stem(size: int) -> None:
    assert "stem.0.weight" in build(size=size)[0].state_dict()


def test_float32_is_as_exact_as_eager() -> None:
    """Of a whole network's rounding errors only the size can be compared."""
    ours, theirs = build()
    theirs.load_state_dict(ours.state_dict())
    x, parameters = images(8), ours.arch_parameters()
    eager = theirs(x, mixtures(parameters, "da2s", (2, 3)))
    wide = [value.detach().double() for value in parameters]
    exact = copy.deepcopy(theirs).double()(x.double(), mixtures(wide, "da2s", (2, 3)))
    error, allowed = ((y.double() - exact).norm() for y in (ours(x), eager))
    assert error <= 4 * allowed + 1e-6


@pytest.mark.parametrize("K", [1, 2])
def test_nas_bench_201_equals_reference(K: int) -> None:
    torch.manual_seed(0)
    ours = NasBench201SuperNetwork(
        4,
        5,
        1,
        architecture(NAS_BENCH_201, 3, "none", inputs=1),
        primitives=NAS_BENCH_201,
        in_channels=1,
        partial_channels=K,
    )
    theirs = reference.NasBench201Network(4, 5, 1, NAS_BENCH_201, C_in=1, K=K)

    def call(network: NasBench201SuperNetwork, x: Tensor, alpha: Tensor) -> Tensor:
        network.architecture.alphas = {"normal": alpha}
        return network(x)

    def reference_call(network: nn.Module, x: Tensor, alpha: Tensor) -> Tensor:
        return network(x, {"normal": (reference.strong(alpha).softmax(1), None)})

    inputs = [images(8, 1), *ours.arch_parameters()]
    exact = [torch.float64]
    assert_equal_to_reference(
        ours, theirs, call, inputs, reference_call=reference_call, dtypes=exact
    )


def test_nas_bench_201_takes_odd_sizes() -> None:
    arch = architecture(NAS_BENCH_201, 3, "none", inputs=1)
    network = NasBench201SuperNetwork(4, 5, 1, arch, primitives=NAS_BENCH_201)
    assert network(images(13)).shape == (3, 5)


def test_state_dict_keys_of_darts() -> None:
    primitives, nodes = DARTS_PRIMITIVES, 4
    arch = architecture(primitives, nodes, "none")
    keys = set(SuperNetwork(4, 5, 4, arch, primitives=primitives).state_dict())
    expected = {
        "stem.0.weight",
        "stem.1.running_mean",
        "cells.0.preprocess0.op.1.weight",
        "cells.0.preprocess1.op.2.running_var",
        "cells.2.preprocess0.conv_1.weight",  # after the reduction cell 4 // 3
        "cells.1._ops.0._ops.3.conv_2.weight",
        "cells.3._ops.13._ops.7.op.1.weight",
        "classifier.weight",
        "classifier.bias",
    }
    assert expected <= keys
    assert not any("alpha" in key or "beta" in key for key in keys)


@pytest.mark.parametrize("cells", [3, 5, 8])
def test_reduction_cells(cells: int) -> None:
    network, _ = build(cells=cells)
    reductions = [index for index, cell in enumerate(network.cells) if cell.reduction]
    assert reductions == [cells // 3, 2 * cells // 3]


class TestArchitectureParameters:
    def test_are_not_among_the_weights(self) -> None:
        network, theirs = build()
        weights = {id(weight) for weight in network.weights()}
        assert weights == {id(parameter) for parameter in network.parameters()}
        assert len(weights) == len(list(theirs.parameters()))
        arch = network.arch_parameters()
        assert [tuple(p.shape) for p in arch] == [(5, 4), (5, 4), (5,), (5,)]
        assert not weights & {id(parameter) for parameter in arch}

    @pytest.mark.parametrize("how", ["double", "to", "bfloat16"])
    def test_move_with_the_network(self, how: str) -> None:
        network, _ = build()
        held = network.arch_parameters()
        dtype = torch.bfloat16 if how == "bfloat16" else torch.float64
        assert (network.to(dtype) if how == "to" else getattr(network, how)()) is network
        assert all(p.dtype == dtype for p in network.arch_parameters())
        # The same tensors as before: an optimizer that holds them goes on working.
        for mine, theirs in zip(network.arch_parameters(), held, strict=True):
            assert mine is theirs
            assert mine.requires_grad
        assert network(images(8).to(dtype)).dtype == dtype

    def test_deepcopy_is_independent(self) -> None:
        network, _ = build()
        twin = copy.deepcopy(network)
        before = network(images(8))
        with torch.no_grad():
            for parameter in [*twin.arch_parameters(), *twin.weights()]:
                parameter.add_(1)
        torch.testing.assert_close(network(images(8)), before, rtol=0, atol=0)
        twin.load_state_dict(network.state_dict())
        assert not torch.equal(twin(images(8)), before)
        twin.architecture.load_state_dict(network.architecture.state_dict())
        torch.testing.assert_close(twin(images(8)), before, rtol=0, atol=0)

    def test_change_the_scores(self) -> None:
        network, _ = build()
        network.eval()
        before = network(images(8))
        for parameter in network.arch_parameters():
            with torch.no_grad():
                parameter += torch.linspace(-1, 1, parameter.numel()).view_as(parameter)
            after = network(images(8))
            assert not torch.allclose(after, before)
            before = after


def test_given_mixtures_replace_the_current_ones() -> None:
    network, theirs = build()
    network, theirs = network.double().eval(), theirs.double().eval()
    theirs.load_state_dict(network.state_dict())
    generator = torch.Generator().manual_seed(5)
    given = {
        kind: Mixture(
            torch.rand(5, 4, generator=generator, dtype=torch.float64),
            torch.rand(5, generator=generator, dtype=torch.float64),
        )
        for kind in ("normal", "reduce")
    }
    x = images(8).double()
    expected = theirs(x, {kind: (m.weights, m.edge_weights) for kind, m in given.items()})
    torch.testing.assert_close(network(x, given), expected, rtol=1e-10, atol=1e-12)


def test_current_mixtures_are_those_of_the_architecture() -> None:
    network, _ = build()
    current = network.mixtures()
    assert list(current) == ["normal", "reduce"]
    assert torch.equal(network(images(8)), network(images(8), current))


@pytest.mark.parametrize(("channels", "K"), [(4, 3), (4, 0), (4, 4), (1, 1), (6, 4)])
def test_channels_that_cannot_be_split(channels: int, K: int) -> None:
    for kind, network in (("darts", SuperNetwork), ("nas", NasBench201SuperNetwork)):
        arch = architecture(FEW, 2, "none", inputs=2 if kind == "darts" else 1)
        with pytest.raises(
            UserError, match=f"channels={channels} cannot be split by partial_channels={K}"
        ):
            network(channels, 5, 3, arch, primitives=FEW, nodes=2, partial_channels=K)

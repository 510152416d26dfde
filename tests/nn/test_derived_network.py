"""Derived networks against a plain functional reference that reads the same state dict."""

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from da2s_fast.errors import UserError
from da2s_fast.nn.auxiliary_head import AuxiliaryHead
from da2s_fast.nn.derived_cell import DerivedCell, drop_path
from da2s_fast.nn.derived_network import (
    DerivedNasBench201Network,
    DerivedNetwork,
    TrainingOutput,
)
from da2s_fast.nn.topology import CellTopology, Edge
from tests.nn.derived_reference import Reference

DARTS_V2_NORMAL = CellTopology(
    (
        (Edge("sep_conv_3x3", 0), Edge("sep_conv_3x3", 1)),
        (Edge("sep_conv_3x3", 0), Edge("sep_conv_3x3", 1)),
        (Edge("sep_conv_3x3", 1), Edge("skip_connect", 0)),
        (Edge("skip_connect", 0), Edge("dil_conv_3x3", 2)),
    ),
    concat=(2, 3, 4, 5),
)
DARTS_V2_REDUCE = CellTopology(
    (
        (Edge("max_pool_3x3", 0), Edge("max_pool_3x3", 1)),
        (Edge("skip_connect", 2), Edge("max_pool_3x3", 1)),
        (Edge("max_pool_3x3", 0), Edge("skip_connect", 2)),
        (Edge("skip_connect", 2), Edge("max_pool_3x3", 1)),
    ),
    concat=(2, 3, 4, 5),
)
# Every operation, nodes with one to four edges, a repeated source, an incomplete concat.
IMBALANCED_NORMAL = CellTopology(
    (
        (Edge("dil_conv_5x5", 1),),
        (Edge("sep_conv_5x5", 2), Edge("skip_connect", 0), Edge("avg_pool_3x3", 2)),
        (Edge("conv_7x1_1x7", 0), Edge("max_pool_3x3", 1), Edge("none", 2), Edge("none", 3)),
    ),
    concat=(4, 3),
)
IMBALANCED_REDUCE = CellTopology(
    (
        (Edge("skip_connect", 1),),
        (Edge("sep_conv_7x7", 0), Edge("dil_conv_3x3", 1), Edge("conv_7x1_1x7", 1)),
        (Edge("avg_pool_3x3", 0), Edge("avg_pool_3x3", 0), Edge("skip_connect", 3)),
    ),
    concat=(2, 3, 4),
)
CELLS = [(DARTS_V2_NORMAL, DARTS_V2_REDUCE), (IMBALANCED_NORMAL, IMBALANCED_REDUCE)]


def randomized(network: torch.nn.Module) -> torch.nn.Module:
    """The network in float64 with statistics and affine parameters away from 0 and 1."""
    generator = torch.Generator().manual_seed(1)
    network = network.double()
    for name, value in [*network.named_parameters(), *network.named_buffers()]:
        if value.dim() == 1 and "classifier" not in name:
            value.data.uniform_(0.5, 1.5, generator=generator)
    return network


def images(*shape: int) -> Tensor:
    generator = torch.Generator().manual_seed(2)
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def assert_same_gradients(ours: Tensor, reference: Tensor, network: torch.nn.Module) -> None:
    probe = images(*ours.shape)
    parameters = list(network.parameters())
    expected, actual = (
        torch.autograd.grad((logits * probe).sum(), parameters, allow_unused=True)
        for logits in (reference, ours)
    )
    for value, wanted in zip(actual, expected, strict=True):
        assert (value is None) == (wanted is None)
        if value is not None:
            torch.testing.assert_close(value, wanted)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize(("normal", "reduce"), CELLS)
@pytest.mark.parametrize(
    "setting",
    [
        (8, 1, 1, "cifar"),
        (9, 2, 3, "cifar"),
        (11, 4, 1, "cifar"),
        (15, 3, 2, "cifar"),
        (16, 7, 3, "cifar"),
        (33, 3, 3, "imagenet"),
        (64, 4, 3, "imagenet"),
    ],
)
def test_darts_network_equals_the_reference(normal, reduce, setting, training):
    size, cells, in_channels, stem = setting
    network = DerivedNetwork(normal, reduce, 4, 5, cells, in_channels=in_channels, stem=stem)
    network = randomized(network).train(training)
    x = images(3, in_channels, size, size)
    expected, _ = Reference(network).darts(x, normal, reduce, cells)
    logits = network(x)
    assert logits.shape == (3, 5)
    torch.testing.assert_close(logits, expected)
    assert_same_gradients(logits, expected, network)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize(("size", "cells"), [(8, 1), (11, 2), (13, 1)])
def test_nas_bench_201_network_equals_the_reference(size, cells, training):
    topology = CellTopology(
        (
            (Edge("nor_conv_3x3", 0),),
            (Edge("none", 0), Edge("avg_pool_3x3", 1)),
            (Edge("nor_conv_1x1", 0), Edge("skip_connect", 1), Edge("nor_conv_3x3", 2)),
        ),
        concat=(3,),
        inputs=1,
    )
    network = randomized(DerivedNasBench201Network(topology, 4, 5, cells, in_channels=2))
    network.train(training)
    x = images(3, 2, size, size)
    expected = Reference(network).nas_bench_201(x, topology, cells)
    logits = network(x)
    torch.testing.assert_close(logits, expected)
    assert_same_gradients(logits, expected, network)


@pytest.mark.parametrize(("size", "window", "stride"), [(8, 5, 3), (7, 5, 2)])
def test_auxiliary_head_equals_those_of_darts(size, window, stride):
    head = randomized(AuxiliaryHead(6, 4, last_norm=size == 8)).eval()
    reference = Reference(head)
    x = images(2, 6, size, size)
    y = F.avg_pool2d(x.relu(), window, stride)
    y = reference.norm(reference.conv(y, "features.2"), "features.3").relu()
    y = reference.conv(y, "features.5")
    y = reference.norm(y, "features.6").relu() if size == 8 else y.relu()
    torch.testing.assert_close(head(x), reference.classified(y))


@pytest.mark.parametrize("size", [8, 9, 13, 28, 32, 40])
@pytest.mark.parametrize("cells", [1, 2, 4])
def test_auxiliary_head_at_every_size_leaves_the_main_output_alone(size, cells):
    network = DerivedNetwork(DARTS_V2_NORMAL, DARTS_V2_REDUCE, 4, 5, cells, auxiliary=True)
    x = images(2, 3, size, size)
    network = randomized(network).train()
    logits, tapped = Reference(network).darts(x, DARTS_V2_NORMAL, DARTS_V2_REDUCE, cells)
    output = network(x)
    assert isinstance(output, TrainingOutput)
    torch.testing.assert_close(output.logits, logits)
    torch.testing.assert_close(output.auxiliary_logits, network.auxiliary_head(tapped))
    assert isinstance(network.eval()(x), Tensor)


def test_auxiliary_windows_cover_all_pixels():
    head = AuxiliaryHead(1, 2).double()
    pool = head.features[1]
    for size in range(2, 40):
        x = torch.ones(1, 1, size, size + 1, dtype=torch.float64, requires_grad=True)
        y = pool(x)
        torch.testing.assert_close(y, torch.ones(1, 1, 2, 2, dtype=torch.float64))
        (gradient,) = torch.autograd.grad(y.sum(), x)
        if size > 2:
            assert (gradient > 0).all()
        torch.testing.assert_close(gradient, gradient.flip(2, 3))


def test_parameter_count_and_keys_are_those_published_for_darts_v2():
    network = DerivedNetwork(DARTS_V2_NORMAL, DARTS_V2_REDUCE, 36, 10, 20, auxiliary=True)
    # The DARTS authors' training script reports 3.349342 MB for its CIFAR-10 network.
    count = sum(p.numel() for k, p in network.named_parameters() if "auxiliary" not in k)
    assert count == 3_349_342
    keys = list(network.state_dict())
    assert keys[0] == "stem.0.weight"
    for key in (
        "cells.0.preprocess0.op.1.weight",
        "cells.7.preprocess0.conv_2.weight",
        "cells.0._ops.0.op.6.weight",
        "auxiliary_head.features.6.running_var",
        "auxiliary_head.classifier.weight",
    ):
        assert key in keys
    assert keys[-1] == "classifier.bias"


def test_parameter_count_published_for_nas_bench_201():
    names = ((0,), (0, 1), (0, 1, 2))
    cell = CellTopology(
        tuple(tuple(Edge("nor_conv_3x3", source) for source in node) for node in names), (3,), 1
    )
    network = DerivedNasBench201Network(cell, 16, 10, 5)
    # 1.531546 MB is the largest network of the benchmark.
    assert sum(p.numel() for p in network.parameters()) == 1_531_546


def test_drop_path_drops_whole_samples_and_keeps_the_mean():
    torch.manual_seed(0)
    x = torch.ones(20_000, 2, 1, 1, requires_grad=True)
    y = drop_path(x, 0.25)
    assert torch.equal(y[:, 0], y[:, 1])
    assert set(y.unique().tolist()) == {0.0, torch.tensor(1 / 0.75).item()}
    # Five standard deviations of the mean of 20,000 draws.
    assert abs(y.mean().item() - 1) < 5 * (0.25 / 0.75 / 20_000) ** 0.5
    (gradient,) = torch.autograd.grad(y.sum(), x)
    assert torch.equal(gradient, y.detach())


def test_drop_path_spares_identities_and_evaluation():
    cell = DerivedCell(DARTS_V2_NORMAL, 4, 4, 4, reduction=False, reduction_prev=False)
    x = torch.randn(64, 4, 8, 8)
    kept = cell(x, x, 0.0)
    dropped = cell(x, x, 0.999)
    # Node 5 is skip_connect(0) + dil_conv_3x3(2): almost every sample keeps only the identity.
    identity = cell.preprocess0(x)
    same = (dropped[:, 12:] == identity).flatten(1).all(1)
    assert same.sum() >= 60
    assert not torch.equal(kept[:, 12:], identity)
    cell.eval()
    assert torch.equal(cell(x, x, 0.999), cell(x, x, 0.0))


def test_network_hands_its_drop_path_probability_to_the_cells():
    network = DerivedNetwork(IMBALANCED_NORMAL, IMBALANCED_REDUCE, 4, 5, 3)
    x = torch.randn(8, 3, 8, 8)
    torch.manual_seed(0)
    plain = network(x)
    network.drop_path_prob = 0.5
    assert not torch.equal(network(x), plain)
    network.eval()
    with_probability = network(x)
    network.drop_path_prob = 0.0
    assert torch.equal(network(x), with_probability)


@pytest.mark.parametrize(
    ("arguments", "keywords", "message"),
    [
        ((1, 10, 4), {}, "channels is 1"),
        ((4, 0, 4), {}, "num_classes is 0"),
        ((4, 10, 0), {}, "cells is 0"),
        ((4, 10, 4), {"in_channels": 0}, "in_channels is 0"),
        ((4, 10, 4), {"stem": "vgg"}, "unknown stem 'vgg'"),
    ],
)
def test_impossible_sizes_are_refused(arguments, keywords, message):
    with pytest.raises(UserError, match=message):
        DerivedNetwork(DARTS_V2_NORMAL, DARTS_V2_REDUCE, *arguments, **keywords)


def test_cells_of_the_other_layout_are_refused():
    dense = CellTopology(((Edge("skip_connect", 0),),), (1,), inputs=1)
    with pytest.raises(UserError, match="1 input states, but this network feeds 2"):
        DerivedNetwork(DARTS_V2_NORMAL, dense, 4, 10, 4)
    with pytest.raises(UserError, match="2 input states, but this network feeds 1"):
        DerivedNasBench201Network(DARTS_V2_NORMAL, 4, 10, 1)
    wide = CellTopology(((Edge("skip_connect", 0),),) * 2, (1, 2), inputs=1)
    with pytest.raises(UserError, match=r"one node as output, but concat is \[1, 2\]"):
        DerivedNasBench201Network(wide, 4, 10, 1)


def test_auxiliary_head_on_a_single_pixel_is_refused():
    network = DerivedNetwork(
        DARTS_V2_NORMAL, DARTS_V2_REDUCE, 4, 10, 4, auxiliary=True, stem="imagenet"
    )
    with pytest.raises(UserError, match="features of 1x1 pixels but needs 2x2"):
        network(torch.randn(2, 3, 16, 16))

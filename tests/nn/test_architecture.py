"""Architecture parameters: where they start and how they become mixing weights."""

import copy
from collections.abc import Sequence

import pytest
import torch

from da2s_fast.nn import ArchitectureParameters, EdgeMode
from tests.nn import reference

COUNTS = (2, 3, 4, 5)
BALANCED = {"normal": (2, 2, 2, 2), "reduce": (2, 2, 2, 2)}
IMBALANCED = {"normal": (1, 2, 3, 3), "reduce": (2, 1, 4, 2)}


def make(
    mode: EdgeMode = "da2s",
    *,
    keep: dict[str, Sequence[int]] = BALANCED,
    strengthen: bool = True,
    swap: bool = False,
    noise: float = 1.0,
    seed: int = 0,
) -> ArchitectureParameters:
    return ArchitectureParameters(
        ("normal", "reduce"),
        COUNTS,
        7,
        keep=keep,
        strengthen_operations=strengthen,
        edge_mode=mode,
        swap_edge_weights=swap,
        noise=noise,
        generator=torch.Generator().manual_seed(seed),
    )


@pytest.mark.parametrize("keep", [BALANCED, IMBALANCED])
def test_initial_values(keep: dict[str, Sequence[int]]) -> None:
    architecture = make(keep=keep, noise=1e-4)
    for kind in ("normal", "reduce"):
        assert architecture.alphas[kind].shape == (14, 7)
        assert 2e-5 < architecture.alphas[kind].std() < 3e-4
        assert architecture.alphas[kind].abs().max() < 1e-3
        for node, beta in enumerate(architecture.betas[kind].split(COUNTS)):
            start = torch.full_like(beta, keep[kind][node] / COUNTS[node])
            torch.testing.assert_close(beta, start, rtol=0, atol=1e-3)
            assert not torch.equal(beta, start)
    torch.testing.assert_close(
        make(noise=0.0).betas["normal"][[2, 5, 9]], torch.tensor([2 / 3, 2 / 4, 2 / 5])
    )


def test_pc_darts_starts_around_zero_and_darts_has_no_beta() -> None:
    assert torch.equal(make("softmax", noise=0.0).betas["reduce"], torch.zeros(14))
    assert make("none").betas == {}
    assert [tuple(p.shape) for p in make("none").parameters()] == [(14, 7)] * 2
    assert [tuple(p.shape) for p in make("softmax").parameters()] == [(14, 7)] * 2 + [(14,)] * 2


def test_the_generator_decides() -> None:
    for first, again, other in zip(
        make().parameters(), make().parameters(), make(seed=1).parameters(), strict=True
    ):
        assert torch.equal(first, again)
        assert not torch.equal(first, other)
        assert first.requires_grad
        assert first.is_leaf


@pytest.mark.parametrize("strengthen", [True, False])
def test_operation_weights(strengthen: bool) -> None:
    architecture = make(strengthen=strengthen)
    alpha = architecture.alphas["normal"].detach().double()
    logits = reference.strong(alpha) if strengthen else alpha
    expected = logits.exp() / logits.exp().sum(1, keepdim=True)
    p = architecture.operation_weights("normal")
    torch.testing.assert_close(p.double(), expected, rtol=1e-5, atol=1e-7)
    torch.testing.assert_close(p.sum(1), torch.ones(14))


@pytest.mark.parametrize("mode", ["softmax", "da2s"])
@pytest.mark.parametrize("keep", [BALANCED, IMBALANCED])
@pytest.mark.parametrize("kind", ["normal", "reduce"])
def test_edge_weights(mode: EdgeMode, keep: dict[str, Sequence[int]], kind: str) -> None:
    architecture = make(mode, keep=keep)
    expected = reference.edge_weights(
        architecture.betas[kind].detach().double(), COUNTS, mode, keep[kind]
    )
    g = architecture.edge_weights(kind)
    torch.testing.assert_close(g.double(), expected, rtol=1e-5, atol=1e-7)
    per_node = torch.stack([node.sum() for node in g.split(COUNTS)])
    total = torch.ones(4) if mode == "softmax" else torch.tensor(COUNTS, dtype=torch.float32)
    torch.testing.assert_close(per_node, total)


def test_darts_does_not_weigh_edges() -> None:
    assert make("none").edge_weights("normal") is None
    assert make("none").mixture("normal").edge_weights is None


def test_first_node_is_weighed_only_where_it_loses_an_edge() -> None:
    architecture = make(keep=IMBALANCED)
    assert architecture.weighs_edges("normal", 0)
    assert not architecture.weighs_edges("reduce", 0)
    assert torch.equal(architecture.edge_weights("reduce")[:2], torch.ones(2))
    assert not torch.equal(architecture.edge_weights("normal")[:2], torch.ones(2))
    # The first node's own betas learn where they count, and only there.
    for kind in ("normal", "reduce"):
        (architecture.edge_weights(kind) * torch.arange(14)).sum().backward()
    # With a bounded strength a beta above 1 has gradient 0: start from below.
    assert architecture.betas["reduce"].grad[:2].abs().max() == 0
    low = make(keep=IMBALANCED, noise=0.01)
    (low.edge_weights("normal") * torch.arange(14)).sum().backward()
    assert low.betas["normal"].grad[:2].abs().min() > 0


def test_swapped_edge_weights() -> None:
    plain, swapped = make(), make(swap=True)
    assert torch.equal(swapped.edge_weights("normal"), plain.edge_weights("reduce"))
    assert torch.equal(swapped.edge_weights("reduce"), plain.edge_weights("normal"))
    assert torch.equal(swapped.operation_weights("normal"), plain.operation_weights("normal"))


def test_beta_above_one_counts_as_one() -> None:
    architecture = make(noise=0.0)
    with torch.no_grad():
        architecture.betas["normal"][2:5] = torch.tensor([5.0, 1.0, 0.0])
    g = architecture.edge_weights("normal")
    assert g[2] == g[3] > g[4]
    (g * torch.arange(14)).sum().backward()
    assert torch.equal(architecture.betas["normal"].grad[2:4], torch.zeros(2))
    assert architecture.betas["normal"].grad[4] != 0


def test_gradients_of_a_mixture_reach_alpha_and_beta() -> None:
    architecture = make(noise=0.1)
    mixture = architecture.mixture("reduce")
    (mixture.weights.square().sum() + mixture.edge_weights.square().sum()).backward()
    assert architecture.alphas["reduce"].grad.abs().min() > 0
    assert architecture.betas["reduce"].grad[2:].abs().min() > 0
    assert architecture.alphas["normal"].grad is None


class TestStateDict:
    def test_round_trip(self) -> None:
        source, target = make(seed=1), make(seed=2)
        target.load_state_dict(source.state_dict())
        for mine, theirs in zip(target.parameters(), source.parameters(), strict=True):
            assert torch.equal(mine, theirs)
            assert mine.requires_grad

    def test_is_a_copy(self) -> None:
        architecture = make()
        state = architecture.state_dict()
        before = copy.deepcopy(state)
        with torch.no_grad():
            for tensor in architecture.parameters():
                tensor.add_(1)
        assert all(torch.equal(state[key], before[key]) for key in state)
        assert not any(value.requires_grad for value in state.values())

    def test_keys(self) -> None:
        assert list(make().state_dict()) == [
            "alpha.normal",
            "alpha.reduce",
            "beta.normal",
            "beta.reduce",
        ]

    def test_other_kind(self) -> None:
        with pytest.raises(ValueError, match=r"expected \['alpha.normal', 'alpha.reduce'\]"):
            make("none").load_state_dict(make().state_dict())

    def test_other_shape_changes_nothing(self) -> None:
        architecture = make()
        before = architecture.state_dict()
        wrong = make(seed=3).state_dict()
        wrong["beta.reduce"] = torch.zeros(13)
        with pytest.raises(ValueError, match=r"beta.reduce has shape \(13,\), expected \(14,\)"):
            architecture.load_state_dict(wrong)
        assert all(torch.equal(before[k], v) for k, v in architecture.state_dict().items())


def test_apply_keeps_the_tensors_an_optimizer_holds() -> None:
    architecture = make()
    held = architecture.parameters()
    held[0].sum().backward()
    architecture.apply(lambda tensor: tensor.double())
    assert all(mine is theirs for mine, theirs in zip(architecture.parameters(), held, strict=True))
    assert all(tensor.dtype == torch.float64 for tensor in held)
    assert held[0].grad.dtype == torch.float64

"""Architecture gradients against autograd, and against eq. 7 of DARTS, differentiated exactly."""

import contextlib
import copy
from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from da2s_fast.search import architect as architect_module
from da2s_fast.search.architect import Architect, Batch, only_gradients_of

SGD = {"lr": 0.1, "momentum": 0.9, "weight_decay": 3e-3}


class Toy(nn.Module):
    """Two weighted candidates with a BatchNorm, smooth, so that second derivatives exist."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first = nn.Linear(6, 5)
        self.second = nn.Linear(6, 5)
        self.norm = nn.BatchNorm1d(5, affine=False)
        self.last = nn.Linear(5, 3)
        self.unused = nn.Parameter(torch.ones(2))
        self.alpha = torch.randn(2).double().requires_grad_()
        self.beta = torch.randn(1).double().requires_grad_()
        self.flags: list[tuple[set[bool], set[bool]]] = []
        self.double()

    def weights(self) -> list[nn.Parameter]:
        return list(self.parameters())

    def arch_parameters(self) -> list[Tensor]:
        return [self.alpha, self.beta]

    def forward(self, x: Tensor) -> Tensor:
        groups = (self.arch_parameters(), self.weights())
        self.flags.append(tuple({p.requires_grad for p in group} for group in groups))
        return self.scores(x, self.alpha, self.beta, dict(self.named_parameters()))

    def scores(self, x: Tensor, alpha: Tensor, beta: Tensor, weights: dict[str, Tensor]) -> Tensor:
        p = alpha.softmax(0)
        a = F.linear(x, weights["first.weight"], weights["first.bias"]).tanh()
        b = F.linear(x, weights["second.weight"], weights["second.bias"]).sin()
        h = self.norm(beta * (p[0] * a + p[1] * b))
        return F.linear(h, weights["last.weight"], weights["last.bias"])


def batch(seed: int) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(8, 6, generator=generator, dtype=torch.float64)
    return x, torch.randint(3, (8,), generator=generator)


@pytest.fixture
def toy() -> Toy:
    return Toy()


@pytest.fixture
def architect(toy: Toy) -> Architect:
    return Architect(toy, contextlib.nullcontext)


def regularizer(toy: Toy) -> Callable[[], Tensor]:
    return lambda: 0.3 * toy.alpha.square().sum() + 0.2 * toy.beta.sum()


def state(toy: Toy) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in toy.state_dict().items()}


def test_first_order_is_the_gradient_of_the_loss(toy: Toy, architect: Architect) -> None:
    images, labels = batch(1)
    twin = copy.deepcopy(toy)
    loss = F.cross_entropy(twin(images), labels) + regularizer(twin)()
    expected = torch.autograd.grad(loss, twin.arch_parameters())
    result = architect.first_order((images, labels), regularizer(toy), lambda loss: loss)
    assert result.item() == pytest.approx(loss.item(), rel=1e-12)
    assert not result.requires_grad
    for parameter, gradient in zip(toy.arch_parameters(), expected, strict=True):
        torch.testing.assert_close(parameter.grad, gradient, rtol=1e-12, atol=1e-14)
    assert all(weight.grad is None for weight in toy.weights())
    # BatchNorm has seen one batch.
    assert toy.norm.num_batches_tracked == 1


def test_first_order_scales_the_gradients_but_not_the_loss(toy: Toy, architect: Architect) -> None:
    plain = architect.first_order(batch(1), regularizer(toy), lambda loss: loss)
    gradients = [parameter.grad.clone() for parameter in toy.arch_parameters()]
    scaled = architect.first_order(batch(1), regularizer(toy), lambda loss: 8 * loss)
    assert scaled == plain
    for parameter, gradient in zip(toy.arch_parameters(), gradients, strict=True):
        torch.testing.assert_close(parameter.grad, 8 * gradient, rtol=1e-12, atol=0)


def test_first_order_asks_for_no_gradient_of_the_weights(toy: Toy, architect: Architect) -> None:
    architect.first_order(batch(1), regularizer(toy), lambda loss: loss)
    assert toy.flags == [({True}, {False})]
    assert all(p.requires_grad for p in [*toy.weights(), *toy.arch_parameters()])


def optimizer_with_momentum(toy: Toy) -> torch.optim.SGD:
    """After a step, so that there is a momentum."""
    optimizer = torch.optim.SGD(toy.weights(), **SGD)
    images, labels = batch(5)
    F.cross_entropy(toy(images), labels).backward()
    optimizer.step()
    optimizer.zero_grad()
    for parameter in toy.arch_parameters():
        parameter.grad = None
    toy.flags.clear()
    return optimizer


def unrolled(
    toy: Toy, optimizer: torch.optim.SGD, train: Batch, valid: Batch
) -> tuple[Tensor, Sequence[Tensor]]:
    """Eq. 7 without approximation: differentiate through the weight step."""
    toy = copy.deepcopy(toy)
    arch = [p.detach().clone().requires_grad_() for p in toy.arch_parameters()]
    names = [name for name, _ in toy.named_parameters()]
    weights = {name: p.detach().clone().requires_grad_() for name, p in toy.named_parameters()}

    def loss(batch: Batch, weights: dict[str, Tensor]) -> Tensor:
        return F.cross_entropy(toy.scores(batch[0], *arch, weights), batch[1])

    gradients = torch.autograd.grad(
        loss(train, weights), list(weights.values()), create_graph=True, allow_unused=True
    )
    stepped = {}
    for name, gradient, parameter in zip(
        names, gradients, optimizer.param_groups[0]["params"], strict=True
    ):
        if gradient is None:
            stepped[name] = weights[name]
            continue
        step = gradient + SGD["weight_decay"] * weights[name]
        if (momentum := optimizer.state[parameter].get("momentum_buffer")) is not None:
            step = step + SGD["momentum"] * momentum
        stepped[name] = weights[name] - SGD["lr"] * step
    toy.alpha, toy.beta = arch
    result = loss(valid, stepped) + regularizer(toy)()
    return result, torch.autograd.grad(result, arch)


@pytest.mark.parametrize("with_momentum", [True, False])
def test_second_order_is_the_unrolled_gradient(
    toy: Toy, architect: Architect, with_momentum: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    optimizer = (
        optimizer_with_momentum(toy) if with_momentum else torch.optim.SGD(toy.weights(), **SGD)
    )
    train, valid = batch(1), batch(2)
    loss, expected = unrolled(toy, optimizer, train, valid)
    # With a tiny step the finite difference is the derivative.
    monkeypatch.setattr(architect_module, "FINITE_DIFFERENCE", 1e-4)
    result = architect.second_order(train, valid, regularizer(toy), optimizer)
    assert result.item() == pytest.approx(loss.item(), rel=1e-12)
    for parameter, gradient in zip(toy.arch_parameters(), expected, strict=True):
        torch.testing.assert_close(parameter.grad, gradient, rtol=1e-6, atol=1e-9)
    # It matters: the first order gives something else.
    second = [parameter.grad for parameter in toy.arch_parameters()]
    architect.first_order(valid, regularizer(toy), lambda loss: loss)
    assert (toy.alpha.grad - second[0]).abs().max() > 1e-3


def test_second_order_uses_the_finite_difference_of_darts(toy: Toy, architect: Architect) -> None:
    """Footnote 2: eps = 0.01 / norm of the vector."""
    optimizer = optimizer_with_momentum(toy)
    train, valid = batch(1), batch(2)
    twin = copy.deepcopy(toy)
    weights = [w for name, w in twin.named_parameters() if name != "unused"]
    momenta = [
        optimizer.state[w]["momentum_buffer"]
        for w in toy.weights()
        if w in optimizer.state and "momentum_buffer" in optimizer.state[w]
    ]

    def loss(batch: Batch) -> Tensor:
        return F.cross_entropy(twin(batch[0]), batch[1])

    start = [w.detach().clone() for w in weights]
    gradients = torch.autograd.grad(loss(train), weights)
    with torch.no_grad():
        for w, g, m in zip(weights, gradients, momenta, strict=True):
            w -= SGD["lr"] * (SGD["momentum"] * m + g + SGD["weight_decay"] * w)
    found = torch.autograd.grad(
        loss(valid) + regularizer(twin)(), [*twin.arch_parameters(), *weights]
    )
    direct, vector = found[:2], found[2:]
    eps = 0.01 / torch.cat([v.flatten() for v in vector]).norm()
    sides = []
    for sign in (1, -1):
        with torch.no_grad():
            for w, w0, v in zip(weights, start, vector, strict=True):
                w.copy_(w0 + sign * eps * v)
        sides.append(torch.autograd.grad(loss(train), twin.arch_parameters()))
    architect.second_order(train, valid, regularizer(toy), optimizer)
    for parameter, d, plus, minus in zip(toy.arch_parameters(), direct, *sides, strict=True):
        expected = d - SGD["lr"] * (plus - minus) / (2 * eps)
        torch.testing.assert_close(parameter.grad, expected, rtol=1e-9, atol=1e-12)


def test_second_order_restores_everything_to_the_bit(toy: Toy, architect: Architect) -> None:
    optimizer = optimizer_with_momentum(toy)
    before, momentum = state(toy), copy.deepcopy(optimizer.state_dict())
    arch = [parameter.detach().clone() for parameter in toy.arch_parameters()]
    train, valid = batch(1), batch(2)
    architect.second_order(train, valid, regularizer(toy), optimizer)
    after = state(toy)
    for name, parameter in toy.named_parameters():
        assert torch.equal(parameter, before[name]), name
        assert parameter.grad is None
        assert parameter.requires_grad
    assert all(map(torch.equal, arch, toy.arch_parameters()))
    again = optimizer.state_dict()
    for key, values in momentum["state"].items():
        assert torch.equal(values["momentum_buffer"], again["state"][key]["momentum_buffer"])
    # As in DARTS, BatchNorm sees the three passes over the training batch, but not the
    # validation batch, which goes through a copy of the network there.
    seen = copy.deepcopy(toy)
    seen.load_state_dict(before)
    assert after["norm.num_batches_tracked"] == before["norm.num_batches_tracked"] + 3
    seen(train[0])
    for _ in range(2):
        seen(train[0])
    torch.testing.assert_close(
        after["norm.running_mean"], seen.norm.running_mean, rtol=0.05, atol=0.02
    )


def test_second_order_asks_for_each_gradient_only_where_needed(
    toy: Toy, architect: Architect
) -> None:
    architect.second_order(
        batch(1), batch(2), regularizer(toy), torch.optim.SGD(toy.weights(), **SGD)
    )
    assert toy.flags == [
        ({False}, {True}),  # the unrolled step
        ({True}, {True}),  # the validation loss after it
        ({True}, {False}),  # the two sides of the finite difference
        ({True}, {False}),
    ]


def test_only_gradients_of_restores_flags_after_an_error() -> None:
    a, b = torch.zeros(1, requires_grad=True), torch.zeros(1)
    with contextlib.suppress(KeyError), only_gradients_of([b], [a]):
        assert (a.requires_grad, b.requires_grad) == (False, True)
        raise KeyError
    assert (a.requires_grad, b.requires_grad) == (True, False)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_loss_is_taken_in_float32_at_least(dtype: torch.dtype) -> None:
    scores, labels = torch.randn(4, 3).to(dtype), torch.tensor([0, 1, 2, 0])
    loss = architect_module.classification_loss(scores, labels)
    assert loss.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    exact = F.cross_entropy(scores.double(), labels)
    torch.testing.assert_close(loss.double(), exact, rtol=1e-6, atol=0)

"""compat="daas", step by step, against the authors' loop written anew in plain PyTorch."""

import math

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from da2s_fast.search import SearchSession
from da2s_fast.search.architect import Batch
from tests.nn import reference
from tests.search.conftest import MakeSession

COUNTS = (3, 4, 5)
"""Edges of the nodes that have betas: the authors' first node has none."""


class AuthorsSearch:
    """Their loop, with its quirks; starts from the state of a session.

    Reduction cells get the normal cell's betas and vice versa. Adam runs over alpha from the
    first epoch on, at learning rate 0 until epoch 8. T = 50 and 8 are constants.
    """

    def __init__(self, session: SearchSession) -> None:
        settings = session.settings
        self.network = reference.Network(
            settings.channels, 10, settings.cells, settings.operations, C_in=1
        ).double()
        self.network.load_state_dict(session.network.state_dict())
        state = session.architecture.state_dict()
        self.alphas = {k: state[f"alpha.{k}"].requires_grad_() for k in ("normal", "reduce")}
        self.betas = {
            kind: [b.clone().requires_grad_() for b in state[f"beta.{kind}"][2:].split(COUNTS)]
            for kind in ("normal", "reduce")
        }
        self.rate = settings.arch_learning_rate
        self.adam = torch.optim.Adam(
            [
                {"params": list(self.alphas.values()), "lr": 0.0},
                {"params": self.betas["normal"] + self.betas["reduce"], "lr": self.rate},
            ],
            betas=(0.5, 0.999),
            weight_decay=1e-3,
        )
        self.sgd = torch.optim.SGD(
            self.network.parameters(), lr=0.025, momentum=0.9, weight_decay=3e-4
        )

    def mixtures(self) -> dict[str, tuple[Tensor, Tensor]]:
        def weighted(betas: list[Tensor]) -> Tensor:
            nodes = [len(b) * F.softmax(b.clamp(max=1), 0) for b in betas]
            return torch.cat([torch.ones(2, dtype=torch.float64), *nodes])

        p = {kind: F.softmax(reference.strong(a), 1) for kind, a in self.alphas.items()}
        return {
            "normal": (p["normal"], weighted(self.betas["reduce"])),
            "reduce": (p["reduce"], weighted(self.betas["normal"])),
        }

    def loss(self, batch: Batch, epoch: int) -> Tensor:
        def entropy(logits: Tensor) -> Tensor:
            log_p = F.log_softmax(logits, -1)
            return -(log_p.exp() * log_p).sum()

        operations = sum(entropy(reference.strong(alpha)) for alpha in self.alphas.values())
        edges: Tensor | float = 0.0
        for beta in self.betas["normal"] + self.betas["reduce"]:
            strength = beta.clamp(max=1)
            edges = edges + 0.2 * (strength[strength > 0].sum() - 2) ** 2 + entropy(strength)
        linear = (epoch - 1) / 49
        log = 0.0 if epoch < 8 else math.log(epoch - 8 + 1) / math.log(50 - 8)
        scores = self.network(batch[0], self.mixtures())
        return F.cross_entropy(scores, batch[1]) + 0.1 * linear * (log * operations + 4 * edges)

    def step(self, epoch: int, train: Batch, valid: Batch) -> None:
        if epoch >= 8:
            self.adam.param_groups[0]["lr"] = self.rate
        self.sgd.param_groups[0]["lr"] = (
            0.001 + 0.024 * (1 + math.cos(math.pi * (epoch - 1) / 50)) / 2
        )
        self.adam.zero_grad(set_to_none=False)
        self.loss(valid, epoch).backward()
        self.adam.step()
        self.sgd.zero_grad()
        self.loss(train, epoch).backward()
        nn.utils.clip_grad_norm_(self.network.parameters(), 5)
        self.sgd.step()


def in_double(session: SearchSession) -> SearchSession:
    session.network.double()
    return session


def next_batches(session: SearchSession) -> tuple[Batch, Batch]:
    loaders = (session.weight_loader, session.arch_loader)
    (x, y), (u, v) = (loader.next_batch() for loader in loaders)
    return (x.double(), y), (u.double(), v)


def assert_same(session: SearchSession, authors: AuthorsSearch) -> None:
    ours, theirs = session.network.state_dict(), authors.network.state_dict()
    for name, value in theirs.items():
        torch.testing.assert_close(ours[name], value, rtol=1e-9, atol=1e-9, msg=name)
    for kind, alpha in authors.alphas.items():
        mine = session.architecture.alphas[kind]
        torch.testing.assert_close(mine, alpha, rtol=1e-9, atol=1e-9)
        beta = torch.cat(authors.betas[kind])
        mine = session.architecture.betas[kind][2:]
        torch.testing.assert_close(mine, beta, rtol=1e-9, atol=1e-9)


COMPAT = {
    "compat": "daas",
    "nodes": 4,
    "epochs": 50,
    "warmup": 8,
    "learning_rate": 0.025,
    "learning_rate_min": 0.001,
    "operations": ["max_pool_3x3", "skip_connect", "dil_conv_3x3"],
}


def test_equals_the_authors_step_by_step(make_session: MakeSession) -> None:
    """Around the warm-up, in the middle and in the last epoch, where their log exceeds 1."""
    session = in_double(make_session(**COMPAT, arch_learning_rate=0.05))
    authors = AuthorsSearch(session)
    frozen = session.architecture.state_dict()
    for epoch in (1, 2, 6, 7, 8, 9, 10, 30, 49, 50):
        session.begin_epoch(epoch)
        for _ in range(2):
            train, valid = next_batches(session)
            session.arch_step(train, valid)
            session.weight_step(train)
            authors.step(epoch, train, valid)
            assert_same(session, authors)
        state = session.architecture.state_dict()
        assert torch.equal(state["alpha.normal"], frozen["alpha.normal"]) is (epoch < 8)
        assert not torch.equal(state["beta.normal"], frozen["beta.normal"])


def test_constants_do_not_follow_the_settings(make_session: MakeSession) -> None:
    """A run of 20 epochs still counts towards 50."""
    session = in_double(make_session(**COMPAT | {"epochs": 20}))
    authors = AuthorsSearch(session)
    for epoch in (5, 12, 20):
        session.begin_epoch(epoch)
        log = 0.0 if epoch < 8 else math.log(epoch - 7, 42)
        expected = (0.1 * (epoch - 1) / 49 * log, 0.1 * (epoch - 1) / 49 * 4)
        assert session.loss_weights() == pytest.approx(expected)
        train, valid = next_batches(session)
        loss = session.arch_step(train, valid)
        theirs = authors.loss(valid, epoch)
        assert loss.item() == pytest.approx(theirs.item(), rel=1e-9)
        authors = AuthorsSearch(session)


def test_loss_stays_finite_where_the_authors_gave_nan(make_session: MakeSession) -> None:
    """At alpha = -3 the probability rounds to 0 in float32, and p log p is NaN."""
    session = make_session(**COMPAT)
    session.begin_epoch(50)
    with torch.no_grad():
        session.architecture.alphas["normal"][0, 0] = -3
        p = session.architecture.operation_weights("normal")
    assert (p * p.log()).isnan().any()
    loss = session.arch_step(session.weight_loader.next_batch(), session.arch_loader.next_batch())
    assert loss.isfinite()
    assert all(p.isfinite().all() for p in session.network.arch_parameters())


def test_adam_remembers_the_warmup_only_under_compat(make_session: MakeSession) -> None:
    for compat in ("daas", None):
        session = make_session(**COMPAT | {"compat": compat})
        session.begin_epoch(3)
        session.arch_step(session.weight_loader.next_batch(), session.arch_loader.next_batch())
        alpha = session.architecture.alphas["normal"]
        assert ("exp_avg" in session.arch_optimizer.state[alpha]) is (compat == "daas")


def test_validation_batches_are_drawn_anew_at_every_step(make_session: MakeSession) -> None:
    """As by next(iter(loader)): images come back before all have been seen."""

    def distinct(compat: str | None) -> int:
        loader = make_session(**COMPAT | {"compat": compat}).arch_loader
        loader._augmentation = None  # the same image must look the same
        batches = [loader.next_batch()[0] for _ in range(loader.steps_per_epoch)]
        images = torch.cat(batches).flatten(1)
        assert all(len(batch.flatten(1).unique(dim=0)) == len(batch) for batch in batches)
        return len(images) - len(images.unique(dim=0))

    assert distinct(None) == 0
    assert distinct("daas") > 10


def test_genotype_is_not_swapped(make_session: MakeSession) -> None:
    """The network is weighed by the other kind's betas, but cut by its own."""
    session = make_session(**COMPAT)
    normal, reduce = (session.architecture.betas[kind] for kind in ("normal", "reduce"))
    with torch.no_grad():
        normal.copy_(torch.linspace(1, 0, 14))
        reduce.copy_(torch.linspace(0, 1, 14))
    cut = session.discretize().genotype
    assert [edge.source for edge in cut.normal.edges] == [0, 1] * 4
    assert [edge.source for edge in cut.reduce.edges] == [0, 1, 1, 2, 2, 3, 3, 4]
    g = session.architecture.edge_weights("normal")[2:5]
    torch.testing.assert_close(g, 3 * reduce[2:5].detach().softmax(0))

"""The whole cell in stages, forward and backward by hand: its kernels explained.

Plain PyTorch, whole batch at a time; every formula is the one the kernels compute, and every
barrier stands where theirs stand (see `bundle`). What kernels do per image or per tile between two
barriers is one PyTorch call after the other here.

    preprocess the inputs                                     | barrier: their statistics
    for each state in order:
        a node first sums its edges, one affine pass: h = sum_e g_e sum_o p_eo (z_eo - mean) rstd
        then both forward stages of the state's bundle        | a barrier behind each
    the output is the last nodes, concatenated

Backward goes through the states in reverse: a node's gradient is complete when the bundles of all
later states are done. Architecture gradients cost nothing extra: BatchNorm's backward needs
S2 = sum G zhat of every candidate anyway, and dL/d(g_e p_eo) = sum_c S2.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from da2s_fast.ops.cell import bundle as bundles
from da2s_fast.ops.cell.bundle import Bundle, Norms, known
from da2s_fast.ops.cell.bundle_backward import BundleBackward
from da2s_fast.ops.cell.convolutions import (
    factorized_reduce,
    factorized_reduce_backward,
    pointwise,
    pointwise_backward,
    relu_backward,
)
from da2s_fast.ops.cell.norm import (
    EPS,
    Statistics,
    batch_statistics,
    gradient_sums,
    input_gradient,
    normalized,
)
from da2s_fast.ops.cell.plan import CellPlan

Memory = Literal["save", "recompute"]
"""save: keep every z for the backward pass. recompute: keep the nodes and the statistics, compute
the states of the inputs again, and each bundle's z when its backward comes."""


@dataclass
class Saved:
    """What the backward pass needs of the forward pass."""

    inputs: Sequence[Tensor]
    nodes: list[Tensor]
    norms: Norms
    preprocessed: dict[int, Tensor] | None = None
    bundles: dict[int, Bundle] | None = None


class Parameters(NamedTuple):
    """What a cell learns, or the gradients of it."""

    weights: Sequence[Tensor]
    """In the order of the modules' parameters."""
    p: Tensor
    """(edges, operations)."""
    g: Tensor
    """(edges,)."""


def forward(
    plan: CellPlan,
    inputs: Sequence[Tensor],
    parameters: Parameters,
    *,
    running: Sequence[Statistics | None] | None = None,
    memory: Memory = "save",
    eps: float = EPS,
) -> tuple[Tensor, Norms, Saved]:
    """Output, (N, output nodes * C, H', W'), statistics by norm slot, and what backward needs.

    Statistics of operations that are not active are None.

    Args:
        plan: the cell.
        inputs: outputs of the last cell but one and of the last cell; one input for plans of one.
        parameters: weights, p and g.
        running: statistics to normalize with (evaluation) by norm slot; where there are none,
            the batch's own.
        memory: see `Memory`.
        eps: of the norms.
    """
    weights = parameters.weights
    norms: Norms = list(running) if running is not None else [None] * len(plan.norm_channels)
    preprocessed = _preprocessed(plan, inputs, weights)
    for position, z in preprocessed.items():
        slot = plan.preprocess_norms[position]
        norms[slot] = norms[slot] or batch_statistics(z, eps)
    states = _input_states(plan, inputs, preprocessed, norms)
    done: dict[int, Bundle] = {}
    for state in plan.states:
        if state >= plan.inputs:
            states.append(_node(plan, state, states[0], done, norms, parameters))
        if plan.bundle(state):
            done[state] = bundles.forward(plan, state, states[state], weights, norms, eps)
    output = torch.cat(states[-plan.outputs :], 1)
    saved = Saved(inputs, states[plan.inputs :], norms)
    if memory == "save":
        saved.preprocessed, saved.bundles = preprocessed, done
    return output, norms, saved


def backward(
    plan: CellPlan, gradient: Tensor, parameters: Parameters, saved: Saved
) -> tuple[list[Tensor], Parameters]:
    """Gradients of the inputs and of the parameters from that of the output."""
    weights, p, g = parameters
    scale = {
        (edge.row, operation): g[edge.row] * p[edge.row, column]
        for edge in plan.edges
        for column, operation in enumerate(plan.operations)
    }
    outputs = plan.states[-plan.outputs :]
    parts = dict(zip(outputs, gradient.split(plan.channels, 1), strict=True))
    preprocessed = saved.preprocessed
    if preprocessed is None:
        preprocessed = _preprocessed(plan, saved.inputs, weights)
    states = [*_input_states(plan, saved.inputs, preprocessed, saved.norms), *saved.nodes]
    node_gradients: dict[int, Tensor] = {}
    input_gradients: dict[int, Tensor] = {}
    found: dict[int, Tensor] = {}
    grad_p, grad_g = torch.zeros_like(p), torch.zeros_like(g)
    for state in reversed(plan.states):
        total = parts.get(state, torch.zeros_like(states[state]))
        if plan.bundle(state):
            # Recompute: the bundle's forward stages once more, with the statistics known.
            bundle = (
                saved.bundles[state]
                if saved.bundles is not None
                else bundles.forward(plan, state, states[state], weights, saved.norms)
            )
            step = BundleBackward(plan, bundle, weights, saved.norms)
            step.run(scale, g, node_gradients)
            total = total + step.state
            found |= step.weight_gradients
            for (row, operation), product in step.products.items():
                column = plan.operations.index(operation)
                grad_p[row, column] = g[row] * product
                grad_g[row] += p[row, column] * product
            for row, product in step.bypassed.items():
                grad_g[row] += product
        if state >= plan.inputs:
            node_gradients[state] = total
        elif plan.preprocess[state] == "identity":
            input_gradients[state] = total
        else:
            input_gradients[state], grads = _preprocess_backward(
                plan, state, total, preprocessed[state], saved, weights
            )
            found |= grads
    return (
        [input_gradients[position] for position in range(plan.inputs)],
        Parameters(
            # Weights of operations that are not active have no part in the output.
            [found.get(i, torch.zeros_like(weight)) for i, weight in enumerate(weights)],
            grad_p,
            grad_g,
        ),
    )


def _preprocessed(
    plan: CellPlan, inputs: Sequence[Tensor], weights: Sequence[Tensor]
) -> dict[int, Tensor]:
    """By input, z of those that are preprocessed."""
    return {i: _preprocess(plan, i, inputs[i], weights) for i in plan.preprocess_norms}


def _input_states(
    plan: CellPlan, inputs: Sequence[Tensor], preprocessed: dict[int, Tensor], norms: Norms
) -> list[Tensor]:
    states = list(inputs)
    for position, z in preprocessed.items():
        states[position] = normalized(z, known(norms, plan.preprocess_norms[position]))
    return states


def _preprocess(plan: CellPlan, position: int, x: Tensor, weights: Sequence[Tensor]) -> Tensor:
    first, *second = weights[plan.preprocess_weights(position)]
    relu = x.relu()
    return factorized_reduce(relu, first, *second) if second else pointwise(relu, first)


def _preprocess_backward(  # noqa: PLR0917 - the cell and the input, then the tensors
    plan: CellPlan,
    position: int,
    gradient: Tensor,
    z: Tensor,
    saved: Saved,
    weights: Sequence[Tensor],
) -> tuple[Tensor, dict[int, Tensor]]:
    """dL/dinput and dL/dweights; a barrier lies between the sums and the rest."""
    x = saved.inputs[position]
    statistics = known(saved.norms, plan.preprocess_norms[position])
    dz = input_gradient(gradient, z, statistics, gradient_sums(gradient, z, statistics))
    slot = plan.preprocess_weights(position)
    first, *second = weights[slot]
    if second:
        grad, *found = factorized_reduce_backward(dz, x.relu(), first, *second)
    else:
        grad, *found = pointwise_backward(dz, x.relu(), first)
    return relu_backward(grad, x), dict(zip(range(slot.start, slot.stop), found, strict=True))


def _node(  # noqa: PLR0917 - the cell, then the tensors
    plan: CellPlan,
    state: int,
    first: Tensor,
    done: dict[int, Bundle],
    norms: Norms,
    parameters: Parameters,
) -> Tensor:
    """One pass over the z of all entering edges: h = sum a z + b per channel."""
    _, p, g = parameters
    mixed: list[Tensor] = []
    rest: list[Tensor] = []
    for edge in plan.entering(state):
        bundle = done[edge.source]
        for operation in plan.candidates(edge):
            z = bundle.z[edge.row, operation]
            column = plan.operations.index(operation)
            slot = plan.norm_slots[edge.row, operation]
            if slot.start < slot.stop:
                z = normalized(z, known(norms, slot.stop - 1))
            mixed.append(g[edge.row] * p[edge.row, column] * z)
        if bundle.bypassed is not None:
            rest.append(g[edge.row] * bundle.bypassed[0])
    if not mixed:
        stride = 2 if plan.reduction else 1
        return torch.zeros_like(first[:, :, ::stride, ::stride])
    total = reduce(torch.add, mixed)
    if not rest:
        return total
    groups = plan.partial_channels
    # The shuffle: channel j * (C/K) + c of [mixed, rest] moves to c * K + j.
    both = torch.cat([total, reduce(torch.add, rest)], 1)
    return both.unflatten(1, (groups, -1)).transpose(1, 2).flatten(1, 2)

"""The operator `cell_backward` on GPUs, launch by launch.

    the output's gradient to its nodes
    for each node in reverse:
        recompute only: its first and second layers
        sums of its candidates                                | barrier: dL/dp, norms' coefficients
        second layers of separable convolutions, down to their depthwise ones
        those, down to the inner norms                        | barrier: their coefficients
        first layers and pools, down to their depthwise ones
        the gradients of the states that its edges leave
    for the inputs: sums of their norms                       | barrier
        norm, convolution, ReLU
    gradients of weights, p and g from the chunks' sums

The reference goes bundle by bundle, from the states' side; here it is node by node: all edges that
enter a node share its gradient, and the gradient of a state is collected node by node. The sums are
the same.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from da2s_fast.kernels.cell import finish, prepare_backward, pull, reach, sums
from da2s_fast.kernels.launch import launch
from da2s_fast.ops.cell.operations import CONVS, DENSE
from da2s_fast.ops.cell.operator import layout as memory_format
from da2s_fast.ops.cell.triton import layout as sizes_of
from da2s_fast.ops.cell.triton.forward import Call, block_of, cdiv, layers
from da2s_fast.ops.cell.triton.layout import layout_of
from da2s_fast.ops.cell.triton.tables import Round, Rows, tables_of

_ADDED = 256  # numbers that a program adds up over the chunks


def cell_backward(  # noqa: PLR0917 - the schema's arguments
    grad: Tensor,
    inputs: list[Tensor],
    p: Tensor,
    g: Tensor | None,
    weights: list[Tensor],
    statistics: Tensor,
    saved: Tensor,
    frozen: list[int],
    plan: list[int],
    eps: float,
    save: bool,
    mask: list[bool],
) -> tuple[list[Tensor], Tensor, Tensor, Tensor]:
    """Gradients of the inputs, p, g and, flat, the weights; empty where not asked for."""
    x = inputs[-1]
    key = tuple(plan), x.shape[0], tuple(tuple(y.shape[1:]) for y in inputs), save
    layout = layout_of(*key)
    call = Call(
        layout,
        tables_of(*key, tuple(frozen), True, x.device),
        inputs,
        p,
        g,
        saved,
        saved[layout.states_start :],
        saved[layout.z_start :] if save else saved.new_empty((layout.z_size,)),
        saved.new_empty((0,), dtype=torch.float64),
        statistics,
        eps,
        known=True,
    )
    return _Backward(call, save, mask).run(grad, weights)


class _Backward:
    """One backward pass.

    Args:
        call: as the forward pass had it.
        save: whether z is there.
        mask: one per input, then p, g, weights: what is asked for.
    """

    def __init__(self, call: Call, save: bool, mask: Sequence[bool]) -> None:
        self.call, self.save = call, save
        *self.for_inputs, self.for_p, self.for_g, self.for_weights = mask
        layout, states = call.layout, call.states
        self.gradients = states.new_empty((layout.gradients_size,))
        self.sums = states.new_empty((layout.sums_size,), dtype=torch.float64)
        numbers = layout.weights[-1] * self.for_weights
        self.weight_gradients = states.new_empty((layout.chunks * numbers,))
        if layout.plan.active is not None:
            # Nobody writes the gradients of what does not run.
            self.weight_gradients.zero_()

    def run(
        self, grad: Tensor, weights: Sequence[Tensor]
    ) -> tuple[list[Tensor], Tensor, Tensor, Tensor]:
        """All launches."""
        call, plan = self.call, self.call.layout.plan
        self._begin(grad)
        for step in reversed(call.tables.rounds):
            if not step.mixed.length:
                continue
            if not self.save:
                layers(call, step)
            self._candidate_sums(step)
            self._pull(step, step.second, second=True)
            self._reach_inner(step)
            self._pull(step, step.pulled, second=False)
            self._reach_states(step)
        found = self._inputs()
        grad_p = call.p.new_empty(call.p.shape if self.for_p else (0,))
        for_g = self.for_g and call.g is not None
        grad_g = (call.p if call.g is None else call.g).new_empty(
            (len(plan.edges) if for_g else 0,)
        )
        if self.for_p or for_g:
            self._mixture(grad_p if self.for_p else None, grad_g if for_g else None)
        flat = (weights[0] if weights else call.p).new_empty(
            (call.layout.weights[-1] * self.for_weights,)
        )
        if flat.numel():
            launch(
                finish.add_chunks,
                (cdiv(flat.numel(), _ADDED),),
                partial=self.weight_gradients,
                to=flat,
                numbers=flat.numel(),
                CHUNKS=call.layout.chunks,
                BLOCK=_ADDED,
            )
        return found, grad_p, grad_g, flat

    def _begin(self, grad: Tensor) -> None:
        call, plan = self.call, self.call.layout.plan
        block = block_of(plan.channels)
        layout = call.layout
        height, width = layout.after
        launch(
            reach.begin,
            (self._state_tiles(), len(plan.states), cdiv(plan.channels, block)),
            table=call.tables.states.table,
            gradient=grad,
            gradient_strides=grad.stride(),
            gradients=self.gradients,
            first_output=len(plan.states) - plan.outputs,
            node_states=layout.states[plan.inputs],
            in_pixels=layout.pixels(0),
            node_pixels=layout.pixels(plan.inputs),
            height=height,
            width=width,
            channels=plan.channels,
            SHUFFLED=plan.partial_channels,
            PIXELS=sizes_of.PIXELS,
            BLOCK=block,
        )

    def _state_tiles(self) -> int:
        return cdiv(self.call.layout.pixels(0), sizes_of.PIXELS)

    def _candidate_sums(self, step: Round) -> None:
        call, plan = self.call, self.call.layout.plan
        block = block_of(plan.mixed_channels)
        launch(
            sums.candidate_sums,
            (call.layout.chunks, step.mixed.length, cdiv(plan.mixed_channels, block)),
            table=step.mixed.table,
            states=call.states,
            z=call.z,
            gradients=self.gradients,
            statistics=call.statistics,
            sums=self.sums,
            channels=plan.mixed_channels,
            SHUFFLED=plan.partial_channels,
            HALVES=call.layout.halves,
            PIXELS=sizes_of.PIXELS,
            BLOCK=block,
            **call.area(step.node),
        )

    def _pull(self, step: Round, own: Rows, second: bool) -> None:
        if not own.length:
            return
        call, plan = self.call, self.call.layout.plan
        options = call.products(plan.mixed_channels)
        blocks = cdiv(plan.mixed_channels, options["BLOCK"])
        # One program where only what was reached is wanted, one for each part of the weights else.
        dense = max((DENSE[name] ** 2 for name in plan.operations if name in DENSE), default=1)
        parts = dense * blocks if self.for_weights else 1
        if not self.for_weights and dense:
            parts = blocks  # dense layers write block by block of the outputs
        launch(
            pull.pull,
            (call.layout.chunks, own.length, parts * blocks),
            table=own.table,
            source=call.z if second else call.states,
            z=call.z,
            gradients=self.gradients,
            weights=call.weights,
            weight_gradients=self.weight_gradients,
            p_weights=call.p,
            g_weights=call.g,
            operations=len(plan.operations),
            statistics=call.statistics,
            sums=self.sums,
            channels=plan.mixed_channels,
            pitch=plan.mixed_channels if second else plan.channels,
            weight_count=call.layout.weights[-1],
            SHUFFLED=plan.partial_channels,
            HALVES=call.layout.halves,
            SECOND=second,
            WEIGHTS=self.for_weights,
            EPS=call.eps,
            CHUNKS=call.layout.chunks,
            TAPS=_power_of_two(
                [CONVS[name].kernel ** 2 for name in plan.operations if name in CONVS]
            ),
            **call.area(step.node),
            **options,
        )

    def _reach_inner(self, step: Round) -> None:
        if not step.second.length:
            return
        call, plan = self.call, self.call.layout.plan
        block = block_of(plan.mixed_channels)
        launch(
            reach.reach_inner,
            (call.layout.chunks, step.second.length, cdiv(plan.mixed_channels, block)),
            table=step.second.table,
            z=call.z,
            gradients=self.gradients,
            weights=call.weights,
            statistics=call.statistics,
            sums=self.sums,
            channels=plan.mixed_channels,
            EPS=call.eps,
            PIXELS=sizes_of.PIXELS,
            BLOCK=block,
            **call.area(step.node),
        )

    def _reach_states(self, step: Round) -> None:
        call, plan, layout = self.call, self.call.layout.plan, self.call.layout
        options = call.products(plan.mixed_channels)
        in_height, in_width = layout.before
        height, width = layout.after
        launch(
            reach.reach_states,
            (
                self._state_tiles(),
                step.groups.length,
                cdiv(plan.mixed_channels, options["BLOCK"]),
            ),
            table=step.groups.table,
            layers=step.reaching.table,
            states=call.states,
            z=call.z,
            gradients=self.gradients,
            weights=call.weights,
            p_weights=call.p,
            g_weights=call.g,
            operations=len(plan.operations),
            in_pixels=layout.pixels(0),
            node_pixels=layout.pixels(plan.inputs),
            node_states=layout.states[plan.inputs],
            in_height=in_height,
            in_width=in_width,
            height=height,
            width=width,
            channels=plan.mixed_channels,
            SHUFFLED=plan.partial_channels,
            HALVES=layout.halves,
            **options,
        )

    def _inputs(self) -> list[Tensor]:
        """Gradients of the inputs, and of the preprocessing's weights."""
        call, plan, layout = self.call, self.call.layout.plan, self.call.layout
        tables = call.tables
        options = call.products(plan.channels)
        common = {
            "states": call.states,
            "gradients": self.gradients,
            "statistics": call.statistics,
            "sums": self.sums,
            "channels": plan.channels,
        }
        normalized = list(plan.preprocess_norms)
        if normalized and (self.for_weights or any(self.for_inputs[i] for i in normalized)):
            launch(
                sums.state_sums,
                (layout.chunks, tables.inputs.length, cdiv(plan.channels, options["BLOCK"])),
                table=tables.inputs.table,
                states=call.states,
                gradients=self.gradients,
                sums=self.sums,
                pixels=layout.pixels(0),
                channels=plan.channels,
                tiles_per_chunk=layout.tiles_per_chunk(layout.pixels(0)),
                PIXELS=options["PIXELS"],
                BLOCK=options["BLOCK"],
            )
        if self.for_weights and tables.parts.length:
            in_blocks = cdiv(max(size[0] for size in layout.sizes), options["BLOCK"])
            blocks = cdiv(plan.channels, options["BLOCK"])
            launch(
                prepare_backward.pull_inputs,
                (layout.chunks, tables.parts.length, in_blocks * blocks),
                table=tables.parts.table,
                inputs=tuple(call.inputs),
                strides=call.strides,
                sizes=call.sizes,
                weight_gradients=self.weight_gradients,
                weight_count=layout.weights[-1],
                in_blocks=in_blocks,
                EPS=call.eps,
                CHUNKS=layout.chunks,
                **call.area(0),
                **common,
                **options,
            )
        found = []
        first = 0
        height, width = layout.before
        for position, x in enumerate(call.inputs):
            parts = {"identity": 0, "conv": 1, "reduce": 2}[plan.preprocess[position]]
            if not self.for_inputs[position]:
                found.append(x.new_empty((0,)))
                first += parts
                continue
            to = torch.empty_like(x, memory_format=memory_format(x))
            pixels = x.shape[0] * x.shape[2] * x.shape[3]
            launch(
                prepare_backward.reach_input,
                (cdiv(pixels, options["PIXELS"]), cdiv(x.shape[1], options["BLOCK"])),
                table=tables.parts.table,
                first=first,
                parts=parts,
                x=x,
                x_strides=x.stride(),
                x_size=tuple(x.shape[2:]),
                to=to,
                to_strides=to.stride(),
                cin=x.shape[1],
                weights=call.weights,
                state_gradient=layout.gradients[position],
                x_pixels=pixels,
                pixels=layout.pixels(0),
                height=height,
                width=width,
                EPS=call.eps,
                CHUNKS=layout.chunks,
                **common,
                **options,
            )
            first += parts
            found.append(to)
        return found

    def _mixture(self, grad_p: Tensor | None, grad_g: Tensor | None) -> None:
        call, plan = self.call, self.call.layout.plan
        launch(
            finish.mixture_gradients,
            (len(plan.edges),),
            table=call.tables.candidates.table,
            rows=call.tables.candidates.length,
            p_weights=call.p,
            g_weights=call.g,
            operations=len(plan.operations),
            statistics=call.statistics,
            sums=self.sums,
            to_p=grad_p,
            to_g=grad_g,
            channels=plan.mixed_channels,
            EPS=call.eps,
            CHUNKS=call.layout.chunks,
            BLOCK=block_of(plan.mixed_channels),
            OPERATIONS=_power_of_two([len(plan.operations)]),
        )


def _power_of_two(numbers: Sequence[int]) -> int:
    """The least power of two that is no less than all numbers."""
    return 1 << (max([1, *numbers]) - 1).bit_length()

"""The operator `cell_backward` on GPUs, launch by launch.

    recompute only: the last node's first and second layers
    the output's gradient to its nodes; sums of the last node's candidates
                                                              | barrier: norms' coefficients
    for each node in reverse:
        second layers of separable convolutions, down to the inner norms
                                                              | barrier: their coefficients
        first layers, pools and skips, down to the gradients of the states before the node, one of
        which is complete then: sums of its candidates        | barrier: norms' coefficients
        (recompute: the layers and the sums of the next node in launches of their own)
    for the inputs: norm, convolution, ReLU
    gradients of weights, p and g from the chunks' sums

The reference goes bundle by bundle, from the states' side; here it is node by node: all edges that
enter a node share its gradient, and the gradient of a state is collected node by node. The sums are
the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from da2s_fast.kernels.cell import finish, prepare_backward, reach, sums
from da2s_fast.kernels.launch import launch
from da2s_fast.ops._layout import memory_format_of
from da2s_fast.ops._triton import launched_as
from da2s_fast.ops.cell.operations import CONVS, DENSE
from da2s_fast.ops.cell.triton import compiled
from da2s_fast.ops.cell.triton.forward import Call, cdiv, layers
from da2s_fast.ops.cell.triton.layout import ENOUGH_PROGRAMS, block_of, layout_of
from da2s_fast.ops.cell.triton.tables import Packs, Round, Rows, tables_of

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
        tf32=saved.numel() > layout.saved_size,
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
        self.call = call
        *self.for_inputs, self.for_p, self.for_g, self.for_weights = mask
        plan, layout, states = call.layout.plan, call.layout, call.states
        self.options = call.products(plan.mixed_channels)
        self.blocks = cdiv(plan.mixed_channels, self.options["BLOCK"])
        self.again = not save
        self.gradients = states.new_empty((layout.gradients_size,))
        self.sums = states.new_empty((layout.sums_size,), dtype=torch.float64)
        self.weight_count = layout.weights[-1]
        numbers = layout.image_chunks * self.weight_count * self.for_weights
        self.weight_gradients = states.new_empty((numbers,))
        if plan.idle:
            # Nobody writes the gradients of what does not run.
            self.weight_gradients.zero_()

    def run(
        self, grad: Tensor, weights: Sequence[Tensor]
    ) -> tuple[list[Tensor], Tensor, Tensor, Tensor]:
        """All launches."""
        call = self.call
        rounds = call.tables.rounds[::-1]
        if self.again:
            layers(call, rounds[0])
        self._begin(grad, rounds[0])
        for step, following in zip(rounds, [*rounds[1:], None], strict=True):
            self._reach_inner(step)
            self._reach_states(step)
            if following is None:
                continue
            if self.again:
                layers(call, following)
            self._sums(following.mixed)
        self._sums(call.tables.normalized, inputs=True)
        found = self._leave()
        grad_p = call.p.new_empty(call.p.shape if self.for_p else (0,))
        for_g = self.for_g and call.g is not None
        grad_g = (call.p if call.g is None else call.g).new_empty(
            (len(call.layout.plan.edges) if for_g else 0,)
        )
        flat = (weights[0] if weights else call.p).new_empty(
            (self.weight_count * self.for_weights,)
        )
        self._finish(
            grad_p if self.for_p else None,
            grad_g if for_g else None,
            flat if flat.numel() else None,
        )
        return found, grad_p, grad_g, flat

    def _launched(self, kernel: str, numbers: int | None = None) -> dict[str, Any]:
        """How a kernel is launched."""
        return launched_as(kernel, self.call.states.device, numbers)

    def _area(self) -> dict[str, Any]:
        """What all launches over chunks of images are told, by kernel parameter."""
        call, layout = self.call, self.call.layout
        height, width = layout.after
        return {
            "z": call.z,
            "gradients": self.gradients,
            "statistics": call.statistics,
            "sums": self.sums,
            "pixels": layout.pixels(layout.plan.inputs),
            "height": height,
            "width": width,
            "channels": layout.plan.mixed_channels,
            "images": layout.images,
            "SHUFFLED": layout.plan.partial_channels,
            "PIXELS": self.options["PIXELS"],
            "BLOCK": self.options["BLOCK"],
        }

    def _begin(self, grad: Tensor, last: Round) -> None:
        call, plan, layout = self.call, self.call.layout.plan, self.call.layout
        states = call.tables.states
        in_height, in_width = layout.before
        launch(
            sums.begin,
            (layout.image_chunks, states.length + last.mixed.length, self.blocks),
            **self._launched("begin"),
            table=states.table,
            groups=states.length,
            rows=last.mixed.table,
            gradient=grad,
            gradient_strides=grad.stride(),
            states=call.states,
            first_output=len(plan.states) - plan.outputs,
            node_states=layout.states[plan.inputs],
            in_pixels=layout.pixels(0),
            in_size=in_height * in_width,
            HALVES=layout.halves,
            **self._area(),
        )

    def _sums(self, rows: Rows, inputs: bool = False) -> None:
        if not rows.length:
            return
        call, layout = self.call, self.call.layout
        in_height, in_width = layout.before
        launch(
            sums.candidate_sums,
            (layout.image_chunks, rows.length, self.blocks),
            **self._launched("candidate_sums"),
            table=rows.table,
            states=call.states,
            in_pixels=layout.pixels(0),
            in_size=in_height * in_width,
            INPUTS=inputs,
            HALVES=layout.halves,
            **self._area(),
        )

    def _products(self) -> dict[str, Any]:
        """What launches that go through products are told besides, by kernel parameter."""
        call, plan = self.call, self.call.layout.plan
        return {
            **self._area(),
            **self.options,
            "weights": call.weights,
            "weight_gradients": self.weight_gradients,
            "weight_count": self.weight_count,
            "p_weights": call.p,
            "g_weights": call.g,
            "operations": len(plan.operations),
            "SEVERAL": self.blocks > 1,
            "WEIGHTS": self.for_weights,
            "EPS": call.eps,
            "CHUNKS": call.layout.image_chunks,
            "TAPS": _power_of_two(
                [CONVS[name].kernel ** 2 for name in plan.operations if name in CONVS]
            ),
        }

    @property
    def _numbers(self) -> int:
        """Of a tile."""
        return self.options["PIXELS"] * self.options["BLOCK"]

    def _parts(self, taps: int) -> int:
        """Programs of a chunk and a layer: one for each part of the weights, if they are wanted."""
        return self.blocks * (self.blocks * taps if self.for_weights else 1)

    def _reach_inner(self, step: Round) -> None:
        if not step.second.length:
            return
        call = self.call
        reason = compiled.reach_reason(call.layout, step.second_packs, call.p, call.g, call.z.dtype)
        if reason is None:
            self._reach_inner_compiled(step)
            return
        launch(
            reach.reach_inner,
            (self.call.layout.image_chunks, step.second.length, self._parts(1)),
            **self._launched("reach_inner", self._numbers),
            table=step.second.table,
            **self._products(),
        )

    def _reach_inner_compiled(self, step: Round) -> None:
        """What `reach_inner` computes, by the kernel of csrc/cuda."""
        launch(
            compiled.REACH_INNER,
            (self.call.layout.image_chunks, step.second.length),
            table=step.second.table,
            **self._compiled(step.second_packs),
        )

    def _compiled(self, packs: Packs) -> dict[str, Any]:
        """What kernels of csrc/cuda are told, by the operators' parameters."""
        call, layout = self.call, self.call.layout
        height, width = layout.after
        return {
            "z": call.z,
            "gradients": self.gradients,
            "weights": call.weights,
            "weight_gradients": self.weight_gradients if self.for_weights else None,
            "p_weights": call.p,
            "g_weights": call.g,
            "statistics": call.statistics,
            "sums": self.sums,
            "pixels": layout.pixels(layout.plan.inputs),
            "weight_count": self.weight_count,
            "eps": call.eps,
            "height": height,
            "width": width,
            "images": layout.images,
            "operations": len(layout.plan.operations),
            **compiled.reach_arguments(layout, packs),
        }

    def _reach_states(self, step: Round) -> None:
        call, plan, layout = self.call, self.call.layout.plan, self.call.layout
        reaching = step.reaching
        if step.compiled.layers.length:
            packs = step.compiled.packs
            if compiled.reach_reason(layout, packs, call.p, call.g, call.z.dtype) is None:
                self._reach_states_compiled(step)
                reaching = step.others
        in_height, in_width = layout.before
        taps = max((DENSE[name] ** 2 for name in plan.operations if name in DENSE), default=1)
        parts = self._parts(taps) if reaching.separable or reaching.dense else self.blocks
        shares = 1
        if not reaching.separable:
            programs = layout.image_chunks * reaching.groups.length * self.blocks
            tiles = cdiv(layout.pixels(plan.inputs), layout.image_chunks * self.options["PIXELS"])
            shares = max(1, min(tiles, cdiv(4 * ENOUGH_PROGRAMS, programs)))
        launch(
            reach.reach_states,
            (layout.image_chunks * shares, reaching.groups.length, parts),
            **self._launched(
                "reach_states, few channels" if call.few else "reach_states", self._numbers
            ),
            table=reaching.groups.table,
            layers=reaching.layers.table,
            shares=shares,
            states=call.states,
            in_pixels=layout.pixels(0),
            in_height=in_height,
            in_width=in_width,
            node_states=layout.states[plan.inputs],
            SEPARABLES=reaching.separable,
            HALVES=layout.halves,
            DENSES=reaching.dense,
            **self._products(),
        )

    def _reach_states_compiled(self, step: Round) -> None:
        """What `reach_states` computes for some of its rows, by the kernel of csrc/cuda."""
        reaching = step.compiled
        launch(
            compiled.REACH_STATES,
            (self.call.layout.image_chunks, reaching.groups.length),
            table=reaching.groups.table,
            layers=reaching.layers.table,
            states=self.call.states,
            pitch=self.call.layout.plan.channels,
            **self._compiled(reaching.packs),
        )

    def _leave(self) -> list[Tensor]:
        """Gradients of the inputs, and of the preprocessing's weights."""
        call, plan, layout = self.call, self.call.layout.plan, self.call.layout
        options = call.products(plan.channels)
        blocks = cdiv(plan.channels, options["BLOCK"])
        in_blocks = cdiv(max(x.shape[1] for x in call.inputs), options["BLOCK"])
        found = [
            torch.empty_like(x, memory_format=memory_format_of(x)) if wanted else x.new_empty((0,))
            for x, wanted in zip(call.inputs, self.for_inputs, strict=True)
        ]
        parts = [{"identity": 0, "conv": 1, "reduce": 2}[kind] for kind in plan.preprocess]
        tasks = len(found) + sum(parts) * self.for_weights
        sizes = [
            cdiv(x.shape[0] * x.shape[2] * x.shape[3], options["PIXELS"])
            * cdiv(x.shape[1], options["BLOCK"])
            for x, wanted in zip(call.inputs, self.for_inputs, strict=True)
            if wanted
        ]
        if tasks > len(found):
            sizes.append(layout.image_chunks * in_blocks * blocks)
        if not sizes:
            return found
        height, width = layout.before
        launch(
            prepare_backward.leave,
            (max(sizes), tasks),
            **self._launched("leave"),
            table=call.tables.parts.table,
            inputs=tuple(call.inputs),
            strides=call.strides,
            sizes=call.sizes,
            to=tuple(
                x if wanted else None for x, wanted in zip(found, self.for_inputs, strict=True)
            ),
            to_strides=tuple(
                x.stride() if wanted else None
                for x, wanted in zip(found, self.for_inputs, strict=True)
            ),
            cins=tuple(x.shape[1] for x in call.inputs),
            firsts=tuple(sum(parts[:position]) for position in range(len(parts))),
            parts=tuple(parts),
            state_gradients=tuple(layout.gradients[: plan.inputs]),
            weights=call.weights,
            weight_gradients=self.weight_gradients,
            states=call.states,
            gradients=self.gradients,
            statistics=call.statistics,
            sums=self.sums,
            batch=call.inputs[0].shape[0],
            pixels=layout.pixels(0),
            height=height,
            width=width,
            channels=plan.channels,
            weight_count=self.weight_count,
            images=layout.images,
            in_blocks=in_blocks,
            WEIGHTS=tasks > len(found),
            EPS=call.eps,
            CHUNKS=layout.image_chunks,
            **options,
        )
        return found

    def _finish(
        self, grad_p: Tensor | None, grad_g: Tensor | None, grad_weights: Tensor | None
    ) -> None:
        call, plan = self.call, self.call.layout.plan
        edges = 0 if grad_p is None and grad_g is None else len(plan.edges)
        blocks = 0 if grad_weights is None else cdiv(self.weight_count, _ADDED)
        if not edges + blocks:
            return
        launch(
            finish.finish,
            (edges + blocks,),
            **self._launched("finish, several blocks" if self.blocks > 1 else "finish"),
            table=call.tables.candidates.table,
            rows=call.tables.candidates.length,
            edges=edges,
            p_weights=call.p,
            g_weights=call.g,
            operations=len(plan.operations),
            statistics=call.statistics,
            sums=self.sums,
            weight_gradients=self.weight_gradients,
            weight_count=self.weight_count,
            to_p=grad_p,
            to_g=grad_g,
            to_weights=grad_weights,
            channels=plan.mixed_channels,
            EPS=call.eps,
            CHUNKS=call.layout.image_chunks,
            BLOCK=block_of(plan.mixed_channels),
            ADDED=_ADDED,
            OPERATIONS=_power_of_two([len(plan.operations)]),
        )


def _power_of_two(numbers: Sequence[int]) -> int:
    """The least power of two that is no less than all numbers."""
    return 1 << (max([1, *numbers]) - 1).bit_length()

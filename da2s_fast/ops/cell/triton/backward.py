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

csrc/cuda's kernel does in one launch (`tasks`) what is said of all nodes, or of one where z are
computed again; all sums, those of the inputs too, are among its tasks.

The reference goes bundle by bundle, from the states' side; here it is node by node: all edges that
enter a node share its gradient, and the gradient of a state is collected node by node. The sums are
the same.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from da2s_fast.kernels import schedule
from da2s_fast.kernels.cell import reach, sums
from da2s_fast.kernels.launch import launch
from da2s_fast.kernels.schedule import Slot
from da2s_fast.ops._layout import memory_format_of
from da2s_fast.ops._triton import launched_as
from da2s_fast.ops.cell.operations import CONVS, DENSE
from da2s_fast.ops.cell.triton import compiled
from da2s_fast.ops.cell.triton.call import Call, Settings, by_name, call_of, cdiv, settings_of
from da2s_fast.ops.cell.triton.ends import Collected, finish, leave, power_of_two
from da2s_fast.ops.cell.triton.forward import layers_again
from da2s_fast.ops.cell.triton.layout import layout_of
from da2s_fast.ops.cell.triton.packs import Rows
from da2s_fast.ops.cell.triton.tables import Round
from da2s_fast.ops.cell.triton.tiling import ENOUGH_SMALL_PROGRAMS


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
    settings = settings_of(inputs, plan, frozen, eps, save, False)
    layout = layout_of(*settings.key)
    settings = settings._replace(tf32=saved.numel() > layout.saved_size)
    *for_inputs, for_p, for_g, for_weights = mask
    for_g = for_g and g is not None
    weight_count = layout.weights[-1] * for_weights
    found = [
        torch.empty_like(x, memory_format=memory_format_of(x)) if wanted else x.new_empty((0,))
        for x, wanted in zip(inputs, for_inputs, strict=True)
    ]
    grad_p = p.new_empty(p.shape if for_p else (0,))
    grad_g = (p if g is None else g).new_empty((len(layout.plan.edges) if for_g else 0,))
    flat = (weights[0] if weights else p).new_empty((weight_count,))
    weight_gradients = saved.new_empty((layout.image_chunks * weight_count,))
    if layout.plan.idle:
        # Nobody writes the gradients of what does not run.
        weight_gradients.zero_()
    tensors: dict[Hashable, Tensor] = {
        **by_name(inputs, p, g),
        "gradient": grad,
        "saved": saved,
        "statistics": statistics,
        "gradients": saved.new_empty((layout.gradients_size,)),
        "sums": saved.new_empty((layout.sums_size,), dtype=torch.float64),
        "counters": saved.new_empty((layout.counters,), dtype=torch.int32),
        "weight_gradients": weight_gradients,
        "to_p": grad_p,
        "to_g": grad_g,
        "to_weights": flat,
        **{("to", place): x for place, x in enumerate(found)},
    }
    if not save:
        tensors["z"] = saved.new_empty((layout.z_size,))
        tensors["moments"] = saved.new_empty((0,), dtype=torch.float64)
        # Of what is launched before `begin`, which could set them to 0.
        tensors["made"] = saved.new_zeros((layout.counters,), dtype=torch.int32)
    asked = (*for_inputs, for_p, for_g, for_weights)
    schedule.start(_backward, tensors, settings, asked)
    return found, grad_p, grad_g, flat


def _backward(slots: Mapping[Hashable, Slot], settings: Settings, asked: tuple[bool, ...]) -> None:
    """All launches."""
    _Backward(call_of(slots, settings, backward=True), slots, asked).run()


class _Backward:
    """One backward pass.

    Args:
        call: as the forward pass had it.
        slots: of all tensors, by name.
        asked: one per input, then p, g, weights: what is asked for.
    """

    def __init__(self, call: Call, slots: Mapping[Hashable, Slot], asked: Sequence[bool]) -> None:
        self.call, self.slots = call, slots
        *self.for_inputs, self.for_p, self.for_g, self.for_weights = asked
        plan, layout = call.layout.plan, call.layout
        self.options = call.products(plan.mixed_channels)
        self.blocks = cdiv(plan.mixed_channels, self.options["BLOCK"])
        self.again = "z" in slots
        self.weight_count = layout.weights[-1]
        reason = compiled.reach_reason(layout, call.tables.reaching, call.p, call.g, call.z)
        self.compiled = reason is None
        self.collected = Collected(
            slots["gradients"], slots["sums"], slots["weight_gradients"], self.for_weights
        )

    def run(self) -> None:
        """All launches."""
        call = self.call
        rounds = call.tables.rounds[::-1]
        if self.again:
            layers_again(call, 0)
        self._begin(self.slots["gradient"], rounds[0])
        if self.compiled:
            self._nodes_compiled(rounds)
        else:
            self._nodes(rounds)
        if not (self.compiled and call.tables.reaching.inputs):
            self._sums(call.tables.normalized, inputs=True)
        slots = self.slots
        to = [slots["to", i] if wanted else None for i, wanted in enumerate(self.for_inputs)]
        leave(call, self.collected, to)
        finish(
            call,
            self.collected,
            slots["to_p"] if self.for_p else None,
            slots["to_g"] if self.for_g else None,
            slots["to_weights"] if self.for_weights and self.weight_count else None,
        )

    def _nodes(self, rounds: Sequence[Round]) -> None:
        for place, step in enumerate(rounds, 1):
            self._reach_inner(step)
            reaching = step.reaching
            self._reach_states(reaching.groups, reaching.layers, reaching.separable, reaching.dense)
            if place == len(rounds):
                continue
            if self.again:
                layers_again(self.call, place)
            self._sums(rounds[place].mixed)

    def _nodes_compiled(self, rounds: Sequence[Round]) -> None:
        """What `_nodes` does, by the kernel of csrc/cuda: all nodes in a launch, if they can."""
        tasks = self.call.tables.reaching
        if tasks.late:
            self._reach_compiled(sum(tasks.lengths))
            self._reach_states(tasks.others, tasks.layers, False, tasks.dense)
            return
        for place, step in enumerate(rounds, 1):
            self._reach_compiled(tasks.lengths[place - 1])
            reaching = step.reaching
            self._reach_states(reaching.others, reaching.layers, False, tasks.dense)
            if self.again and place < len(rounds):
                layers_again(self.call, place)

    def _launched(self, kernel: str, numbers: int | None = None) -> dict[str, Any]:
        """How a kernel is launched."""
        return launched_as(kernel, self.call.states.device, numbers)

    def _chunks(self) -> dict[str, Any]:
        """What all launches over chunks of images are told, by parameter."""
        call, layout = self.call, self.call.layout
        height, width = layout.after
        return {
            "z": call.z,
            "gradients": self.collected.gradients,
            "statistics": call.statistics,
            "sums": self.collected.sums,
            "pixels": layout.pixels(layout.plan.inputs),
            "height": height,
            "width": width,
            "channels": layout.plan.mixed_channels,
            "images": layout.images,
        }

    def _area(self) -> dict[str, Any]:
        """What Triton's are told besides."""
        layout = self.call.layout
        return {
            **self._chunks(),
            "SHUFFLED": layout.plan.partial_channels,
            "PIXELS": self.options["PIXELS"],
            "BLOCK": self.options["BLOCK"],
        }

    def _begin(self, grad: Slot, last: Round) -> None:
        call, plan, layout = self.call, self.call.layout.plan, self.call.layout
        states = call.tables.states
        in_height, in_width = layout.before
        # Sums are among the tasks of csrc/cuda's kernel.
        candidates = 0 if self.compiled else last.mixed.length
        launch(
            sums.begin,
            (layout.image_chunks, states.length + candidates, self.blocks),
            **self._launched("begin"),
            table=states.table,
            groups=states.length,
            rows=last.mixed.table,
            gradient=grad,
            gradient_strides=grad.stride(),
            states=call.states,
            first_output=states.length - plan.outputs,
            node_states=layout.states[plan.inputs],
            in_pixels=layout.pixels(0),
            in_size=in_height * in_width,
            counters=self.slots["counters"] if self.compiled else None,
            HALVES=layout.halves,
            COUNTERS=layout.counters,
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

    def _weights(self) -> dict[str, Any]:
        """What launches that go through products are told, by parameter."""
        call = self.call
        return {
            "weights": call.weights,
            "weight_count": self.weight_count,
            "p_weights": call.p,
            "g_weights": call.g,
            "operations": len(call.layout.plan.operations),
        }

    def _products(self) -> dict[str, Any]:
        """What Triton's launches that go through products are told, by kernel parameter."""
        call, plan = self.call, self.call.layout.plan
        return {
            **self._area(),
            **self._weights(),
            **self.options,
            "weight_gradients": self.collected.weight_gradients,
            "SEVERAL": self.blocks > 1,
            "WEIGHTS": self.for_weights,
            "EPS": call.eps,
            "CHUNKS": call.layout.image_chunks,
            "TAPS": power_of_two(
                [CONVS[name].kernel ** 2 for name in plan.operations if name in CONVS]
            ),
        }

    @property
    def _numbers(self) -> int:
        """Of a tile."""
        return self.options["PIXELS"] * self.options["BLOCK"]

    @property
    def _shapes(self) -> tuple[int, str] | None:
        """Blocks of channels and precision of products, if they are taken in tensor shapes."""
        return (self.blocks, self.options["PRECISION"]) if self.options["DOT"] else None

    def _reach_states_as(self, separable: bool, dense: bool) -> str:
        """Its entry of `kernels.tuning`."""
        if self.call.few:
            return "reach_states, few channels"
        if separable and not (dense or self.call.layout.halves):
            if self._shapes == (1, "tf32"):
                return "reach_states, one block in TF32"
            if self._shapes == (2, "ieee"):
                return "reach_states, two blocks in float32"
        return "reach_states"

    def _parts(self, taps: int) -> int:
        """Programs of a chunk and a layer: one for each part of the weights, if they are wanted."""
        return self.blocks * (self.blocks * taps if self.for_weights else 1)

    def _reach_inner(self, step: Round) -> None:
        if not step.second.length:
            return
        launch(
            reach.reach_inner,
            (self.call.layout.image_chunks, step.second.length, self._parts(1)),
            **self._launched(
                "reach_inner, one block in TF32" if self._shapes == (1, "tf32") else "reach_inner",
                self._numbers,
            ),
            table=step.second.table,
            **self._products(),
        )

    def _reach_states(self, groups: Rows, rows: Rows, separable: bool, dense: bool) -> None:
        if not groups.length:
            return
        call, plan, layout = self.call, self.call.layout.plan, self.call.layout
        in_height, in_width = layout.before
        taps = max((DENSE[name] ** 2 for name in plan.operations if name in DENSE), default=1)
        parts = self._parts(taps) if separable or dense else self.blocks
        shares = 1
        if not separable:
            programs = layout.image_chunks * groups.length * self.blocks
            tiles = cdiv(layout.pixels(plan.inputs), layout.image_chunks * self.options["PIXELS"])
            shares = max(1, min(tiles, cdiv(ENOUGH_SMALL_PROGRAMS, programs)))
        launch(
            reach.reach_states,
            (layout.image_chunks * shares, groups.length, parts),
            **self._launched(self._reach_states_as(separable, dense), self._numbers),
            table=groups.table,
            layers=rows.table,
            shares=shares,
            states=call.states,
            in_pixels=layout.pixels(0),
            in_height=in_height,
            in_width=in_width,
            node_states=layout.states[plan.inputs],
            SEPARABLES=separable,
            HALVES=layout.halves,
            DENSES=dense,
            **self._products(),
        )

    def _reach_compiled(self, length: int) -> None:
        """So many tasks, from where the launch before ended."""
        call, tasks = self.call, self.call.tables.reaching
        layout = call.layout
        told = {
            **self._chunks(),
            **self._weights(),
            **compiled.reach_arguments(layout, tasks, call.z.device),
        }
        launch(
            compiled.REACH,
            (layout.image_chunks * length, 1),
            tasks=tasks.tasks.table,
            waits=tasks.waits.table,
            counters=self.slots["counters"],
            candidates=tasks.candidates.table,
            seconds=tasks.seconds.table,
            groups=tasks.groups.table,
            layers=tasks.layers.table,
            states=call.states,
            chunks=layout.image_chunks,
            weight_gradients=self.collected.weight_gradients if self.for_weights else None,
            eps=call.eps,
            pitch=layout.plan.channels,
            **told,
        )

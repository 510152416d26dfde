"""Computing a cell with one operator instead of module by module, where that gives the same."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import _has_any_global_hook

from da2s_fast.nn.autocast import autocast_dtype, output_dtype
from da2s_fast.nn.recognize import Recognized
from da2s_fast.nn.snapshot import Snapshot, children
from da2s_fast.ops._backend import REFERENCE, choose_backend, exporting
from da2s_fast.ops.cell.checks import fused_reasons, mismatch, unavailable
from da2s_fast.ops.cell.function import run, update_running
from da2s_fast.ops.cell.memory import MemoryChoice
from da2s_fast.ops.cell.plan import Active, CellPlan


class CellModule(nn.Module):
    """A module for which the operator `cell` can stand in.

    Attributes:
        memory: what the operator keeps for the backward pass, see `MemoryChoice`.
    """

    memory: MemoryChoice = "auto"
    __constants__: tuple[str, ...] = ()
    """Attributes that decide what the module computes, as in torch's own modules."""

    def __init__(self) -> None:
        super().__init__()
        self._known = _Known()

    def recognize(self) -> Recognized | str:
        """What the modules inside compute, or why the operator cannot."""
        raise NotImplementedError

    def fused(
        self, inputs: Sequence[Tensor], p: Tensor, g: Tensor | None, active: Active | None = None
    ) -> Tensor | None:
        """The output by the operator, running statistics moved on; None where it cannot run.

        Then the modules have to be run: the operator's reasons are operations that it does not
        know, hooks, other devices and types, and arguments that do not fit. Under autocast the
        output has the modules' type, and is computed in single precision.

        Args:
            inputs: of the cell, (N, C_in, H, W).
            p: (edges, operations).
            g: (edges,); None where every edge counts 1.
            active: per edge the operations to run.

        Raises:
            UserError: `use_backend` chose a fused backend that cannot run, and why.
        """
        if exporting():
            # Exported programs must run where this package's operators are not installed.
            return None
        reasons = unavailable(inputs[-1])
        if choose_backend("cell", None, reasons) == REFERENCE:
            return None
        # A compiler watches everything that it sees on its own.
        found = self.recognize() if torch.compiler.is_compiling() else self._known.look(self)
        plan = found if isinstance(found, str) else _with_active(found.plan, active)
        if isinstance(found, str) or isinstance(plan, str):
            choose_backend("cell", None, dict.fromkeys(reasons, str(plan)))
            return None
        weights: list[Tensor] = [
            parameter
            # Those of norms as well: they have none, unless somebody gave them some.
            for module in (*found.convolutions, *found.norms)
            for parameter in module._parameters.values()
            if parameter is not None
        ]
        buffers = [norm._buffers for norm in found.norms]
        running = [own[name] for own in buffers for name in ("running_mean", "running_var")]
        tracked = [own["num_batches_tracked"] for own in buffers]
        low = autocast_dtype(inputs)
        dtype = inputs[-1].dtype if low is None else output_dtype(plan, inputs[-1].dtype, low)
        inputs = list(inputs)
        if low is not None and any(x.dtype != dtype for x in inputs):
            inputs = [x.float() for x in inputs]
        reason = (
            _buffer_reason((*running, *tracked))
            or mismatch(inputs, p, g, weights, plan)
            or (_dtype_reason(inputs[-1], weights) if low is None else None)
        )
        if reason is None:
            reasons = fused_reasons(inputs, p, g, weights, plan, running, found.frozen)
        else:
            reasons = dict.fromkeys(reasons, reason)
        if choose_backend("cell", None, reasons) == REFERENCE:
            return None
        output, statistics = run(
            inputs, p, g, weights, plan, running, found.frozen, found.eps, self.memory
        )
        if len(found.frozen) < len(found.norms):
            images, _, height, width = inputs[-1].shape
            update_running(
                statistics,
                running,
                tracked,
                plan,
                size=(images, height, width),
                frozen=found.frozen,
                momentum=found.momentum,
            )
        return output.to(dtype)


class _Known:
    """What was found out about a module, while it stays true.

    Belongs to the module that it is about; copies of that module find out for themselves.
    """

    def __init__(self) -> None:
        self._parts: tuple[Any, ...] | None = None
        self._found: Recognized | str = ""
        self._snapshot = Snapshot([])

    def __reduce__(self) -> tuple[type[_Known], tuple[()]]:
        return _Known, ()

    def look(self, module: CellModule) -> Recognized | str:
        """As `module.recognize()`, seldom computed anew."""
        if _has_any_global_hook():
            return "somebody listens in on all modules"
        # The module itself is not kept: references in a circle would keep it alive.
        parts = children(module), *(getattr(module, name) for name in module.__constants__)
        # What was not recognized is looked at again each time: there is no cell's time to lose.
        if self._parts != parts or isinstance(self._found, str) or not self._snapshot.holds():
            found = module.recognize()
            if not isinstance(found, str):
                found = found._replace(modules=[m for m in found.modules if m is not module])
                self._snapshot = Snapshot(found.modules)
            self._found, self._parts = found, parts
        return self._found


def _with_active(plan: CellPlan, active: Active | None) -> CellPlan | str:
    """The plan of a cut cell; a reason where only the modules can say what is meant."""
    if active is None:
        return plan
    columns = range(len(plan.operations))
    ordered = tuple(tuple(sorted(set(chosen))) for chosen in active)
    counts = [len(set(chosen) & set(columns)) for chosen in active]
    if len(active) != len(plan.edges) or counts != list(map(len, active)):
        return "the active operations are not some of every edge's"
    targets = {edge.target for edge, chosen in zip(plan.edges, active, strict=True) if chosen}
    if len(targets) < plan.nodes:
        return "a node has no active operation"
    return replace(plan, active=ordered)


def _buffer_reason(buffers: Sequence[Tensor | None]) -> str | None:
    return "a norm has lost its buffers" if any(value is None for value in buffers) else None


def _dtype_reason(x: Tensor, weights: list[Tensor]) -> str | None:
    if weights and weights[0].dtype != x.dtype:
        return f"the inputs are {x.dtype}, the weights {weights[0].dtype}"
    return None

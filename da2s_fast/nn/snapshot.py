"""Telling quickly whether modules are still what they were when somebody looked at them closely.

A module may change at any time: hooks are registered, norms are frozen, layers are replaced. What
was found out about hundreds of modules is worth keeping between calls only if every change is
noticed, and noticing costs much less than looking closely again.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from operator import itemgetter
from typing import Any

from torch import nn

_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


@cache
def _reader(kind: type[nn.Module]) -> Callable[[dict[str, Any]], tuple[Any, ...]]:
    """Reads what decides a module's computation, but for its children, parameters and buffers.

    Torch's modules, and ours, name it in `__constants__`.
    """
    return itemgetter("training", *_HOOKS, *getattr(kind, "__constants__", ()))


def children(module: nn.Module) -> tuple[nn.Module | None, ...]:
    """The modules that it holds now."""
    return tuple(module._modules.values())


class Snapshot:
    """Kinds, constants, modes and children of modules that nobody listens in on.

    Args:
        modules: as `has_hooks` finds them free of hooks.
    """

    def __init__(self, modules: Sequence[nn.Module]) -> None:
        self._modules = list(modules)
        self._kinds = list(map(type, modules))
        self._readers = [_reader(kind) for kind in self._kinds]
        self._states = [module.__dict__ for module in modules]
        self._values = self._read()
        self._hooks = [state[name] for state in self._states for name in _HOOKS]
        self._parents = [module for module in modules if module._modules]
        self._children = list(map(children, self._parents))

    def _read(self) -> list[tuple[Any, ...]]:
        return [read(state) for read, state in zip(self._readers, self._states, strict=True)]

    def holds(self) -> bool:
        """Whether all of it is as it was."""
        return (
            # Dictionaries that were filled equal themselves, exchanged ones do not equal empty
            # ones: only both questions together find every hook.
            not any(self._hooks)
            and self._read() == self._values
            and list(map(type, self._modules)) == self._kinds
            and list(map(children, self._parents)) == self._children
            and not any("forward" in state for state in self._states)
        )

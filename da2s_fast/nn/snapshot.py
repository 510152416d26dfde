"""Telling quickly whether modules are still what they were when somebody looked at them closely.

A module may change at any time: hooks are registered, norms are frozen, layers are replaced. What
was found out about hundreds of modules is worth keeping between calls only if every change is
noticed, and noticing costs much less than looking closely again. Hooks count as registered by
torch's functions, which all make a handle.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from itertools import chain, repeat
from operator import contains, itemgetter
from typing import Any

from torch import nn
from torch.utils.hooks import RemovableHandle

_HELD = itemgetter("_modules")
_HOOKS = itemgetter(
    "_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks"
)


@cache
def _reader(kind: type[nn.Module]) -> Callable[[dict[str, Any]], Any]:
    """Reads what decides a module's computation, but for hooks, children, parameters and buffers.

    Torch's modules, and ours, name it in `__constants__`.
    """
    return itemgetter("training", *getattr(kind, "__constants__", ()))


def children(module: nn.Module) -> tuple[nn.Module | None, ...]:
    """The modules that it holds now."""
    return tuple(module._modules.values())


class Snapshot:
    """Kinds, constants, modes and children of modules that nobody listens in on.

    A cell has more than 500 modules, so each question is one loop in C.

    Args:
        modules: as `has_hooks` finds them free of hooks.
    """

    def __init__(self, modules: Sequence[nn.Module]) -> None:
        self._modules = list(modules)
        self._kinds = list(map(type, modules))
        self._states = [module.__dict__ for module in modules]
        by_kind: dict[Any, list[dict[str, Any]]] = {}
        for kind, state in zip(self._kinds, self._states, strict=True):
            by_kind.setdefault(kind, []).append(state)
        self._groups = [(_reader(kind), states) for kind, states in by_kind.items()]
        self._values = self._read()
        self._parents = [state for state in self._states if state["_modules"]]
        self._counts, self._children = self._held()
        self._handles = -1

    def _read(self) -> list[list[Any]]:
        return [list(map(read, states)) for read, states in self._groups]

    def _held(self) -> tuple[list[int], list[nn.Module | None]]:
        """How many children the parents have, and all of them."""
        held = list(map(_HELD, self._parents))
        return list(map(len, held)), list(chain.from_iterable(map(dict.values, held)))

    def _is_heard(self) -> bool:
        """Whether anybody listens in."""
        # Who registers a hook, anywhere, gets a handle with a number of its own.
        handles = RemovableHandle.next_id
        if handles == self._handles:
            return False
        heard = any(chain.from_iterable(map(_HOOKS, self._states)))
        if not heard:
            self._handles = handles
        return heard

    def holds(self) -> bool:
        """Whether all of it is as it was."""
        return (
            not self._is_heard()
            and self._read() == self._values
            and list(map(type, self._modules)) == self._kinds
            and self._held() == (self._counts, self._children)
            and not any(map(contains, self._states, repeat("forward")))
        )

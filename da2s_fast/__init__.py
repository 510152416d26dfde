"""Exact and fast differentiable architecture search: search, cut and retrain image classifiers."""

from __future__ import annotations

import sys
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from da2s_fast.api import resume, search
    from da2s_fast.errors import DivergedError, UserError
    from da2s_fast.nn import Cell, MixedOp, SuperNetwork, register_operation
    from da2s_fast.search.loop import SearchResult
    from da2s_fast.search.settings import SearchSettings
    from da2s_fast.spaces import Genotype, SearchSpace

__all__ = [
    "Cell",
    "DivergedError",
    "Genotype",
    "MixedOp",
    "SearchResult",
    "SearchSettings",
    "SearchSpace",
    "SuperNetwork",
    "UserError",
    "__version__",
    "register_operation",
    "resume",
    "search",
]

try:
    __version__ = version("da2s_fast")
except PackageNotFoundError:  # a source tree on the path, not installed
    __version__ = "0+unknown"

# Imported on first use: a network that borrows MixedOp should not wait for all that a search needs.
_HOMES = {
    "Cell": "nn",
    "DivergedError": "errors",
    "Genotype": "spaces",
    "MixedOp": "nn",
    "SearchResult": "search.loop",
    "SearchSettings": "search.settings",
    "SearchSpace": "spaces",
    "SuperNetwork": "nn",
    "UserError": "errors",
    "register_operation": "nn",
    "resume": "api",
    "search": "api",
}


class _Package(ModuleType):
    """The package, in which `search` is the function although a subpackage has that name."""

    def __getattr__(self, name: str) -> Any:
        if name not in _HOMES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        value = getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
        setattr(self, name, value)
        return value

    def __setattr__(self, name: str, value: Any) -> None:
        # The import system binds each subpackage here when it is first imported.
        if name != "search" or not isinstance(value, ModuleType):
            super().__setattr__(name, value)

    def __dir__(self) -> list[str]:
        return sorted({*super().__dir__(), *__all__})


sys.modules[__name__].__class__ = _Package

"""Bilevel search with the discretization loss: settings, steps, loop, cut, checkpoints."""

from da2s_fast.search.discretize import Discretization, discretize
from da2s_fast.search.forecast import Forecast, forecast
from da2s_fast.search.loop import SearchResult, run_search
from da2s_fast.search.run_folder import RunFolder
from da2s_fast.search.session import SearchSession
from da2s_fast.search.settings import SearchSettings

__all__ = [
    "Discretization",
    "Forecast",
    "RunFolder",
    "SearchResult",
    "SearchSession",
    "SearchSettings",
    "discretize",
    "forecast",
    "run_search",
]

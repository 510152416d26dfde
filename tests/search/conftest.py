"""Real digits and tiny searches on them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from da2s_fast.data import ImageData, load_data
from da2s_fast.search import SearchSession, SearchSettings

TINY: dict[str, Any] = {
    "epochs": 4,
    "warmup": 1,
    "channels": 4,
    "cells": 3,
    "nodes": 2,
    "batch_size": 16,
    "operations": ["max_pool_3x3", "skip_connect", "dil_conv_3x3"],
    "device": "cpu",
}

MakeSession = Callable[..., SearchSession]


@pytest.fixture(scope="session")
def digits() -> ImageData:
    """200 of scikit-learn's 8x8 digits to train on, 50 to test."""
    return load_data("digits", limit=200)


@pytest.fixture
def make_session(digits: ImageData) -> MakeSession:
    """Start a tiny search on digits with these settings."""

    def make(**settings: Any) -> SearchSession:
        return SearchSession(SearchSettings(**TINY | settings).resolved(digits), digits)

    return make

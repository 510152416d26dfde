"""Nothing is timed here: one thread, so that a busy machine does not make the tests slow."""

from collections.abc import Iterator

import pytest

from tests.conditions import threads


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    with threads(1):
        yield

"""Options of `python -m benchmarks`, and the tables it prints and writes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from benchmarks.tables import Table, console, machine


class Options(NamedTuple):
    """What the command line says about the long cases."""

    rounds: int
    batch: int
    compile_limit: float


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("da2s_fast")
    group.addoption("--rounds", type=int, default=3, help="interleaved rounds, at least (3)")
    group.addoption("--batch", type=int, default=64, help="images per step (64)")
    group.addoption(
        "--compile-limit",
        type=float,
        default=480,
        metavar="SECONDS",
        help="how long torch.compile may take each time; 0 leaves it out (480)",
    )
    group.addoption("--tables", type=Path, metavar="FILE", help="write all tables as Markdown")


@pytest.fixture
def options(request: pytest.FixtureRequest) -> Options:
    config = request.config
    return Options(*(config.getoption(name) for name in Options._fields))


@pytest.fixture(scope="session")
def tables(request: pytest.FixtureRequest) -> Iterator[list[Table]]:
    """All tables so far; written to a file at the end if one is named."""
    found: list[Table] = []
    yield found
    path = request.config.getoption("--tables")
    if path and found:
        text = "\n".join([f"Measured on {machine()}.", "", *(t.markdown() for t in found)])
        path.write_text(text, encoding="utf-8")


@pytest.fixture
def publish(request: pytest.FixtureRequest, tables: list[Table]) -> Callable[[Table], None]:
    """Print a table at once and keep it."""
    capture = request.config.pluginmanager.getplugin("capturemanager")

    def add(table: Table) -> None:
        with capture.global_and_fixture_disabled():
            screen = console()
            if not tables:
                screen.print(f"\n{machine()}", highlight=False)
            table.print(screen)
        tables.append(table)

    return add

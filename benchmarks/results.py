"""What interleaved rounds have found: per row the steps' times, and the machine's limits."""

from __future__ import annotations

from dataclasses import dataclass, field
from statistics import median
from typing import Any

from benchmarks.cases import Row
from benchmarks.limits import Rates
from benchmarks.subject import Prepared


@dataclass
class Result:
    """What came of one row.

    Attributes:
        row: the row.
        operations: floating-point operations of its step.
        least_bytes: what it must move.
        prepared: its first step; None if that failed.
        seconds: of a step, round by round.
        failure: why it could not be measured.
    """

    row: Row
    operations: float
    least_bytes: float
    prepared: Prepared | None = None
    seconds: list[float] = field(default_factory=list)
    failure: str = ""

    @property
    def median(self) -> float:
        """Median over the rounds."""
        return median(self.seconds)

    def speedup(self, base: Result) -> float:
        """How many times faster than another row, the median of the rounds' ratios."""
        return median(b / own for b, own in zip(base.seconds, self.seconds, strict=True))


@dataclass
class Measurement:
    """A whole table: rows, and the machine's rates in the same rounds."""

    results: list[Result]
    rates: list[Rates]

    @property
    def rate(self) -> Rates:
        """Median rates."""
        return Rates(
            median(rate.operations for rate in self.rates),
            median(rate.bytes for rate in self.rates),
        )

    def share(self, result: Result) -> float:
        """Share of the machine's limit that a row reaches."""
        return self.rate.seconds(result.operations, result.least_bytes) / result.median

    def result(self, name: str) -> Result | None:
        """The row of this name, if it was measured."""
        return next((r for r in self.results if r.row.name == name and r.seconds), None)

    def as_json(self) -> dict[str, Any]:
        """Everything measured, for pytest-benchmark's --benchmark-json."""
        rows = {
            result.row.name: {
                "seconds": result.seconds,
                "operations": result.operations,
                "least_bytes": result.least_bytes,
                "failure": result.failure,
                "first_step": vars(result.prepared) if result.prepared else None,
            }
            for result in self.results
        }
        return {"rows": rows, "limits": [vars(rate) for rate in self.rates]}

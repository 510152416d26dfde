"""Whether a super-network was discrete before it was cut, and what the cut cost."""

from __future__ import annotations

from dataclasses import dataclass

from da2s_fast.report.formatting import decimal, points
from da2s_fast.report.run import RunRecord
from da2s_fast.search.discretize import DISCRETE_BETA, DISCRETE_P


@dataclass(frozen=True)
class Check:
    """One condition of discreteness; ``passed`` is None where there is nothing to check."""

    text: str
    passed: bool | None


@dataclass(frozen=True)
class Verdict:
    """The result of a search in one sentence."""

    sentence: str
    tone: str  # "good", "fair" or "bad": the name of a colour in templates/style.css
    checks: tuple[Check, ...]


def judge(record: RunRecord) -> Verdict:
    """The verdict on a run, by the accuracies on the architecture's images."""
    checks = _checks(record)
    gap = record.accuracies("search").gap
    if gap is None:
        return Verdict("The discretization gap has not been measured yet.", "fair", checks)
    shown = points(abs(gap))
    loss = f"costs {shown} points" if gap >= 0 else f"gains {shown} points"
    if checks[0].passed is None:
        sentence = f"Whether the super-network is discrete was not recorded; cutting it {loss}."
        return Verdict(sentence, "fair", checks)
    if any(check.passed is False for check in checks):
        tone = "bad" if gap > 0.1 else "fair"
        return Verdict(f"The super-network is not discrete; cutting it {loss}.", tone, checks)
    tone = "good" if gap <= 0.02 else "fair"
    return Verdict(f"The super-network is discrete; cutting it {loss}.", tone, checks)


def _checks(record: RunRecord) -> tuple[Check, ...]:
    p, beta = record.last("kept_p"), record.last("kept_beta")
    strongest = "Operations that are kept, smallest p"
    if p is None:
        first = Check(f"{strongest}: not recorded", None)
    else:
        first = Check(f"{strongest}: {decimal(p)} (discrete above {DISCRETE_P})", p > DISCRETE_P)
    if beta is None:
        return first, Check("Strength of the kept edges: not used by this method", None)
    text = f"Strength of the kept edges, mean kept β: {decimal(beta)} (discrete at 1)"
    return first, Check(text, beta >= DISCRETE_BETA)

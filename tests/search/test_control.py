"""Control functions against the formulas, and against tables of the authors' own values."""

import math

import pytest

from da2s_fast.search.control import control

NAMES = ["const", "linear", "log", "exp", "step", "sigmoid"]
LENGTHS = [(2, 0), (3, 1), (7, 1), (25, 4), (50, 8), (50, 15), (600, 96)]


def clamp(value: float) -> float:
    return max(0.0, min(1.0, value))


def quarter(done: int, whole: int) -> float:
    """Thirds by quarters, in whole numbers."""
    return sum(4 * done >= k * whole for k in (1, 2, 3)) / 3


def plain(name: str, t: int, T: int) -> float:
    return {
        "const": 1.0,
        "linear": (t - 1) / (T - 1),
        "log": math.log(t, T),
        "exp": 2 ** (t / 5) / 2 ** (T / 5),
        "step": quarter(t, T),
        "sigmoid": math.exp(t / 5) / (math.exp(t / 5) + math.exp(T / 10)),
    }[name]


def delayed(name: str, t: int, T: int, E: int) -> float:
    if t < E or (t == E and name != "log"):
        return 0.0
    return {
        "const": 1.0,
        "linear": (t - E) / (T - E),
        "log": math.log(t - E + 1, T - E),
        "exp": 2 ** (t / 5) / 2 ** (T / 5),
        "step": quarter(t - E, T - E),
        "sigmoid": 1 / (1 + math.exp((T - E) / 8 - (t - E) / 4)),
    }[name]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(("T", "E"), LENGTHS)
def test_formulas(name: str, T: int, E: int) -> None:
    for t in range(1, T + 1):
        assert control(name, t, T) == pytest.approx(clamp(plain(name, t, T)), abs=1e-12)
        if E:
            expected = delayed(name, t, T, E)
            assert control(name, t, T, E) == pytest.approx(clamp(expected), abs=1e-12)
            assert control(name, t, T, E, clamp=False) == pytest.approx(expected, abs=1e-12)


# What the authors' module gives in epochs 1, 7, 8, 9, 12, 13, 25, 30, 38, 49 and 50 of 50, with
# the warm-up of 8, to 12 digits.
EPOCHS = (1, 7, 8, 9, 12, 13, 25, 30, 38, 49, 50)
AUTHORS = {
    "const": (1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1),
    "linear": (
        0,
        0.122448979592,
        0.142857142857,
        0.163265306122,
        0.224489795918,
        0.244897959184,
        0.489795918367,
        0.591836734694,
        0.755102040816,
        0.979591836735,
        1,
    ),
    "log": (
        0,
        0.497417869567,
        0.531551460407,
        0.561659421299,
        0.63519735092,
        0.655658045442,
        0.822816179864,
        0.869421620717,
        0.929847844626,
        0.994835739133,
        1,
    ),
    "exp": (
        0.0011217757373,
        0.00257716388823,
        0.00296038391897,
        0.00340058813788,
        0.00515432777646,
        0.00592076783793,
        0.03125,
        0.0625,
        0.189464570814,
        0.870550563296,
        1,
    ),
    "step": (0, 0, 0, 0, 0, 0.333333333333, 0.666666666667, 0.666666666667, 1, 1, 1),
    "sigmoid": (
        0.00816257115316,
        0.0265969935769,
        0.0322954646985,
        0.0391657227968,
        0.0691384203433,
        0.0831726964939,
        0.5,
        0.73105857863,
        0.930861579657,
        0.991837428847,
        0.993307149076,
    ),
}
AUTHORS_DELAYED = {
    "const": (0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1),
    "linear": (
        0,
        0,
        0,
        0.0238095238095,
        0.0952380952381,
        0.119047619048,
        0.404761904762,
        0.52380952381,
        0.714285714286,
        0.97619047619,
        1,
    ),
    "log": (
        0,
        0,
        0,
        0.185449023415,
        0.430599297638,
        0.479378771324,
        0.773308519233,
        0.83889014711,
        0.918750867569,
        1,
        1.00629549955,
    ),
    "exp": (
        0,
        0,
        0,
        0.00340058813788,
        0.00515432777646,
        0.00592076783793,
        0.03125,
        0.0625,
        0.189464570814,
        0.870550563296,
        1,
    ),
    "step": (0, 0, 0, 0, 0, 0, 0.333333333333, 0.666666666667, 0.666666666667, 1, 1),
    "sigmoid": (
        0,
        0,
        0,
        0.00669285092428,
        0.0140636270432,
        0.0179862099621,
        0.26894142137,
        0.562176500886,
        0.904650535101,
        0.993307149076,
        0.994779874306,
    ),
}


@pytest.mark.parametrize("name", NAMES)
def test_values_of_the_authors(name: str) -> None:
    for t, value, after_warmup in zip(EPOCHS, AUTHORS[name], AUTHORS_DELAYED[name], strict=True):
        assert control(name, t, 50, clamp=False) == pytest.approx(value, abs=1e-11)
        assert control(name, t, 50, 8, clamp=False) == pytest.approx(after_warmup, abs=1e-11)


@pytest.mark.parametrize("name", NAMES)
def test_never_falls_and_stays_in_range(name: str) -> None:
    for T, E in LENGTHS:
        for warmup in {0, E}:
            values = [control(name, t, T, warmup) for t in range(1, T + 1)]
            assert values == sorted(values)
            assert min(values) >= 0
            assert max(values) <= 1


def test_where_the_functions_end() -> None:
    for T, E in LENGTHS[1:]:
        for name in ("const", "linear", "log", "exp", "step"):
            assert control(name, T, T) == pytest.approx(1)
            assert control(name, T, T, E) == pytest.approx(1)
    assert control("log", 50, 50, 8, clamp=False) > 1.006


def test_the_delayed_log_starts_in_the_epoch_after_the_warmup() -> None:
    assert [control("log", t, 50, 8) for t in (7, 8)] == [0, 0]
    assert control("log", 9, 50, 8) == pytest.approx(math.log(2) / math.log(42))


@pytest.mark.parametrize("name", NAMES)
def test_a_single_epoch_counts_fully(name: str) -> None:
    assert control(name, 1, 1) == 1

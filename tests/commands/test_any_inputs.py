"""Flags, words and settings files made at random: exit code 0 or 2, one line, no traceback."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from da2s_fast.search.settings import SearchSettings
from tests.commands.in_process import FLAGS, SMALLEST, run

NAMES = sorted(SearchSettings.__dataclass_fields__)
# Few that work, and those small, so that an example that is accepted takes no time.
NUMBERS = st.sampled_from(
    ["-1", "0", "1", "2", "3", "4", "8", "0.5", "1e-3", "1e400", "nan", "inf"]
)
WORDS = (
    st.sampled_from(["", "null", "true", "none", "[1]", "1,1", "[", "{a: 1}", "10000000000"])
    | st.sampled_from(["99999999999999999999999", "digits", "darts", "da2s", "pc-darts", "linear"])
    | st.sampled_from(["nas-bench-201", "bfloat16", "float16", "daas", "cpu", "cuda", "meta"])
    | st.just("skip_connect,none")
)
NOISE = st.text(st.characters(exclude_characters="/\0"), max_size=5)
ANYTHING = NUMBERS | WORDS | NOISE
# What may take long when it is large; everything else may be anything.
COSTLY = {"epochs", "cells", "nodes", "limit", "image_size"}
SMALL = st.sampled_from(["-1", "0", "1", "2", "3", "4", "x", "", "null", "1.5", "[1]"])


def flag(name: str) -> st.SearchStrategy[str]:
    return (SMALL if name in COSTLY else ANYTHING).map(lambda value: f"--{name}={value}")


def assert_0_or_2(capfd: pytest.CaptureFixture, *arguments: str) -> None:
    code, line = run(capfd, *arguments)
    if "became NaN or infinite" in line:  # settings that can be used, but not to learn
        assert code == 1
        code = 2
    assert code in (0, 2)
    assert line.startswith("da2s: error: ") == (code == 2)
    shutil.rmtree("runs", ignore_errors=True)


RARELY_SLOW = settings(
    max_examples=30,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


@RARELY_SLOW
@given(flags=st.lists(st.sampled_from(NAMES).flatmap(flag), min_size=1, max_size=2))
def test_any_flags(capfd: pytest.CaptureFixture, flags: list[str]) -> None:
    assert_0_or_2(capfd, "search", *FLAGS, *flags)


@RARELY_SLOW
@given(words=st.lists(ANYTHING | st.sampled_from(["--", "-x", "--out", "--resume"]), max_size=3))
def test_any_words(capfd: pytest.CaptureFixture, words: list[str]) -> None:
    for command in ("search", "retrain", "report", "export"):
        given_words = [word for word in words if word not in ("digits", "-h", "--help")]
        code, _ = run(capfd, command, *given_words, "--unknown")
        assert code == 2


SCALARS = (
    st.none()
    | st.booleans()
    | st.integers(-2, 4)
    | st.floats()
    | ANYTHING
    | st.dates()
    | st.binary(max_size=3)
)
VALUES = SCALARS | st.lists(SCALARS, max_size=3) | st.dictionaries(ANYTHING, SCALARS, max_size=2)


@RARELY_SLOW
@given(values=st.dictionaries(st.sampled_from([*NAMES, "keep"]) | ANYTHING, VALUES, max_size=3))
def test_any_settings_file(capfd: pytest.CaptureFixture, values: dict) -> None:
    text = yaml.safe_dump(SMALLEST | values, allow_unicode=True)
    Path("s.yaml").write_text(text, encoding="utf-8", errors="surrogatepass")
    assert_0_or_2(capfd, "search", "--config=s.yaml")


@RARELY_SLOW
@given(content=st.binary(max_size=30) | st.text("{}[]:-&*!|>'\"#,? \n\tae1", max_size=12))
def test_any_bytes_as_settings_file(capfd: pytest.CaptureFixture, content: bytes | str) -> None:
    Path("s.yaml").write_bytes(content if isinstance(content, bytes) else content.encode())
    # The file may well be empty of settings: the rest makes such a search impossible.
    assert run(capfd, "search", "--data=nowhere", "--config=s.yaml")[0] == 2

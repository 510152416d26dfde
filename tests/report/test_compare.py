import io
import re
from html.parser import HTMLParser

import pytest
from rich.console import Console

from da2s_fast.errors import UserError
from da2s_fast.report import compare_runs, write_report
from da2s_fast.report.compare import Spread
from da2s_fast.report.formatting import MISSING
from tests.report.conftest import build_training


def printed(comparison, width=120):
    console = Console(width=width, file=io.StringIO(), color_system=None)
    console.print(comparison.table())
    return console.file.getvalue()


def texts(html):
    found = []
    parser = HTMLParser()
    parser.handle_data = found.append
    parser.feed(html)
    return " ".join(" ".join(found).split())


@pytest.fixture
def three_seeds(make_run):
    """Gaps of 1, 2 and 6 points from 80, 82 and 84 %."""
    return [
        make_run(f"seed{seed}", seed=seed, gap=gap, accuracy=accuracy, epochs=2)
        for seed, gap, accuracy in ((0, 0.01, 0.80), (1, 0.02, 0.82), (2, 0.06, 0.84))
    ]


def test_three_seeds_by_hand(three_seeds):
    comparison = compare_runs(three_seeds)
    (group,) = comparison.groups
    assert (group.label, group.counted) == ("da2s", "3 seeds")
    gap = group.spread("gap")
    # (1 + 2 + 6) / 3 = 3; sqrt((4 + 1 + 9) / 2) = 2.6458
    assert gap.mean == pytest.approx(0.03)
    assert gap.std == pytest.approx(0.026457513)
    assert gap.number == 3
    before = group.spread("super")
    assert before.mean == pytest.approx(0.82)
    assert before.std == pytest.approx(0.02)
    after = group.spread("test_cut")
    # 80 - 2 - 1.5 = 76.5, 82 - 2 - 2.5 = 77.5, 84 - 2 - 6.5 = 75.5
    assert after.mean == pytest.approx(0.765)
    assert after.std == pytest.approx(0.01)


def test_terminal_table_has_runs_means_and_spreads(three_seeds):
    lines = [line.split() for line in printed(compare_runs(three_seeds)).splitlines()]
    (mean,) = [line for line in lines if line[:1] == ["mean"]]
    (spread,) = [line for line in lines if line[:1] == ["±"]]
    assert mean[:8] == ["mean", "of", "3", "seeds", "1", "82.0", "79.0", "3.0"]
    assert spread[:4] == ["±", "2.0", "1.0", "2.6"]
    assert ["seed1", "1", "1", "82.0", "80.0", "2.0"] in [line[:6] for line in lines]


def test_terminal_table_fits_80_columns(three_seeds):
    text = printed(compare_runs(three_seeds), width=80)
    assert max(map(len, text.splitlines())) <= 80
    assert "…" not in text


def test_all_columns_fit_80_columns_too(three_seeds, tmp_path):
    build_training(tmp_path / "trained", 0.987)
    text = printed(compare_runs(three_seeds), width=80)
    assert max(map(len, text.splitlines())) <= 80
    assert "…" not in text
    (line,) = [line.split() for line in text.splitlines() if "seed1" in line]
    # Of the derived network: test accuracy and, at the end, multiply-adds.
    assert line[7] == "98.7"
    assert line[-2:] == ["41.5", "M"]


def test_a_single_run_has_no_spread(make_run):
    comparison = compare_runs([make_run()])
    (group,) = comparison.groups
    assert group.spread("gap") == Spread(pytest.approx(0.01), None, 1)
    assert "mean of" not in printed(comparison)


def test_groups_are_named_by_what_differs(make_run):
    keep = {"normal": [1, 2, 3, 3], "reduce": [2, 2, 2, 2]}
    runs = [
        make_run("a", seed=0),
        make_run("b", seed=1),
        make_run("c", seed=0, config={"keep": keep}),
        make_run("d", method="darts", config={"epochs": 99}),
    ]
    groups = compare_runs(runs).groups
    assert [(g.label, len(g.rows)) for g in groups] == [
        ("da2s; keep.normal 2, 2, 2, 2", 2),
        ("da2s; keep.normal 1, 2, 3, 3", 1),
        ("darts", 1),
    ]


def test_the_device_does_not_split_a_group(make_run):
    runs = [make_run(d, seed=i, config={"device": d}) for i, d in enumerate(("cpu", "cuda"))]
    assert [group.counted for group in compare_runs(runs).groups] == ["2 seeds"]


def test_a_seed_run_twice_is_counted_as_such_and_a_run_named_twice_once(make_run):
    a, b = make_run("a", seed=3), make_run("b", seed=3)
    (group,) = compare_runs([a, b, a, a / ".." / "a"]).groups
    assert group.counted == "2 runs of 1 seed"


def test_values_not_taken_are_left_out_of_the_mean(make_run):
    runs = [
        make_run("a", seed=0),
        make_run("b", seed=1, finished=False),
        make_run("c", seed=2, accuracy=0.9),
    ]
    (group,) = compare_runs(runs).groups
    test = group.spread("test_super")
    assert (test.number, test.mean) == (2, pytest.approx((0.78 + 0.88) / 2))
    text = printed(compare_runs(runs))
    assert "b (not finished)" in text
    assert MISSING in text


def test_a_column_without_any_value_is_left_out(make_run):
    text = printed(compare_runs([make_run(method="darts", space="darts")]))
    assert "β" not in text


def test_page_shows_groups_runs_and_links(three_seeds, make_run, tmp_path):
    other = make_run("a #1", method="darts", space="darts", gap=0.4, discrete=0.3, epochs=3)
    write_report(other)
    path = compare_runs([*three_seeds, other]).write_html(tmp_path / "compare.html")
    html = path.read_text(encoding="utf-8")
    text = texts(html)
    assert "82.0 ± 2.0 79.0 ± 1.0 3.0 ± 2.6" in text
    assert "darts 1 seed 80.0 40.0 40.0" in text
    assert re.findall(r'href="([^"]+)"', html.split("</svg>")[-1]) == ["a%20%231/report.html"]
    assert not re.findall(r"(?:https?:)?//\w", re.sub(r'xmlns(:\w+)?="[^"]*"', "", html))
    assert 'aria-label="accuracy falls from 80.0 % to 40.0 %"' in html


def test_runs_of_other_lengths_and_without_epochs_share_a_plot(make_run, tmp_path):
    runs = [make_run("a", epochs=6), make_run("b", epochs=1, seed=1, method="darts")]
    runs.append(make_run("c", epochs=0, finished=False, method="pc-darts"))
    html = compare_runs(runs).write_html(tmp_path / "c.html").read_text(encoding="utf-8")
    assert html.count("Accuracy after cutting") >= 1
    assert "pc-darts" in html


HOSTILE = "<script>alert(1)</script> [bold red]$x$[/] {{ 7*7 }}"


def test_hostile_names_are_text(make_run, tmp_path):
    runs = [make_run("[red]<i>x", method=HOSTILE), make_run("y", method=HOSTILE, epochs=2)]
    comparison = compare_runs(runs)
    html = comparison.write_html(tmp_path / "c.html").read_text(encoding="utf-8")
    assert "<script" not in html
    assert "<i>x" not in html
    assert HOSTILE in texts(html)
    text = printed(comparison, width=200)
    assert "[red]<i>x" in text
    assert "[bold red]$x$[/]" in text


def test_nothing_to_compare_is_an_error():
    with pytest.raises(UserError, match="nothing to compare"):
        compare_runs([])


def test_a_folder_that_is_no_run_is_an_error(make_run, tmp_path):
    with pytest.raises(UserError, match=r"config\.yaml is missing"):
        compare_runs([make_run(), tmp_path])

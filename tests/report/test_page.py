import json
import re
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import pytest

from da2s_fast.errors import UserError
from da2s_fast.report import load_run, write_report
from da2s_fast.report.formatting import MISSING
from da2s_fast.report.verdict import judge

VOID = {"meta", "br"}


class Page(HTMLParser):
    """Elements and texts of a page; fails on tags that do not match."""

    def __init__(self, html):
        super().__init__()
        self.open, self.elements, self.texts, self.by_id = [], [], [], {}
        self.feed(html)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append((tag, dict(attrs).get("id")))

    def handle_startendtag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop()[0] == tag

    def handle_data(self, data):
        if self.open and self.open[-1][0] == "style":
            return
        self.texts.append(data)
        if self.open and self.open[-1][0] in ("td", "th"):
            data += " "
        for _, identity in self.open:
            if identity:
                self.by_id[identity] = self.by_id.get(identity, "") + data

    @property
    def text(self):
        return " ".join(" ".join(self.texts).split())

    def count(self, tag, css_class):
        return sum(
            t == tag and css_class in (a.get("class") or "").split() for t, a in self.elements
        )


def report(path):
    html = write_report(path).read_text(encoding="utf-8")
    return html, Page(html)


def squeezed(text):
    return " ".join(text.split())


def test_report_is_one_file_that_asks_for_nothing(make_run):
    html, page = report(make_run(epochs=3, weights=True))
    assert not re.findall(r"(?:https?:)?//\w", re.sub(r'xmlns(:\w+)?="[^"]*"', "", html))
    tags = {tag for tag, _ in page.elements}
    assert not tags & {"script", "link", "img", "iframe", "object", "image"}
    assert not re.findall(r"@import|url\((?!#)", html)
    assert ("default-src 'none'; style-src 'unsafe-inline'") in html


def test_every_drawing_is_well_formed(make_run):
    html, _ = report(make_run(epochs=3, weights=True))
    drawings = re.findall(r"<svg.*?</svg>", html, flags=re.DOTALL)
    # Two cells in two directions, four charts, 28 edges, and 4 nodes of each cell.
    assert len(drawings) == 4 + 4 + 28 + 8
    for drawing in drawings:
        ElementTree.fromstring(drawing)


def test_verdict_shows_the_accuracies_and_the_gap(make_run):
    _, page = report(make_run(accuracy=0.8123, gap=0.004, discrete=0.97))
    verdict = squeezed(page.by_id["verdict"])
    assert "The super-network is discrete; cutting it costs 0.4 points." in verdict
    for part in ("81.2 %", "80.8 %", "0.4 points", "smallest p: 0.970", "mean kept β: 1.00"):
        assert part in verdict
    assert verdict.count("✓") == 2
    table = squeezed(page.by_id["accuracies"])
    assert "architecture images 81.2 % 80.8 % 0.4" in table
    assert "test images 79.2 % 78.3 % 0.9" in table
    assert page.count("section", "good") == 1


@pytest.mark.parametrize(
    ("options", "sentence", "checks", "tone"),
    [
        ({"gap": 0.004}, "is discrete; cutting it costs 0.4 points", (True, True), "good"),
        ({"gap": -0.003}, "is discrete; cutting it gains 0.3 points", (True, True), "good"),
        ({"gap": 0.03}, "is discrete; cutting it costs 3.0 points", (True, True), "fair"),
        ({"method": "darts"}, "is discrete; cutting it costs 1.0 points", (True, None), "good"),
        (
            {"discrete": 0.3, "gap": 0.47},
            "is not discrete; cutting it costs 47.0 points",
            (False, True),
            "bad",
        ),
        ({"discrete": 0.9}, "is not discrete; cutting it costs 1.0", (False, True), "fair"),
        ({"summary": {"kept_p": 0.49}}, "is not discrete; cutting", (False, True), "fair"),
        ({"summary": {"kept_beta": 0.8}}, "is not discrete; cutting", (True, False), "fair"),
        ({"summary": {"search": None}}, "gap has not been measured yet", (True, True), "fair"),
        (
            {"metrics": {"kept_p": None}, "summary": {"kept_p": None}},
            "Whether the super-network is discrete was not recorded; cutting it costs 1.0",
            (None, True),
            "fair",
        ),
    ],
)
def test_verdict_by_discreteness(make_run, options, sentence, checks, tone):
    verdict = judge(load_run(make_run(**options)))
    assert sentence in verdict.sentence
    assert tuple(check.passed for check in verdict.checks) == checks
    assert verdict.tone == tone


def test_genotype_and_commands(make_run, monkeypatch, tmp_path):
    path = make_run("my run")
    monkeypatch.chdir(tmp_path)
    html, page = report(path)
    assert page.by_id["genotype"] == (path / "genotype.txt").read_text().strip()
    assert "da2s retrain 'my run'" in page.text
    assert html.count("Unchanged since epoch 1.") == 1


def test_unfinished_run_says_so_and_how_to_go_on(make_run, monkeypatch, tmp_path):
    path = make_run(epochs=3, finished=False, config={"epochs": 50})
    monkeypatch.chdir(tmp_path)
    _, page = report(path)
    assert "This search has not finished." in page.text
    assert "epochs 3 of 50" in page.text
    assert "da2s search --resume run" in page.text
    assert "da2s retrain" not in page.text


def test_warnings_settings_and_epochs_are_listed(make_run):
    path = make_run(epochs=2, summary={"warnings": ["Skips take over.", "Not discrete."]})
    _, page = report(path)
    assert squeezed(page.by_id["warnings"]) == "Warnings Skips take over. Not discrete."
    assert "keep.normal 2, 2, 2, 2" in page.text
    assert "second_order no" in page.text
    rows = page.by_id["epochs"].strip().splitlines()
    assert len([row for row in rows if row.strip()]) == 3


def test_one_epoch(make_run):
    _, page = report(make_run(epochs=1))
    assert "epochs 1 " in page.text


def test_no_epoch_yet(make_run):
    path = make_run(epochs=0, finished=False, config={"epochs": 9})
    (path / "metrics.jsonl").write_text("")
    _, page = report(path)
    assert "epochs 0 of 9" in page.text
    assert "No architecture has been recorded yet." in page.text


def test_missing_optional_values_leave_gaps(make_run):
    names = ["arch_loss", "operation_entropy", "edge_loss", "accuracy_super_bn", "accuracy_cut_bn"]
    names += ["kept_beta", "lr", "seconds"]
    path = make_run(metrics=dict.fromkeys(names), summary={"kept_beta": None, "test": None})
    _, page = report(path)
    assert "Operation weights" not in page.text
    assert "Edge weights" not in page.text
    assert "Terms of the discretization loss" not in page.text
    assert "BN re-estimated" not in page.text.split("Details")[0].split("epoch by epoch")[1]
    assert f"test images {MISSING} {MISSING} {MISSING}" in squeezed(page.by_id["accuracies"])


def test_nas_bench_201_has_one_cell_and_no_edge_weights(make_run):
    _, page = report(make_run(space="nas-bench-201", weights=True))
    assert page.count("svg", "cell") == 2
    assert page.count("svg", "upright") == 1
    assert "Reduction cell" not in page.text
    assert page.count("section", "operation-weights") == 1
    assert page.count("section", "edge-weights") == 0
    assert "Strength of the kept edges: not used by this method" in page.text
    # All six edges are kept, one of them with the operation none.
    assert page.count("figure", "kept") == 6


def test_imbalanced_cells_mark_the_kept_edges(make_run):
    _, page = report(make_run(genotype="imbalanced", weights=True))
    assert page.count("figure", "kept") == 18
    assert page.count("figure", "dropped") == 10


def test_genotype_that_cannot_be_read_leaves_the_rest(make_run):
    _, page = report(make_run(genotype="Genotype(normal=[('no_such_op', 0)])", weights=True))
    assert "The cells are not drawn: " in page.text
    assert "no_such_op" in page.text
    assert page.count("svg", "cell") == 0
    assert page.count("section", "operation-weights") == 2


HOSTILE = "<script>alert('x')</script><img src=x onerror=alert(1)>&amp;\"{{ 7*7 }}"


def test_hostile_strings_are_text_everywhere(make_run):
    operations = [HOSTILE, "$\\frac{", "sep_conv_3x3", "skip_connect", "a", "b", "</style>"]
    path = make_run(
        "<b>run",
        genotype=HOSTILE,
        weights=True,
        epochs=2,
        method=HOSTILE,
        config={"data": HOSTILE, HOSTILE: HOSTILE, "operations": operations},
        summary={"warnings": [HOSTILE], "method": HOSTILE},
    )
    _, page = report(path)
    tags = {tag for tag, _ in page.elements}
    assert not tags & {"script", "img", "b"}
    assert not [a for _, attrs in page.elements for a in attrs if a.startswith("on")]
    # Name and value of the setting, data, method, operation, warning, genotype and its error.
    assert page.text.count(HOSTILE) >= 7
    assert "49" not in page.by_id["genotype"]


def test_text_that_utf8_cannot_write_does_not_stop_the_page(make_run):
    _, page = report(make_run(summary={"warnings": ["half a pair: \ud800."]}))
    assert "half a pair: ?." in page.text


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"operations": ["a"]}, "weights of 7 operations, config.yaml names 1"),
        ({"nodes": 3}, "14 edges of the normal cell, config.yaml says 9"),
        ({"space": "marsian"}, "unknown search space 'marsian'"),
        ({"space": ["da2s"]}, "unknown search space"),
    ],
)
def test_settings_that_contradict_the_metrics_are_an_error(make_run, change, message):
    with pytest.raises(UserError, match=message):
        write_report(make_run(config=change, weights=True))


def test_weights_that_change_shape_are_an_error(make_run):
    path = make_run(epochs=2, weights=True)
    lines = (path / "metrics.jsonl").read_text().splitlines()
    last = json.loads(lines[1])
    last["p"]["normal"] = last["p"]["normal"][:3]
    (path / "metrics.jsonl").write_text(lines[0] + "\n" + json.dumps(last) + "\n")
    with pytest.raises(UserError, match=r"p.normal changes from \(14, 7\) to \(3, 7\) in epoch 2"):
        write_report(path)


def test_a_page_that_cannot_be_written_is_an_error_and_leaves_no_rest(make_run):
    path = make_run()
    (path / "report.html").mkdir()
    with pytest.raises(UserError, match=r"report\.html cannot be written"):
        write_report(path)
    assert not list(path.glob(".report*"))


def test_the_same_run_gives_the_same_page(make_run):
    path = make_run()
    assert report(path)[0] == report(Path(path))[0]


def test_the_page_shows_the_size_of_the_derived_network(make_run):
    html = write_report(make_run()).read_text(encoding="utf-8")
    (facts,) = re.findall(r'<dl class="facts" id="derived">.*?</dl>', html, re.DOTALL)
    assert re.findall(r"<d[td]>(.*?)</d[td]>", facts) == [
        *("derived network", "16 channels, 8 cells"),
        *("parameters", "276 k"),
        *("multiply-adds", "41.5 M"),
    ]
    # Searches of an earlier version did not record it.
    old = write_report(make_run("old", summary={"derived": None})).read_text(encoding="utf-8")
    assert 'id="derived"' not in old


def test_a_damaged_size_is_named(make_run):
    with pytest.raises(UserError, match=r"summary.json, derived: expected an object"):
        write_report(make_run(summary={"derived": 3}))

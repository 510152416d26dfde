import json
import math

import numpy as np
import pytest

from da2s_fast.errors import UserError
from da2s_fast.report import load_run


def test_reads_what_a_search_wrote(make_run):
    record = load_run(make_run(epochs=4, seed=7, accuracy=0.8, gap=0.25, weights=True))
    assert (record.name, record.method, record.planned_epochs) == ("run", "da2s", 4)
    assert [epoch.epoch for epoch in record.epochs] == [1, 2, 3, 4]
    assert record.epochs[-1].p["normal"].shape == (14, 7)
    assert record.epochs[-1].edge_weights["reduce"].shape == (14,)
    assert record.accuracies("search").gap == pytest.approx(0.25)
    assert record.accuracies("search").gap_bn == pytest.approx(0.125)
    assert record.accuracies("test").super == pytest.approx(0.78)
    assert record.seconds == 10.0
    assert record.finished
    assert record.warnings == ()


def test_without_summary_the_last_epoch_counts(make_run):
    record = load_run(make_run(epochs=3, accuracy=0.6, gap=0.1, finished=False))
    assert not record.finished
    assert record.accuracies("search").super == 0.6
    assert record.accuracies("search").cut == pytest.approx(0.5)
    assert record.accuracies("test").super is None
    assert record.accuracies("test").gap is None
    assert record.seconds == 7.5
    assert record.genotype == record.epochs[-1].genotype


@pytest.mark.parametrize("removed", [1, 40, 500])
def test_torn_last_line_is_left_out_and_noted(make_run, removed):
    path = make_run(epochs=3, finished=False)
    metrics = path / "metrics.jsonl"
    metrics.write_text(metrics.read_text().rstrip("\n")[:-removed])
    record = load_run(path)
    assert [epoch.epoch for epoch in record.epochs] == [1, 2]
    assert "incomplete" in record.warnings[0]


def test_damage_before_the_end_is_an_error_with_its_line(make_run):
    path = make_run(epochs=3)
    lines = (path / "metrics.jsonl").read_text().splitlines()
    lines[1] = lines[1][:50]
    (path / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    with pytest.raises(UserError, match=r"metrics\.jsonl, line 2 is damaged"):
        load_run(path)


def test_the_later_record_of_an_epoch_counts(make_run):
    path = make_run(epochs=2)
    again = json.loads((path / "metrics.jsonl").read_text().splitlines()[0])
    with (path / "metrics.jsonl").open("a") as file:
        file.write(json.dumps(again | {"train_loss": 123.0}) + "\n")
    record = load_run(path)
    assert [epoch.epoch for epoch in record.epochs] == [1, 2]
    assert record.epochs[0]["train_loss"] == 123.0


def test_null_nan_and_infinity_are_values_not_taken(make_run):
    path = make_run(
        epochs=1,
        metrics={"arch_loss": None, "train_loss": math.nan, "edge_loss": math.inf},
        summary={"kept_beta": None, "mean_max_p": None},
    )
    record = load_run(path)
    assert [record.epochs[0][k] for k in ("arch_loss", "train_loss", "edge_loss")] == [None] * 3
    assert np.isnan(record.series("train_loss")).all()
    assert record.epochs[0].p == {}
    assert record.last("kept_beta") == record.epochs[0]["kept_beta"]


def test_a_missing_folder_is_named(tmp_path):
    with pytest.raises(UserError, match="nowhere is not a run folder"):
        load_run(tmp_path / "nowhere")


@pytest.mark.parametrize("name", ["config.yaml", "metrics.jsonl"])
def test_a_missing_file_is_named(make_run, name):
    path = make_run()
    (path / name).unlink()
    with pytest.raises(UserError, match=f"{name} is missing"):
        load_run(path)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("config.yaml", b"a: [1\nb: 2", "config.yaml is damaged: it is not YAML at line 2"),
        ("config.yaml", b"- 1\n- 2", "expected settings by name"),
        ("config.yaml", b"!!python/object/apply:os.system [echo]", "is damaged: it is not YAML"),
        ("config.yaml", b"\xff\xfe\x00", "it is not UTF-8 text"),
        ("summary.json", b"{", "summary.json is damaged: it is not JSON"),
        ("summary.json", b"[]", "expected an object"),
        ("metrics.jsonl", b"[]\n", "line 1 is damaged: expected an object"),
        ("metrics.jsonl", b'{"epoch": 0}\n', "epoch must be a whole number from 1, got 0"),
        ("metrics.jsonl", b'{"epoch": true}\n', "got True"),
        ("metrics.jsonl", b'{"epoch": 1, "lr": "x"}\n', "line 1, lr: expected a number"),
        ("metrics.jsonl", b'{"epoch": 1, "p": [1]}\n', "p: expected lists by cell kind"),
        ("metrics.jsonl", b'{"epoch": 1, "p": {"normal": [[1], [1, 2]]}}\n', "2-dimensional"),
        ("metrics.jsonl", b'{"epoch": 1, "edge_weights": {"normal": 1}}\n', "1-dimensional"),
        ("metrics.jsonl", b"[" * 100_000 + b"\n", "line 1 is damaged"),
    ],
)
def test_a_corrupt_file_gets_one_sentence(make_run, name, content, message):
    path = make_run()
    (path / name).write_bytes(content)
    with pytest.raises(UserError, match=message) as raised:
        load_run(path)
    assert "\n" not in str(raised.value)


def test_summary_with_a_wrong_value_is_an_error(make_run):
    record = load_run(make_run(summary={"search": {"super": "high"}, "test": 3}))
    with pytest.raises(UserError, match=r"search\.super: expected a number or null, got 'high'"):
        record.accuracies("search")
    with pytest.raises(UserError, match="test: expected an object of accuracies, got 3"):
        record.accuracies("test")

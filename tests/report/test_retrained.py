"""Trainings from scratch beside the searches that they belong to."""

import pytest

from da2s_fast.errors import UserError
from da2s_fast.report import compare_runs
from tests.report.conftest import GENOTYPES, build_training


def retrained(*paths):
    return [row.values["retrained"] for row in compare_runs(paths).rows]


def test_a_training_beside_the_search_or_in_its_folder_counts(make_run, tmp_path):
    beside, within, without = make_run("a"), make_run("sub/b"), make_run("sub2/c")
    build_training(tmp_path / "trained", 0.9)
    build_training(within / "retrain", 0.8)
    assert retrained(beside, within, without) == [0.9, 0.8, None]


def test_only_finished_ones_of_the_same_genotype_and_data_count(make_run, tmp_path):
    run = make_run()
    build_training(tmp_path / "other", 0.1, genotype=GENOTYPES["imbalanced"])
    build_training(tmp_path / "elsewhere", 0.2, summary={"data": "cifar10"})
    build_training(tmp_path / "unfinished", 0.3, finished=False)
    build_training(tmp_path / "diverged", 0.4, summary={"test_accuracy": float("nan")})
    build_training(tmp_path / "foreign", 0.5, summary={"test_accuracy": None})
    (build_training(tmp_path / "torn", 0.6) / "summary.json").write_text("{")
    (tmp_path / "a file").write_text("")
    assert retrained(run) == [None]
    build_training(tmp_path / "right", 0.7)
    assert retrained(run) == [0.7]
    assert retrained(make_run("unfinished search", finished=False)) == [None]


def test_the_longest_trainings_count_with_their_mean(make_run, tmp_path):
    run = make_run()
    build_training(tmp_path / "short", 0.5, epochs=10)
    build_training(tmp_path / "seed0", 0.9, epochs=100)
    build_training(tmp_path / "seed1", 0.8, epochs=100)
    assert retrained(run) == [pytest.approx(0.85)]


def test_trainings_among_the_folders_are_no_runs_and_may_lie_anywhere(make_run, tmp_path):
    run = make_run("searches/run")
    training = build_training(tmp_path / "far" / "away", 0.9)
    assert retrained(run) == [None]
    assert retrained(training, run) == [0.9]
    with pytest.raises(UserError, match="of a search"):
        compare_runs([training])


def test_trainings_that_count_nowhere_are_said(make_run, tmp_path):
    run = make_run("searches/run")
    right = build_training(tmp_path / "right", 0.9)
    unfinished = build_training(tmp_path / "not yet", 0.9, finished=False)
    other = build_training(tmp_path / "other", 0.1, genotype=GENOTYPES["imbalanced"])
    assert compare_runs([run, right]).notes == ()
    first, second = compare_runs([run, unfinished, right, other]).notes
    assert f"continue it with da2s retrain --resume '{unfinished}'" in first
    assert str(other) in second
    assert "no search" in second

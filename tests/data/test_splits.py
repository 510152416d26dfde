import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from da2s_fast.data import load_data, split_train
from da2s_fast.data.splits import hold_out, stratified_subset
from da2s_fast.errors import UserError

LABELS = st.lists(st.integers(0, 5), min_size=2, max_size=80).map(
    lambda values: np.unique(values, return_inverse=True)[1].astype(np.int64)
)


@pytest.fixture(scope="module")
def digits():
    return load_data("digits")


@given(labels=LABELS, data=st.data())
def test_subset_is_stratified(labels, data):
    counts = np.bincount(labels)
    total = data.draw(st.integers(len(counts), len(labels)))
    rows = stratified_subset(labels, total)
    assert len(rows) == total
    assert (np.diff(rows) > 0).all()
    assert np.array_equal(rows, stratified_subset(labels, total))
    chosen = np.bincount(labels[rows], minlength=len(counts))
    assert chosen.min() >= 1
    # One image each, then in proportion to what is left, to within one image.
    spare = counts - 1
    exact = 1 + spare * (total - len(counts)) / max(1, spare.sum())
    assert np.abs(chosen - exact).max() < 1


def test_of_equal_classes_the_first_get_the_images_left_over():
    rows = stratified_subset(np.repeat(np.arange(100), 5), 330)
    assert np.bincount(rows // 5).tolist() == [4] * 30 + [3] * 70


@given(labels=LABELS, fraction=st.floats(0.01, 0.9))
def test_holding_out_keeps_every_class_in_training(labels, fraction):
    classes = len(np.unique(labels))
    if classes == len(labels):
        with pytest.raises(UserError, match="none to test on"):
            hold_out(labels, fraction)
        return
    train, test = hold_out(labels, fraction)
    assert np.array_equal(np.sort(np.concatenate([train, test])), np.arange(len(labels)))
    assert len(np.unique(labels[train])) == classes
    assert len(test) == min(max(1, round(fraction * len(labels))), len(labels) - classes)


@given(fraction=st.floats(0.01, 0.99), seed=st.integers(-(2**63), 2**63 - 1))
def test_split_of_the_training_set(digits, fraction, seed):
    first, second = split_train(digits, fraction, seed)
    assert len(first) == round(fraction * 1438)
    assert torch.equal(torch.cat([first, second]).sort().values, torch.arange(1438))
    counts = torch.bincount(digits.train_labels)
    chosen = torch.bincount(digits.train_labels[first], minlength=10)
    assert (chosen - counts * len(first) / 1438).abs().max() < 1
    assert torch.equal(first, split_train(digits, fraction, seed)[0])


def test_seed_decides_the_split(digits):
    first = split_train(digits, 0.5, 0)[0]
    assert not torch.equal(first, split_train(digits, 0.5, 1)[0])


def test_the_split_is_the_same_on_every_machine(digits):
    # numpy keeps the stream of RandomState for ever; runs must stay comparable.
    assert split_train(digits, 0.5, 0)[0][:8].tolist() == [1, 3, 7, 10, 13, 14, 15, 16]


@pytest.mark.parametrize("fraction", [0.0, 1.0, -0.1, 1.5, float("nan")])
def test_fraction_outside_0_to_1_is_refused(digits, fraction):
    with pytest.raises(UserError, match=r"share in \(0, 1\)"):
        split_train(digits, fraction, 0)


def test_empty_part_is_refused(digits):
    with pytest.raises(UserError, match="one part empty"):
        split_train(digits, 0.0001, 0)


def test_limit_below_the_number_of_classes_is_refused():
    with pytest.raises(UserError, match="limit=9 is below the 10 classes"):
        load_data("digits", limit=9)
    with pytest.raises(UserError, match="limit=0"):
        load_data("digits", limit=0)


def test_limit_takes_train_and_test_in_proportion():
    data = load_data("digits", limit=500)
    assert (len(data.train_labels), len(data.test_labels)) == (500, 125)
    assert torch.bincount(data.train_labels).min() >= 48
    assert len(load_data("digits", limit=10).test_labels) == 10
    assert len(load_data("digits", limit=10**9).train_labels) == 1438

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from metrics_cases import rows
from sklearn.metrics import roc_auc_score
from sklearn.metrics import roc_curve as sklearn_roc_curve

from srsjax.metrics.auc import auc, gauc, roc_curve


def reference(scores, labels, weights):
    """All pairs, as the formula says."""
    positive, negative = weights * labels, weights * (1 - labels)
    won = (scores[:, None] > scores) + 0.5 * (scores[:, None] == scores)
    pairs = positive.sum() * negative.sum()
    return positive @ won @ negative / pairs if pairs > 0 else math.nan


@given(rows())
def test_auc_is_the_sum_over_all_pairs(case):
    assert auc(*case[:3]) == pytest.approx(reference(*case[:3]), abs=1e-12, nan_ok=True)


@given(rows(labels=(0.0, 1.0)))
def test_auc_of_hard_labels_is_scikit_learns(case):
    kept = case.counted()
    if len(set(kept.labels)) == 2:
        expected = roc_auc_score(kept.labels, kept.scores, sample_weight=kept.weights)
        assert auc(*case[:3]) == pytest.approx(expected, abs=1e-12)


@given(st.lists(st.tuples(st.integers(-3, 3), st.integers(0, 4), st.integers(0, 6)), min_size=1, max_size=20))
def test_aggregated_counts_give_the_auc_of_the_expanded_rows(arms):
    scores, clicks, others = (np.array(column, float) for column in zip(*arms, strict=True))
    shown = clicks + others
    rates = np.divide(clicks, shown, out=np.zeros_like(clicks), where=shown > 0)
    expanded = np.repeat(scores, shown.astype(int))
    hard = np.concatenate([[1.0] * int(c) + [0.0] * int(o) for c, o in zip(clicks, others, strict=True)])
    expected = auc(expanded, hard, np.ones(len(hard)))
    # clicks / shown * shown rounds, so the masses are whole numbers only to about 1e-16 relative.
    assert auc(scores, rates, shown) == pytest.approx(expected, abs=1e-12, nan_ok=True)


@pytest.mark.parametrize(
    "labels, weights",
    [([1, 1], [1, 1]), ([0, 0], [1, 2]), ([0, 1], [1, 0]), ([0, 1], [0, 0]), ([], [])],
    ids=["positives", "negatives", "other class of weight 0", "no weight", "no rows"],
)
def test_one_class_has_no_auc(labels, weights):
    labels, weights = np.array(labels, float), np.array(weights, float)
    assert math.isnan(auc(np.arange(len(labels)), labels, weights))
    value, groups, _ = gauc(np.arange(len(labels)), labels, weights, np.zeros(len(labels), np.int64))
    assert math.isnan(value) and groups == 0


@given(rows())
def test_gauc_weights_groups_by_their_weight_and_leaves_out_one_class(case):
    parts = [(reference(*group[:3]), group.weights.sum()) for group in case.by_group()]
    both = [(area, weight) for area, weight in parts if not math.isnan(area)]
    total = sum(weight for _, weight in both)
    found = gauc(*case)
    expected = sum(area * weight for area, weight in both) / total if both else math.nan
    assert found.value == pytest.approx(expected, abs=1e-12, nan_ok=True)
    assert found.groups == len(both)
    all_weight = case.weights.sum()
    assert found.covered == pytest.approx(total / all_weight if all_weight else math.nan, nan_ok=True)


@given(rows(), st.integers(0, 99))
def test_order_of_rows_does_not_matter(case, seed):
    assert auc(*case.permuted(seed)[:3]) == pytest.approx(auc(*case[:3]), abs=1e-12, nan_ok=True)
    assert gauc(*case.permuted(seed)) == pytest.approx(gauc(*case), abs=1e-12, nan_ok=True)


def test_gauc_keeps_small_groups_beside_a_heavy_one():
    # Group 0 has one class and 1e15 of weight, next to which a float64 holds nothing below 0.1: it must not blur the
    # groups after it, of weight 0.002 each and in perfect order.
    heavy = np.random.default_rng(0).uniform(0.5e12, 1.5e12, 1001)
    groups = np.concatenate([np.zeros(1001, np.int64), np.repeat(np.arange(1, 1001), 2)])
    weights = np.concatenate([heavy, np.full(2000, 1e-3)])
    scores = np.concatenate([np.arange(1001.0), np.tile([0.0, 1.0], 1000)])
    labels = np.concatenate([np.zeros(1001), np.tile([0.0, 1.0], 1000)])
    found = gauc(scores, labels, weights, groups)
    assert found.value == pytest.approx(1, abs=1e-12) and found.groups == 1000


@given(rows(labels=(0.0, 1.0)))
def test_roc_curve_is_scikit_learns(case):
    kept = case.counted()
    if len(set(kept.labels)) == 2:
        false, true, _ = sklearn_roc_curve(
            kept.labels, kept.scores, sample_weight=kept.weights, drop_intermediate=False
        )
        found = roc_curve(*case[:3])
        np.testing.assert_allclose(found, [false, true], atol=1e-12)
        assert np.trapezoid(found[1], found[0]) == pytest.approx(auc(*case[:3]), abs=1e-12)


def test_nan_and_columns_of_different_length_are_refused():
    ones = np.ones(3)
    with pytest.raises(ValueError, match="1 NaN in 3 rows"):
        auc(np.array([0, np.nan, 1]), ones, ones)
    with pytest.raises(ValueError, match="expected 3 rows as in weights, found a column of 2"):
        auc(np.ones(2), ones, ones)
    assert auc(np.array([0, np.nan, 1]), np.array([0, 1, 1]), np.array([1, 0, 1])) == 1  # a row that does not count

import math

import numpy as np
import pytest
import sklearn.metrics
from hypothesis import given
from hypothesis import strategies as st
from metrics_cases import rows

from srsjax.metrics.calibration import calibration_bins, ece, log_loss, logit, normalized_entropy, sigmoid


@given(rows())
def test_log_loss_is_scikit_learns(case):
    if case.weights.sum():
        split = case.split_labels()
        expected = sklearn.metrics.log_loss(split.labels, 1 / (1 + np.exp(-split.scores)), sample_weight=split.weights)
        assert log_loss(*case[:3]) == pytest.approx(expected, abs=1e-12)
    else:
        assert math.isnan(log_loss(*case[:3]))


def test_log_loss_of_extreme_logits_neither_overflows_nor_vanishes():
    one = np.ones(1)
    assert log_loss(np.array([-1000.0]), one, one) == 1000
    assert log_loss(np.array([1000.0]), one, one) == 0
    # log(1 + e^-50) = e^-50 to first order; the form softplus(x) - x y would give 0.
    assert log_loss(np.array([50.0]), one, one) == pytest.approx(math.exp(-50), rel=1e-9)


@given(rows())
def test_normalized_entropy_compares_with_the_mean_label(case):
    kept = case.counted()
    found = normalized_entropy(*case[:3])
    mass = kept.weights.sum()
    mean = kept.weights @ kept.labels / mass if mass else 0
    if 0 < mean < 1:
        constant = np.full(len(case.scores), math.log(mean / (1 - mean)))
        assert normalized_entropy(constant, *case[1:3]) == pytest.approx(1, abs=1e-12)
        assert found == pytest.approx(log_loss(*case[:3]) / log_loss(constant, *case[1:3]), rel=1e-12)
    else:
        assert math.isnan(found)


def reference_ece(probabilities, labels, weights, bins):
    """One distinct probability after the other, from the smallest on."""
    total, before, sums = weights.sum(), 0.0, {}
    for p in sorted(set(probabilities)):
        same = probabilities == p
        mass = weights[same].sum()
        if mass > 0:
            number = min(int(bins * (before + mass / 2) / total), bins - 1)
            gap = weights[same] @ (labels[same] - p)
            sums[number] = sums.get(number, 0.0) + gap
            before += mass
    return sum(abs(gap) for gap in sums.values()) / total


@given(rows(), st.integers(1, 20))
def test_ece_is_the_gap_in_bins_of_equal_mass(case, bins):
    probabilities = (case.scores + 2) / 4
    if case.weights.sum():
        expected = reference_ece(probabilities, *case[1:3], bins)
        assert ece(probabilities, *case[1:3], bins) == pytest.approx(expected, abs=1e-12)
    else:
        assert math.isnan(ece(probabilities, *case[1:3], bins))


def test_ece_by_hand():
    probabilities, labels = np.array([0.1, 0.1, 0.6, 0.8]), np.array([0, 1, 1, 0.0])
    # Two bins of two rows: |1/2 - 0.1| and |1/2 - 0.7|, each with half of the weight.
    assert ece(probabilities, labels, np.ones(4), bins=2) == pytest.approx((0.4 + 0.2) / 2)


def test_bins_hold_equal_mass_even_where_all_probabilities_are_small():
    random = np.random.default_rng(0)
    probabilities = random.uniform(0.001, 0.03, 15_000)
    binned = calibration_bins(probabilities, random.random(15_000) < probabilities, np.ones(15_000))
    np.testing.assert_array_equal(binned.weight, np.full(15, 1000))
    assert np.all(np.diff(binned.predicted) > 0)


@given(rows(weights=(0.0, 1.0, 2.0, 5.0)), st.integers(0, 99))
def test_order_of_rows_and_repeated_rows_do_not_matter(case, seed):
    repeated = [np.repeat(column, case.weights.astype(int)) for column in case]
    repeated[2] = np.ones(len(repeated[0]))
    for metric, scores in ((log_loss, np.asarray), (normalized_entropy, np.asarray), (ece, sigmoid)):
        found = metric(scores(case.scores), *case[1:3])
        for other in (case.permuted(seed), repeated):
            assert metric(scores(other[0]), *other[1:3]) == pytest.approx(found, abs=1e-12, nan_ok=True)


@given(st.floats(-20, 20))
def test_logit_is_the_inverse_of_sigmoid(x):
    # A float64 next to 1 - 2e-9 holds 1 - p to about 1e-16, so the logit to about 1e-7.
    assert logit(sigmoid(np.array([x])))[0] == pytest.approx(x, abs=1e-6)


def test_sigmoid_and_logit_stay_finite():
    np.testing.assert_array_equal(sigmoid(np.array([-1e4, 0, 1e4])), [0, 0.5, 1])
    assert np.all(np.isfinite(logit(np.array([0, 1], np.float32))))

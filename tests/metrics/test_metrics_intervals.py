"""Intervals beside the double loop of DeLong, SciPy's bootstrap, and what simulated data sets show."""

from __future__ import annotations

import time

import numpy as np
import pytest
import scipy.stats
from hypothesis import given
from hypothesis import strategies as st
from metrics_cases import rows

from srsjax.metrics import intervals, report
from srsjax.metrics.auc import auc
from srsjax.metrics.calibration import sigmoid
from srsjax.metrics.intervals import area, differences, spreads
from srsjax.metrics.table import Candidates


def candidates(logits, labels, weights=None, groups=None, users=None) -> Candidates:
    m = len(labels)
    return Candidates(
        np.asarray(logits, float),
        np.asarray(labels, float),
        np.ones(m) if weights is None else weights,
        np.arange(m) if groups is None else groups,
        np.arange(m) if users is None else users,
        None,
        0.5,
        10,
    )


def slow_delong(models, labels):
    """Covariance [S, S] of the AUCs of S models, by pairs of rows (DeLong et al. 1988, equations 4 to 7)."""
    parts = []
    for scores in models:
        x, y = scores[labels == 1], scores[labels == 0]
        wins = (x[:, None] > y[None, :]) + (x[:, None] == y[None, :]) / 2
        parts.append((wins.mean(1), wins.mean(0)))
    positive, negative = (np.cov(np.stack(each), ddof=1) for each in zip(*parts, strict=True))
    return np.atleast_2d(positive) / (labels == 1).sum() + np.atleast_2d(negative) / (labels == 0).sum()


@given(st.integers(0, 10**6), st.booleans())
def test_variance_is_delongs_by_pairs(seed, ties):
    rng = np.random.default_rng(seed)
    labels = rng.permutation(np.r_[np.ones(rng.integers(2, 15)), np.zeros(rng.integers(2, 30))])
    models = rng.integers(0, 4, (2, len(labels))).astype(float) if ties else rng.normal(labels, 1, (2, len(labels)))
    first, second = (area(scores, labels, np.ones(len(labels))) for scores in models)
    expected = slow_delong(models, labels)
    assert first.value == pytest.approx(auc(models[0], labels, np.ones(len(labels))), abs=1e-12)
    assert first.variance == pytest.approx(expected[0, 0], abs=1e-12)
    paired = expected[0, 0] + expected[1, 1] - 2 * expected[0, 1]
    assert (first - second).variance == pytest.approx(paired, abs=1e-12)


def slow_obuchowski(scores, labels, users):
    """Obuchowski 1997, equations 3 to 5, a user at a time."""
    x, y = scores[labels == 1], scores[labels == 0]
    wins = (x[:, None] > y[None, :]) + (x[:, None] == y[None, :]) / 2
    value, m, n = wins.mean(), len(x), len(y)
    of_x, of_y = users[labels == 1], users[labels == 0]
    a = np.array([(wins.mean(1)[of_x == u] - value).sum() for u in np.unique(users)])
    b = np.array([(wins.mean(0)[of_y == u] - value).sum() for u in np.unique(users)])
    i10, i01, i = len(np.unique(of_x)), len(np.unique(of_y)), len(np.unique(users))
    return i10 / ((i10 - 1) * m * m) * a @ a + i01 / ((i01 - 1) * n * n) * b @ b + 2 * i / ((i - 1) * m * n) * a @ b


@given(st.integers(0, 10**6))
def test_variance_of_clustered_rows_is_obuchowskis(seed):
    rng = np.random.default_rng(seed)
    users = rng.integers(0, 12, 60)
    labels = (rng.random(60) < 0.4).astype(float)
    labels[:4], users[:4] = [1, 1, 0, 0], [0, 1, 0, 1]
    scores = np.round(rng.normal(labels + np.random.default_rng(1).normal(size=12)[users]), 1)
    found = area(scores, labels, np.ones(60), users * 1000)
    assert found.variance == pytest.approx(slow_obuchowski(scores, labels, users), abs=1e-12)


@given(rows(weights=(1.0, 2.0, 3.0), labels=(0.0, 1.0)))
def test_a_row_of_weight_n_is_n_rows_of_its_user(case):
    if 0 < case.labels.mean() < 1:
        copies = [np.repeat(column, case.weights.astype(int)) for column in case]
        found = area(case.scores, case.labels, case.weights, case.groups)
        other = area(copies[0], copies[1], np.ones(len(copies[0])), copies[3])
        assert found.variance == pytest.approx(other.variance, abs=1e-12, nan_ok=True)


def simulated(seed, users=300, rows_each=10, effect=1.0):
    """Clicks whose log-odds and logits share a user's own part, so that rows of a user are far from independent."""
    rng = np.random.default_rng(seed)
    user = np.repeat(np.arange(users), rows_each)
    own, seen, hidden = rng.normal(0, effect, users)[user], rng.normal(size=len(user)), rng.normal(size=len(user))
    labels = (rng.random(len(user)) < sigmoid(own + seen + hidden - 0.5)).astype(float)
    return own + seen + 0.3 * rng.normal(size=len(user)), labels, user


def test_intervals_hold_the_truth_of_95_of_100_data_sets():
    """The truth is what 20,000 users give; 100 simulated users get intervals."""
    keys = ("auc", "log_loss", "ndcg@10", "accuracy")
    logits, labels, user = simulated(10**6, users=20_000, rows_each=20, effect=2.0)
    truth = report.evaluate(logits, labels, np.ones(len(user)), user, user)
    held, by_row = dict.fromkeys(keys, 0), 0
    for seed in range(200):
        logits, labels, user = simulated(seed, users=100, rows_each=20, effect=2.0)
        for key, (_, low, high) in intervals.intervals(
            spreads(candidates(logits, labels, groups=user, users=user), keys)
        ).items():
            held[key] += low <= truth[key] <= high
        _, low, high = area(logits, labels, np.ones(len(user))).interval()
        by_row += low <= truth["auc"] <= high
    # Of 200 intervals of 95 %, 180 to 199 hold the truth but once in a thousand times (binomial).
    assert all(180 <= count <= 199 for count in held.values()), held
    assert by_row < 175  # taking rows as independent promises too much


def test_resampled_intervals_are_scipys():
    rng = np.random.default_rng(0)
    predicted, labels = rng.normal(3, 1, 400), rng.normal(3, 1.5, 400)
    found = intervals.intervals(spreads(candidates(predicted, labels), ("mae", "rmse", "r2", "spearman")))
    metrics = {
        "mae": lambda p, y: np.abs(p - y).mean(),
        "rmse": lambda p, y: np.sqrt(((p - y) ** 2).mean()),
        "r2": lambda p, y: 1 - ((p - y) ** 2).sum() / ((y - y.mean()) ** 2).sum(),
        "spearman": lambda p, y: scipy.stats.spearmanr(p, y).statistic,
    }
    for key, metric in metrics.items():
        expected = scipy.stats.bootstrap(
            (predicted, labels), metric, paired=True, vectorized=False, n_resamples=1000, method="percentile", rng=rng
        ).confidence_interval
        assert found[key].value == pytest.approx(metric(predicted, labels), abs=1e-9)
        # A percentile of 1,000 draws has a standard error of 0.085 standard deviations; there are two.
        width = (expected.high - expected.low) / 3.92
        np.testing.assert_allclose([found[key].low, found[key].high], expected, atol=0.4 * width)


def test_every_metric_of_a_report_has_an_interval_around_it():
    rng = np.random.default_rng(0)
    logits, labels, user = simulated(0)
    groups, m = np.arange(len(user)) // 5, len(user)
    weights = rng.integers(50, 200, m).astype(float)
    rates = np.clip(sigmoid(logits + rng.normal(size=m)), 0.02, 0.98)
    classes, chosen = rng.normal(size=(m, 7)), rng.integers(0, 7, m).astype(float)
    cases = [
        (candidates(logits, labels, groups=groups, users=user), ("click", "ranking", "retrieval")),
        (candidates(logits, rates, weights, groups, user), ("click", "ranking")),
        (candidates(classes, chosen, users=user), ("class",)),
        (candidates(logits, logits + rng.normal(size=m), users=user), ("value",)),
    ]
    for of, families in cases:
        values = report.evaluate(of.logits, of.labels, of.weights, of.groups, of.users, families=families)
        found = intervals.intervals(spreads(of, values))
        shown = {key for key in values if report.row_of(key).shown in ("metric", "rate")}
        assert set(found) == shown
        for key, (value, low, high) in found.items():
            assert value == pytest.approx(values[key], abs=1e-9), key
            assert low < high and (key == "ece" or low <= value <= high), key


def test_a_paired_difference_is_far_surer_than_two_intervals():
    logits, labels, user = simulated(3)
    better = candidates(logits, labels, groups=user, users=user)
    worse = candidates(logits + 0.5 * np.random.default_rng(0).normal(size=len(user)), labels, groups=user, users=user)
    keys = ("auc", "log_loss", "ndcg@10")
    first, second = spreads(better, keys), spreads(worse, keys)
    apart = differences(first, second)
    for key in keys:
        alone = first[key].interval()
        assert intervals.is_sure(apart[key]) and apart[key].high - apart[key].low < 0.7 * (alone.high - alone.low)
    assert apart["auc"].value > 0 > apart["log_loss"].value
    same = differences(first, first)
    assert all(each == (0, 0, 0) and not intervals.is_sure(each) for each in same.values())


def test_many_users_are_put_together_and_a_million_rows_take_seconds():
    logits, labels, user = simulated(0, users=100_000)
    of = candidates(logits, labels, groups=user, users=user)
    started = time.monotonic()
    found = spreads(of, ("auc", "gauc", "log_loss", "ece", "ndcg@10", "mrr", "accuracy", "pairwise"))
    assert time.monotonic() - started < 60  # some 4 s of one free core
    losses = labels * np.logaddexp(0, -logits) + (1 - labels) * np.logaddexp(0, logits)
    error = losses.reshape(-1, 10).mean(1).std() / np.sqrt(100_000)
    # 1,000 draws know a standard deviation to 2.2 %, 4,000 clusters to 1.1 %.
    assert found["log_loss"].draws.std() == pytest.approx(error, rel=0.1)


def test_one_user_has_no_interval():
    rng = np.random.default_rng(0)
    one = candidates(rng.normal(size=20), rng.integers(0, 2, 20), users=np.zeros(20, int))
    assert spreads(one, ("auc", "log_loss")) == {}

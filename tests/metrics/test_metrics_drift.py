"""Drift beside SciPy, beside definitions as loops, and on samples that come from one distribution."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import scipy.special
import scipy.stats
from hypothesis import given
from hypothesis import strategies as st

from srsjax.metrics.drift import (
    FEWEST,
    GROUPS,
    Sample,
    chi_square_tail,
    compare,
    holm,
    kolmogorov_tail,
    ks,
    ks_tail,
    normal_tail,
    psi,
    quadratic_tail,
    sample,
)


@pytest.mark.parametrize("freedom", [0.7, 1, 2.5, 7, 40, 300.3, 3000])
def test_tails_are_those_of_scipy(freedom):
    for x in (0.0, 0.01, 1.0, freedom / 2, freedom, freedom * 1.5, freedom * 2 + 30, 500.0):
        expected = scipy.stats.chi2.sf(x, freedom)
        assert chi_square_tail(x, freedom) == pytest.approx(expected, rel=1e-8, abs=1e-11)
    for x in (0.0, 0.1, 0.25, 0.5, 1.0, 2.0, 4.0):
        assert kolmogorov_tail(x) == pytest.approx(scipy.special.kolmogorov(x), rel=1e-10, abs=1e-11)
        assert normal_tail(-x) == pytest.approx(2 * scipy.stats.norm.sf(x), rel=1e-12)


@given(st.lists(st.floats(0, 1), min_size=1, max_size=6))
def test_holm_is_bonferroni_of_all_subsets(values):
    """The closed test: a hypothesis goes once every set of hypotheses with it in goes (Marcus et al. 1976)."""
    numbers = range(len(values))
    sets = [each for size in range(1, len(values) + 1) for each in itertools.combinations(numbers, size)]
    for number, found in enumerate(holm(values)):
        own = (min(len(each) * min(values[i] for i in each), 1.0) for each in sets if number in each)
        assert found == pytest.approx(max(own), abs=1e-12)


@given(st.integers(0, 10**6))
def test_psi_is_its_sum(seed):
    rng = np.random.default_rng(seed)
    first, second = rng.integers(1, 50, (2, rng.integers(2, 9))).astype(float)
    p, q = (first + 0.5) / (first + 0.5).sum(), (second + 0.5) / (second + 0.5).sum()
    expected = sum((a - b) * np.log(a / b) for a, b in zip(p, q, strict=True))
    assert psi(first, second) == pytest.approx(expected, abs=1e-12)
    assert psi(first, first) == 0 and np.isfinite(psi(first, np.zeros_like(first)))


def test_independent_rows_are_compared_as_by_pearson():
    rng = np.random.default_rng(0)
    for shift in (0.0, 0.05):
        first, second = (
            np.bincount(rng.choice(5, n, p=[0.2 + s, 0.2 - s, 0.2, 0.2, 0.2]), minlength=5).astype(float)
            for n, s in ((800, 0.0), (500, shift))
        )
        expected = scipy.stats.chi2_contingency([first, second], correction=False).pvalue
        assert compare(Sample(first), Sample(second)).p == pytest.approx(expected, rel=1e-9)
    # Cells with too few rows go together, whatever their number: no test that many empty cells decide.
    rare = np.r_[first, np.ones(40)], np.r_[second, np.zeros(40)]
    together = [np.r_[each[:5], each[5:].sum()] for each in rare]
    expected = scipy.stats.chi2_contingency(together, correction=False).pvalue
    assert compare(*map(Sample, rare)).p == pytest.approx(expected, rel=1e-9)


@given(st.integers(0, 10**6), st.booleans())
def test_ks_is_that_of_scipy(seed, ties):
    rng = np.random.default_rng(seed)
    n, m = rng.integers(30, 200, 2)
    first, second = rng.normal(0, 1, n), rng.normal(rng.uniform(0, 1), 1, m)
    if ties:
        first, second = np.round(first), np.round(second)
    places, shares = np.unique(first), []
    for values in (first, second):
        ordered = np.sort(values)
        shares.append([np.searchsorted(ordered, places, side) / len(values) for side in ("right", "left")])
    found = ks(tuple(shares[0]), tuple(shares[1]))
    expected = scipy.stats.ks_2samp(first, second)
    assert found == pytest.approx(expected.statistic, abs=1e-12)
    samples = Sample(np.array([float(n)])), Sample(np.array([float(m)]))
    limit = scipy.stats.kstwobign.sf(expected.statistic * np.sqrt(n * m / (n + m)))
    assert ks_tail(found, *samples) == pytest.approx(limit, rel=1e-9, abs=1e-12)


def slow_effects(cell, cluster, cells):
    """Eigenvalues of the design effects, one cluster at a time, and the largest effect of a distribution function."""
    rows, names = len(cell), np.unique(cluster)
    shares = np.array([(cell == k).mean() for k in range(cells)])
    covariance = np.zeros((cells, cells))
    for name in names:
        own = cell[cluster == name]
        apart = np.array([(own == k).sum() for k in range(cells)]) - shares * len(own)
        covariance += np.outer(apart, apart)
    covariance *= len(names) / (len(names) - 1) / rows**2
    effects = covariance * rows / np.sqrt(np.outer(shares, shares))
    steps = np.tril(np.ones((cells, cells)))[:-1]
    below = steps @ shares
    return np.linalg.eigvalsh(effects), np.max(np.diag(steps @ covariance @ steps.T) * rows / (below * (1 - below)))


@given(st.integers(0, 10**6))
def test_design_effects_are_those_of_clusters_one_by_one(seed):
    rng = np.random.default_rng(seed)
    cluster = rng.integers(0, 50, 400)
    cell = np.where(rng.random(400) < 0.5, rng.integers(0, 5, 50)[cluster], rng.integers(0, 5, 400))
    values, step = slow_effects(cell, cluster, 5)
    found = sample(cell, cluster, 5)
    np.testing.assert_array_equal(found.counts, np.bincount(cell, minlength=5))
    assert found.excess == pytest.approx([np.sum(values**j) - 4 for j in (1, 2, 3)], rel=1e-9)
    assert found.step == pytest.approx(step, rel=1e-9)


def test_a_sum_of_chi_squares_has_the_tail_of_draws():
    weights = np.r_[6.0, 2.0, np.ones(20)] / 10
    draws = np.random.default_rng(0).chisquare(1, (400_000, len(weights))) @ weights
    powers = [np.sum(weights**j) for j in (1, 2, 3)]
    for share in (0.5, 0.1, 0.01):
        # Three moments are not the distribution: a fifth off at one in a hundred, of which draws are 2 % (2 errors).
        assert quadratic_tail(np.quantile(draws, 1 - share), powers) == pytest.approx(share, rel=0.2)
    assert quadratic_tail(1.0, [0.0, 0.0, 0.0]) == 1.0


def of_users(rng, users, shift=0.0):
    """Some rows of each user, a quarter of whom have cells of their own (a language) and each a favourite."""
    of = np.repeat(np.arange(users), rng.poisson(8, users) + 1)
    favourite = rng.integers(0, 20, users)[of]
    cell = np.where(rng.random(len(of)) < 0.3, favourite, rng.integers(0, 20, len(of)))
    cell = np.where(rng.random(len(of)) < shift, 0, cell)
    return cell + 20 * (rng.random(users) < 0.25)[of], of


def test_users_who_differ_are_no_drift_and_drift_is_found():
    p, plain, distances, excess = [], [], [], []
    for seed in range(400):
        rng = np.random.default_rng(seed)
        first, second = (sample(*of_users(rng, users), 40) for users in (300, 120))
        found = compare(first, second)
        p.append(found.p)
        excess.append(found.psi - found.chance)
        plain.append(compare(Sample(first.counts), Sample(second.counts)).p)
        shares = [np.cumsum(each.shares) for each in (first, second)]
        distances.append(ks_tail(float(np.max(np.abs(shares[0] - shares[1]))), first, second))
    # Of 400 draws 20 are below 0.05 by chance, with a standard deviation of 4.4.
    assert 6 <= np.sum(np.array(p) < 0.05) <= 38 and np.sum(np.array(distances) < 0.05) <= 34
    assert np.sum(np.array(plain) < 0.05) > 200  # as if rows were independent
    assert abs(np.median(excess)) < 0.02
    rng = np.random.default_rng(0)
    assert compare(sample(*of_users(rng, 300), 40), sample(*of_users(rng, 120, 0.2), 40)).p < 1e-6


def test_few_clusters_and_empty_samples_say_nothing():
    rng = np.random.default_rng(0)
    many = sample(rng.integers(0, 3, 500), np.arange(500), 3)
    few = sample(np.zeros(500, int), rng.integers(0, FEWEST - 1, 500), 3)
    assert compare(many, few).p == 1.0 and ks_tail(0.5, many, few) == 1.0
    none = sample(np.zeros(0, int), np.zeros(0, int), 3)
    assert compare(many, none).p == 1.0 and compare(none, none).p == 1.0
    # More clusters than are looked at: put together by lot, which changes the estimate by little.
    rows = rng.integers(0, 3, 5 * GROUPS)
    assert sample(rows, np.arange(len(rows)), 3).excess[0] == pytest.approx(0, abs=0.15)
    # A cell that one sample lacks is as uncertain as the others.
    first, second = np.array([2400.0, 0.0]), np.array([99_990.0, 10.0])
    expected = scipy.stats.chi2_contingency([first, second], correction=False).pvalue
    assert expected > 0.1 and compare(Sample(first), Sample(second)).p == pytest.approx(expected, rel=1e-9)

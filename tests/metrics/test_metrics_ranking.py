import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from metrics_cases import rows
from sklearn.metrics import ndcg_score

from srsjax.metrics.ranking import mrr, ndcg, top_1


def orders(scores):
    """All orders of rows, best first, that agree with the scores."""
    ties = [np.flatnonzero(scores == value) for value in sorted(set(scores), reverse=True)]
    return [
        list(itertools.chain(*chosen)) for chosen in itertools.product(*(itertools.permutations(tie) for tie in ties))
    ]


def dcg(labels, k):
    return sum((2**label - 1) / math.log2(rank + 1) for rank, label in enumerate(labels[:k], 1))


def expected_ndcg(group, k):
    best = dcg(sorted(group.labels, reverse=True), k)
    return np.mean([dcg(group.labels[order], k) / best for order in orders(group.scores)])


def expected_reciprocal_rank(group):
    return np.mean([1 / (1 + np.argmax(group.labels[order] >= 0.5)) for order in orders(group.scores)])


# Groups of up to six rows: every order of a tie can be listed.
SMALL = rows(labels=(0.0, 0.0, 0.3, 1.0, 2.0, 4.0), max_rows=6, max_groups=2)


@given(SMALL, st.integers(1, 7))
def test_ndcg_is_the_mean_over_all_orders_of_ties(case, k):
    groups = case.counted().by_group()
    values = [expected_ndcg(group, k) for group in groups if group.labels.max() > 0]
    found = ndcg(*case, k)
    assert found.value == pytest.approx(np.mean(values) if values else math.nan, abs=1e-12, nan_ok=True)
    assert found.groups == len(values)
    assert found.covered == pytest.approx(len(values) / len(groups) if groups else math.nan, nan_ok=True)


@given(SMALL)
def test_mrr_is_the_mean_over_all_orders_of_ties(case):
    groups = case.counted().by_group()
    values = [expected_reciprocal_rank(group) for group in groups if group.labels.max() >= 0.5]
    found = mrr(*case)
    assert found.value == pytest.approx(np.mean(values) if values else math.nan, abs=1e-12, nan_ok=True)
    assert found.groups == len(values)
    assert found.covered == pytest.approx(len(values) / len(groups) if groups else math.nan, nan_ok=True)


@given(SMALL)
def test_top_1_is_the_mean_over_all_orders_of_ties(case):
    groups = case.counted().by_group()
    values = []
    for group in groups:
        if group.labels.max() >= 0.5:
            first = group.labels[group.scores == group.scores.max()]
            values.append((first >= 0.5).mean())
    found = top_1(*case)
    assert found.value == pytest.approx(np.mean(values) if values else math.nan, abs=1e-12, nan_ok=True)
    assert found.groups == len(values)


@given(rows(labels=(0.0, 1.0, 3.0)), st.sampled_from([1, 3, 10, 1000]))
def test_ndcg_is_scikit_learns(case, k):
    # scikit-learn averages over ties too; its gain is linear, so it is given 2^y - 1. It refuses groups of one row.
    groups = [group for group in case.counted().by_group() if len(group.scores) > 1]
    values = [ndcg_score([2**group.labels - 1], [group.scores], k=k) for group in groups if group.labels.max() > 0]
    several = np.isin(case.groups, [group.groups[0] for group in groups])
    found = ndcg(*(column[several] for column in case), k)
    assert found.value == pytest.approx(np.mean(values) if values else math.nan, abs=1e-12, nan_ok=True)


@given(rows(), st.integers(0, 99))
def test_order_of_rows_does_not_matter(case, seed):
    assert ndcg(*case.permuted(seed), 3) == pytest.approx(ndcg(*case, 3), abs=1e-12, nan_ok=True)
    assert mrr(*case.permuted(seed)) == pytest.approx(mrr(*case), abs=1e-12, nan_ok=True)


def test_equal_scores_get_what_a_random_order_gets():
    # One relevant among n: its rank is uniform, so E[1 / rank] = (1 + 1/2 + ... + 1/n) / n.
    n = 5000
    labels = np.zeros(n)
    labels[0] = 1  # first in the file, which must not help
    found = mrr(np.zeros(n), labels, np.ones(n), np.zeros(n, np.int64))
    # Binomial coefficients of 5000 go through sums of 5000 logarithms, about 4e4 in size: 1e-11 relative each.
    assert found.value == pytest.approx(np.mean(1 / np.arange(1, n + 1)), rel=1e-9)


def test_rates_below_one_half_have_no_mrr():
    assert mrr(np.arange(2.0), np.array([0.01, 0.02]), np.ones(2), np.zeros(2, np.int64))[1:] == (0, 0)

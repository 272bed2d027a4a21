import itertools
import math

import numpy as np
import pyarrow.compute
import pyarrow.parquet
import pytest
from hypothesis import given
from hypothesis import strategies as st
from metrics_cases import rows

from srsjax.metrics.auc import auc
from srsjax.metrics.pairwise import pairwise_accuracy, significant_pairwise_accuracy

COUNTS = (0.0, 1.0, 2.0, 40.0, 300.0, 5000.0)
RATES = (0.0, 0.01, 0.02, 0.05, 0.5, 1.0)


def reference(case, identity, significant):
    """Pair after pair. Returns the share in the right order and the number of pairs."""
    sides = []
    for group in np.unique(case.groups):
        for a, b in itertools.combinations(np.flatnonzero((case.groups == group) & (case.weights > 0)), 2):
            y, n = case.labels[[a, b]], case.weights[[a, b]]
            if y[0] == y[1] or identity[a] == identity[b]:
                continue
            pooled = y @ n / n.sum()
            if significant and not abs(y[0] - y[1]) / math.sqrt(pooled * (1 - pooled) * (1 / n).sum()) > 1.96:
                continue
            better = case.scores[a] - case.scores[b] if y[0] > y[1] else case.scores[b] - case.scores[a]
            sides.append((np.sign(better) + 1) / 2)
    return np.mean(sides) if sides else math.nan, len(sides)


@given(rows(labels=RATES, weights=COUNTS), st.integers(1, 5), st.randoms(use_true_random=False))
def test_pairs_are_those_of_a_double_loop(case, texts, random):
    identity = np.array([random.randrange(texts) for _ in case.scores])
    for metric, significant in ((pairwise_accuracy, False), (significant_pairwise_accuracy, True)):
        expected = reference(case, identity, significant)
        assert metric(*case, identity) == pytest.approx(expected, abs=1e-12, nan_ok=True)
        distinct = np.arange(len(identity))
        assert metric(*case) == pytest.approx(reference(case, distinct, significant), abs=1e-12, nan_ok=True)


@given(rows(), st.integers(0, 99))
def test_order_of_rows_does_not_matter(case, seed):
    for metric in (pairwise_accuracy, significant_pairwise_accuracy):
        assert metric(*case.permuted(seed)) == pytest.approx(metric(*case), abs=1e-12, nan_ok=True)


@pytest.mark.parametrize("size", [2, 3, 1000, 4097])
def test_one_large_group_of_binary_labels_is_its_auc(size):
    # With one group, unit weights and hard labels, pairwise accuracy and AUC are the same number.
    random = np.random.default_rng(size)
    scores, labels = random.integers(0, size, size), np.arange(size) % 2
    ones, group = np.ones(size), np.zeros(size, np.int64)
    found = pairwise_accuracy(scores, labels, ones, group)
    assert found.accuracy == pytest.approx(auc(scores, labels, ones), abs=1e-12)


def test_single_clicks_are_never_significant():
    pairs = significant_pairwise_accuracy(np.arange(2.0), np.array([0, 1]), np.ones(2), np.zeros(2, np.int64))
    assert math.isnan(pairs.accuracy) and pairs.pairs == 0


def test_upworthy_has_its_published_pairs_and_ceiling(data_sets):
    file = data_sets / "upworthy_ctr" / "packages.parquet"
    if not file.exists():
        pytest.skip(f"{file} does not exist")
    table = pyarrow.parquet.read_table(file)
    table = table.filter(pyarrow.compute.equal(table["split"], "test"))
    shown = table["impressions"].to_numpy().astype(np.float32)
    rates = (table["clicks"].to_numpy() / shown).astype(np.float32)
    test, headline = (
        table[name].combine_chunks().dictionary_encode().indices.to_numpy() for name in ("test_id", "headline")
    )
    assert pairwise_accuracy(rates, rates, shown, test, headline) == (1, 2265)
    assert significant_pairwise_accuracy(rates, rates, shown, test, headline) == (1, 605)
    assert auc(rates, rates, shown) == pytest.approx(0.677, abs=5e-4)

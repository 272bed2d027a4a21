"""Order within an impression: NDCG@k and mean reciprocal rank, exact under tied scores.

Ties are averaged over all their orders (McSherry and Najork 2008, "Computing Information Retrieval Performance
Measures Efficiently in the Presence of Tied Scores"), so a model that scores all candidates alike gets what a random
order gets, not what the order of the file gives. A candidate is on its page once: weights only say which labels
are known (above 0), and every impression counts alike.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from srsjax.metrics.sorting import GroupMean, known, sort_rows


def ndcg(scores: np.ndarray, labels: np.ndarray, weights: np.ndarray, groups: np.ndarray, k: int) -> GroupMean:
    """Normalized discounted cumulative gain at k, averaged over groups that have a label above 0.

        DCG@k = sum over ranks r = 1..k of (2^y_r - 1) / log2(r + 1),   NDCG@k = DCG@k / (DCG@k of the best order)

    Burges et al. 2005, "Learning to Rank using Gradient Descent" (the gain); Jarvelin and Kekalainen 2002.

    Args:
        scores: [M], only their order counts.
        labels: [M] >= 0, binary, soft or graded.
        weights: [M]; 0 leaves a candidate out.
        groups: [M] int64 group numbers, in any order.
        k: ranks that count, >= 1.

    Returns:
        Value in [0, 1], groups averaged, and their share of all groups.
    """
    return _mean(ndcg_by_group(scores, labels, weights, groups, k))


def ndcg_by_group(
    scores: np.ndarray, labels: np.ndarray, weights: np.ndarray, groups: np.ndarray, k: int
) -> np.ndarray:
    """`ndcg` of each group with a candidate of weight above 0, [G] float64 by ascending group number; NaN where it is
    undefined."""
    weights, scores, labels, groups = known(weights, scores, labels, groups)
    if not len(scores):
        return np.zeros(0)
    gains = np.exp2(labels) - 1
    reached, best = _dcg(scores, gains, groups, k), _dcg(gains, gains, groups, k)
    return np.divide(reached, best, out=np.full(len(best), np.nan), where=best > 0)


def _dcg(scores: np.ndarray, gains: np.ndarray, groups: np.ndarray, k: int) -> np.ndarray:
    """Expected DCG@k of each group, [G] float64, groups in ascending order of their number."""
    rows = sort_rows(-scores, groups)
    ranks = np.arange(1, min(k, rows.group_sizes.max()) + 1)
    discounts = np.concatenate([[0], np.cumsum(1 / np.log2(ranks + 1))])  # [ranks + 1], summed over the first r ranks
    first, last = rows.tie_ranks, rows.tie_ranks + rows.tie_sizes
    # Every row of a tie takes each of its ranks equally often: the tie's mean gain at each rank it covers.
    covered = discounts[np.minimum(last, len(ranks))] - discounts[np.minimum(first, len(ranks))]
    return rows.group_sums(rows.tie_sums(gains) / rows.tie_sizes * covered)


def mrr(scores: np.ndarray, labels: np.ndarray, weights: np.ndarray, groups: np.ndarray) -> GroupMean:
    """Mean over groups of 1 / (rank of the first relevant candidate); a candidate is relevant from label 0.5 on.

    Groups without a relevant candidate are left out. Under ties it is the expectation over their orders: with r rows
    ranked above the first tie that holds a relevant one, m rows in it and p of them relevant,

        E[1 / rank] = sum over j = 1 .. m - p + 1 of  C(m - j, p - 1) / C(m, p) / (r + j)

    Voorhees 1999, "The TREC-8 Question Answering Track Report". Arguments as in `ndcg`.

    Returns:
        Value in [0, 1], groups averaged, and their share of all groups.
    """
    return _mean(mrr_by_group(scores, labels, weights, groups))


def mrr_by_group(scores: np.ndarray, labels: np.ndarray, weights: np.ndarray, groups: np.ndarray) -> np.ndarray:
    """`mrr` of each group, as `ndcg_by_group`."""
    return _of_first(scores, labels, weights, groups, _expected_reciprocal)


def top_1(scores: np.ndarray, labels: np.ndarray, weights: np.ndarray, groups: np.ndarray) -> GroupMean:
    """How often the first candidate of a group has a label of at least 1/2, over groups with such a candidate; a tie
    for the first place is drawn. With one positive of n candidates it is R_n@1 (Lowe et al. 2015, "The Ubuntu Dialogue
    Corpus"). Arguments and result as in `mrr`.
    """
    return _mean(top_1_by_group(scores, labels, weights, groups))


def top_1_by_group(scores: np.ndarray, labels: np.ndarray, weights: np.ndarray, groups: np.ndarray) -> np.ndarray:
    """`top_1` of each group, as `ndcg_by_group`."""
    return _of_first(
        scores, labels, weights, groups, lambda above, tied, relevant: np.where(above == 0, relevant / tied, 0.0)
    )


def _of_first(scores, labels, weights, groups, value: Callable[..., np.ndarray]) -> np.ndarray:
    """[G] float64 of `value(above, tied, relevant)`, of the first tie of each group that holds a relevant candidate:
    candidates ranked above it, in it, and relevant ones in it, int64 each; NaN where a group has none."""
    weights, scores, labels, groups = known(weights, scores, labels, groups)
    if not len(scores):
        return np.zeros(0)
    rows = sort_rows(-scores, groups)
    relevant = rows.tie_sums((labels >= 0.5).astype(np.int64))
    first = (relevant > 0) & (rows.sums_before(relevant) == 0)
    group = np.repeat(np.arange(len(rows.groups)), np.diff(rows.first_tie, append=len(rows.ties)))
    found = np.full(len(rows.groups), np.nan)
    found[group[first]] = value(rows.tie_ranks[first], rows.tie_sizes[first], relevant[first])
    return found


def _expected_reciprocal(above: np.ndarray, tied: np.ndarray, relevant: np.ndarray) -> np.ndarray:
    """E[1 / rank of the first relevant row] of each tie, [G] float64, by the formula in `mrr`; arguments [G] int64."""
    if not len(tied):
        return np.zeros(0)
    places = tied - relevant + 1  # where in the tie the first relevant row may be
    starts = np.cumsum(places) - places
    above, tied, relevant = (np.repeat(x, places) for x in (above, tied, relevant))
    j = np.arange(len(above)) - np.repeat(starts, places) + 1
    log_factorial = np.concatenate([[0], np.cumsum(np.log(np.arange(1, tied.max() + 1)))])

    def log_choose(n: np.ndarray, k: np.ndarray) -> np.ndarray:
        return log_factorial[n] - log_factorial[k] - log_factorial[n - k]

    chance = np.exp(log_choose(tied - j, relevant - 1) - log_choose(tied, relevant))
    return np.add.reduceat(chance / (above + j), starts)


def _mean(of_groups: np.ndarray) -> GroupMean:
    """The mean of the groups in which a metric is defined."""
    values = of_groups[~np.isnan(of_groups)]
    if not len(of_groups):
        return GroupMean(float("nan"), 0, float("nan"))
    return GroupMean(float(values.mean()) if len(values) else float("nan"), len(values), len(values) / len(of_groups))

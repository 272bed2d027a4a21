"""Area under the ROC curve: over all candidates, and averaged within groups."""

from __future__ import annotations

import numpy as np

from srsjax.metrics.sorting import GroupMean, SortedRows, known, sort_rows


def auc(scores: np.ndarray, labels: np.ndarray, weights: np.ndarray) -> float:
    """Exact weighted AUC, the chance that a positive outranks a negative; a tie counts half.

        AUC = sum_ij p_i n_j ([s_i > s_j] + [s_i = s_j] / 2) / (sum_i p_i  sum_j n_j),   p = w y,  n = w (1 - y)

    A candidate with label y holds both positive mass p and negative mass n, so a row of clicks / impressions with its
    impressions as weight counts as that many rows of label 1 and 0. Mann-Whitney U statistic; Hanley and McNeil 1982,
    "The meaning and use of the area under a receiver operating characteristic curve".

    Args:
        scores: [M], logits or probabilities; only their order counts.
        labels: [M] in [0, 1].
        weights: [M] >= 0; 0 leaves a candidate out.

    Returns:
        AUC in [0, 1], or NaN where there is mass of one class only.
    """
    weights, scores, labels = known(weights, scores, labels)
    if not len(scores):
        return float("nan")
    rows = sort_rows(scores)
    return float(_areas(rows, *_masses(rows, labels, weights))[0])


def gauc(scores: np.ndarray, labels: np.ndarray, weights: np.ndarray, groups: np.ndarray) -> GroupMean:
    """AUC within each group (user), averaged with the group's weight; groups of one class are left out.

        GAUC = sum_g W_g AUC_g / sum_g W_g,   W_g = sum of w over group g

    Zhou et al. 2018, "Deep Interest Network for Click-Through Rate Prediction", equation 7 (weighted by impressions).

    Args:
        scores, labels, weights: [M], as in `auc`.
        groups: [M] int64 group numbers, in any order.

    Returns:
        Value, groups with both classes, and their share of all weight.
    """
    areas, sizes = auc_by_group(scores, labels, weights, groups)
    if not len(areas):
        return GroupMean(float("nan"), 0, float("nan"))
    both = ~np.isnan(areas)
    covered = sizes[both].sum()
    value = float(areas[both] @ sizes[both] / covered) if both.any() else float("nan")
    return GroupMean(value, int(both.sum()), float(covered / sizes.sum()))


def auc_by_group(
    scores: np.ndarray, labels: np.ndarray, weights: np.ndarray, groups: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """AUC and weight of each group with a candidate of weight above 0, [G] float64 by ascending group number; NaN where
    it has one class. Arguments as in `gauc`."""
    weights, scores, labels, groups = known(weights, scores, labels, groups)
    if not len(scores):
        return np.zeros(0), np.zeros(0)
    rows = sort_rows(scores, groups)
    positive, negative = _masses(rows, labels, weights)
    return _areas(rows, positive, negative), rows.group_sums(positive + negative)


def auc_components(scores: np.ndarray, labels: np.ndarray, weights: np.ndarray) -> tuple[float, np.ndarray, np.ndarray]:
    """AUC, and the parts of each row in it: for row i of positive mass p_i and negative mass n_i

        A_i = p_i / P (share of the negative mass that s_i outranks - AUC),  P = sum of p,
        B_i = n_i / N (share of the positive mass that outranks s_i - AUC),  N = sum of n

    a tie counting half: the structural components of DeLong et al. 1988, "Comparing the Areas under Two or More
    Correlated Receiver Operating Characteristic Curves", found by one sort as in Sun and Xu 2014, "Fast Implementation
    of DeLong's Algorithm". Arguments as in `auc`, of both classes and weights above 0; the parts are [M] float64 each.
    """
    rows = sort_rows(scores)
    positive, negative = _masses(rows, labels, weights)
    all_positive, all_negative = positive.sum(), negative.sum()
    below = (np.cumsum(negative) - negative / 2) / all_negative
    above = 1 - (np.cumsum(positive) - positive / 2) / all_positive
    area = float(positive @ below / all_positive)
    tie = np.empty(len(scores), np.int64)
    tie[rows.order] = np.repeat(np.arange(len(rows.ties)), rows.tie_sizes)
    parts = weights * labels / all_positive * (below - area)[tie]
    return area, parts, weights * (1 - labels) / all_negative * (above - area)[tie]


def roc_curve(scores: np.ndarray, labels: np.ndarray, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """False and true positive rates, each [B + 1] float64 from 0 to 1, at every threshold from high to low.

    Rows as in `auc`, of both classes.
    """
    weights, scores, labels = known(weights, scores, labels)
    rows = sort_rows(scores)
    positive, negative = _masses(rows, labels, weights)
    true, false = np.cumsum(positive[::-1]), np.cumsum(negative[::-1])
    return np.concatenate([[0], false / false[-1]]), np.concatenate([[0], true / true[-1]])


def precision_recall_curve(
    scores: np.ndarray, labels: np.ndarray, weights: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Precision and recall, each [B] float64, at every threshold from high to low.

    Rows as in `auc`, of both classes.
    """
    weights, scores, labels = known(weights, scores, labels)
    positive, negative = _masses(sort_rows(scores), labels, weights)
    true, false = np.cumsum(positive[::-1]), np.cumsum(negative[::-1])
    return true / (true + false), true / true[-1]


def _masses(rows: SortedRows, labels: np.ndarray, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Positive and negative mass of each tie, [B] float64."""
    return rows.tie_sums(weights * labels), rows.tie_sums(weights * (1 - labels))


def _areas(rows: SortedRows, positive: np.ndarray, negative: np.ndarray) -> np.ndarray:
    """AUC of each group, [G] float64; NaN where it has one class."""
    won = rows.group_sums(positive * (rows.sums_before(negative) + negative / 2))
    pairs = rows.group_sums(positive) * rows.group_sums(negative)
    return np.divide(won, pairs, out=np.full(len(pairs), np.nan), where=pairs > 0)

"""Pairs of candidates of one impression: the share that the scores put in the right order."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from srsjax.metrics.sorting import SortedRows, known, sort_rows

Z = 1.96
"""Two-sided 5 % point of the normal distribution."""


class Pairs(NamedTuple):
    """Share of pairs in the right order, NaN without pairs, and their number."""

    accuracy: float
    pairs: int


def pairwise_accuracy(
    scores: np.ndarray, labels: np.ndarray, weights: np.ndarray, groups: np.ndarray, identity: np.ndarray | None = None
) -> Pairs:
    """Share of pairs with different labels whose order the scores get right; equal scores count half.

    Pairs are of the same group; of the same `identity` (the same text shown twice) they are left out, since no model
    could tell them apart. Counted exactly in O(M log g) for groups of up to g candidates.

    Args:
        scores: [M], only their order counts.
        labels: [M], binary, graded, or rates.
        weights: [M]; 0 leaves a candidate out. Every pair counts alike.
        groups: [M] int64 group numbers, in any order.
        identity: [M] int64, equal for candidates that look alike to the model; None keeps all pairs.
    """
    return _accuracy(*pairwise_by_group(scores, labels, weights, groups, identity))


def pairwise_by_group(
    scores: np.ndarray, labels: np.ndarray, weights: np.ndarray, groups: np.ndarray, identity: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Twice the pairs in the right order (a tie is one half), and the pairs, of each group with a candidate of weight
    above 0: [G] int64 by ascending group number. Arguments as in `pairwise_accuracy`."""
    _, scores, labels, groups, identity = known(weights, scores, labels, groups, identity)
    if not len(scores):
        return np.zeros(0, np.int64), np.zeros(0, np.int64)
    halves, pairs = _ordered_halves(scores, labels, groups)
    if identity is not None:
        by_identity = sort_rows(identity, groups)
        alike = np.repeat(by_identity.tie_sizes > 1, by_identity.tie_sizes)
        if alike.any():
            again = by_identity.order[alike]
            tie = _tie_of_row(by_identity)[again]
            found = _ordered_halves(scores[again], labels[again], tie)
            # A tie of one group and identity is a group here: back to the groups that the ties lie in.
            group = np.searchsorted(by_identity.first_tie, np.unique(tie), side="right") - 1
            for counts, same in zip((halves, pairs), found, strict=True):
                np.subtract.at(counts, group, same)
    return halves, pairs


def significant_pairwise_accuracy(
    scores: np.ndarray, labels: np.ndarray, weights: np.ndarray, groups: np.ndarray, identity: np.ndarray | None = None
) -> Pairs:
    """`pairwise_accuracy` over pairs whose rates differ significantly, |z| > 1.96 in the two-proportion z test.

        z = (y_a - y_b) / sqrt(p (1 - p) (1 / w_a + 1 / w_b)),   p = (w_a y_a + w_b y_b) / (w_a + w_b)

    Labels are rates in [0, 1] and weights the counts they were measured on. Visits every pair of a group.
    """
    return _accuracy(*significant_pairwise_by_group(scores, labels, weights, groups, identity))


def significant_pairwise_by_group(
    scores: np.ndarray, labels: np.ndarray, weights: np.ndarray, groups: np.ndarray, identity: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """As `pairwise_by_group`, of the pairs of `significant_pairwise_accuracy`."""
    counts, scores, rates, groups, identity = known(weights, scores, labels, groups, identity)
    halves, pairs = np.zeros((2, len(counts)), np.int64)  # of the pairs whose first row it is
    # z^2 <= w_a + w_b, so rows of small counts (plain clicks, weight 1) have no significant pair and none is visited.
    if len(counts) and 2 * counts.max() > Z**2:
        for a, b in _pairs_by_distance(sort_rows(groups)):
            n_a, n_b, difference = counts[a], counts[b], rates[a] - rates[b]
            pooled = (n_a * rates[a] + n_b * rates[b]) / (n_a + n_b)
            counted = difference**2 > Z**2 * pooled * (1 - pooled) * (1 / n_a + 1 / n_b)
            if identity is not None:
                counted &= identity[a] != identity[b]
            sides = np.sign(difference[counted]) * np.sign(scores[a[counted]] - scores[b[counted]])
            first = a[counted]  # every row is first in at most one pair of a distance
            halves[first] += (sides + 1).astype(np.int64)
            pairs[first] += 1
    number = np.unique(groups, return_inverse=True)[1]
    of_group = (np.bincount(number, each).astype(np.int64) for each in (halves, pairs))
    return next(of_group), next(of_group)


def _accuracy(halves: np.ndarray, pairs: np.ndarray) -> Pairs:
    """Of counts by group."""
    total = int(pairs.sum())
    return Pairs(int(halves.sum()) / 2 / total if total else float("nan"), total)


def _ordered_halves(scores: np.ndarray, labels: np.ndarray, groups: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Twice the pairs in the right order (a tie is one half), and the pairs with different labels, [G] int64 each."""
    size = len(scores)
    by_score, by_label = sort_rows(scores, groups), sort_rows(labels, groups)
    score = _tie_of_row(by_score)
    both = sort_rows(_tie_of_row(by_label) * size - score)  # by group, then label, then score from high to low

    def in_ties(rows: SortedRows) -> np.ndarray:  # all three sorts keep a group at the same places
        return np.add.reduceat(_pairs(rows.ties, size), np.searchsorted(rows.ties, by_score.groups))

    pairs = _pairs(by_label.groups, size) - in_ties(by_label)
    tied = in_ties(by_score) - in_ties(both)
    ranks = score[both.order] - np.repeat(by_score.first_tie, by_score.group_sizes)
    return 2 * _increasing_pairs(ranks, by_score.groups) + tied, pairs


def _increasing_pairs(values: np.ndarray, starts: np.ndarray) -> np.ndarray:
    """Pairs of places i < j of one segment with values[i] < values[j], [S] int64 by segment.

    From the highest bit down: among values with equal higher bits, each 1 makes a pair with every 0 before it; then the
    0s and the 1s part, keeping their order, into segments of their own. That is one pass over the rows for each bit.

    Args:
        values: [M] int64 >= 0.
        starts: [S] int64, first place of each segment, ascending from 0.
    """
    segments = starts  # those that they part into lie where they lay
    count = np.zeros(len(starts), np.int64)
    places = np.arange(len(values))
    for bit in reversed(range(int(values.max()).bit_length())):
        ones = (values >> bit & 1).astype(bool)
        sizes = np.diff(starts, append=len(values))
        zeros = np.add.reduceat(~ones, starts, dtype=np.int64)
        before = np.cumsum(~ones) - ~ones
        before -= np.repeat(before[starts], sizes)  # zeros before each place in its segment
        count += np.add.reduceat(np.where(ones, before, 0), segments)
        start = np.repeat(starts, sizes)
        moved = np.where(ones, places + np.repeat(zeros, sizes) - before, start + before)
        parted = np.empty_like(values)
        parted[moved] = values
        values = parted
        opens = np.zeros(len(values) + 1, bool)
        opens[starts] = opens[starts + zeros] = True
        starts = np.flatnonzero(opens[:-1])
    return count


def _pairs_by_distance(rows: SortedRows) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """All pairs of rows of one tie as index arrays (a, b): neighbours first, then those two places apart, ..."""
    sizes = rows.tie_sizes
    place = np.arange(len(rows.order)) - np.repeat(rows.ties, sizes)
    followers = np.repeat(sizes, sizes) - 1 - place  # rows after each in its tie
    longest_first = np.argsort(-followers)
    distances = np.arange(1, sizes.max())
    active = np.searchsorted(-followers[longest_first], -distances, side="right")
    for distance, count in zip(distances, active, strict=True):
        first = longest_first[:count]
        yield rows.order[first], rows.order[first + distance]


def _pairs(starts: np.ndarray, total: int) -> np.ndarray:
    """Pairs of places within each segment, [S] int64, of segments that start here and cover `total` places."""
    sizes = np.diff(starts, append=total)
    return sizes * (sizes - 1) // 2


def _tie_of_row(rows: SortedRows) -> np.ndarray:
    """[M] int64, the number of each row's tie: ascending by group, then by value."""
    number = np.empty_like(rows.order)
    number[rows.order] = np.repeat(np.arange(len(rows.ties)), rows.tie_sizes)
    return number

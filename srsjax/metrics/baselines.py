"""What a model is measured against: the click rates of items and users, and the best that can be had."""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import replace
from typing import Literal

import numpy as np

from srsjax.data.batches.identity import candidate_hashes
from srsjax.data.store.arrays import Items, Split
from srsjax.errors import InputError
from srsjax.metrics.calibration import logit, sigmoid

SEEN = 0.5
"""Share of a split's weight on items (or users) of the training split from which on their rates are worth a look."""


def popularity_scores(train: Split, split: Split, n_items: int, task: int = 0) -> np.ndarray:
    """The smoothed training click rate of each candidate's item: what is known without reading any text.

        rate_i = (clicks_i + s * rate) / (n_i + s)

    with clicks and counts n (sums of weight) of item i in training, and the strength s of the prior by the method of
    moments (`prior_strength`): the baseline is as good as these counts allow.

    Args:
        train, split: training split, and the one to score.
        n_items: V, rows of `Items`.
        task: number of the task; its labels are in [0, 1].

    Returns:
        [M] float64 probabilities for the candidates of `split`.

    Raises InputError where training has no known label.
    """
    return _smoothed_rates(train, train.item, n_items, task)[split.item]


def user_item_scores(train: Split, split: Split, n_items: int, task: int = 0) -> np.ndarray:
    """What the item and the user say apart from each other, still without any text:

        logit p = logit rate_i + logit rate_u - logit rate

    with the smoothed training click rates of the candidate's item i and of its user u (as in `popularity_scores`) and
    that of all. Shapes, arguments and errors are those of `popularity_scores`.
    """
    users, number = np.unique(np.concatenate([train.user, split.user]), return_inverse=True)
    of_train, of_split = (
        np.repeat(numbers, np.diff(each.candidates))
        for numbers, each in ((number[: len(train)], train), (number[len(train) :], split))
    )
    by_user = _smoothed_rates(train, of_train, len(users), task)[of_split]
    weights = train.weights[:, task].astype(np.float64)
    mean = weights @ train.labels[:, task] / weights.sum()
    return sigmoid(logit(popularity_scores(train, split, n_items, task)) + logit(by_user) - logit(mean))


ROUNDS = 10
"""Times that the means of items and of users are fitted in turn; later rounds change the fourth digit."""


def mean_scores(train: Split, split: Split, n_items: int, task: int = 0, *, users: bool = True) -> np.ndarray:
    """The bias model of ratings, [M] float64 in the units of the label (Koren 2008, "Factorization Meets the
    Neighborhood", section 2.1):

        prediction = mean + b_i + b_u,  b_i = sum_i (label - mean - b_u) / (n_i + s_i),
                                        b_u = sum_u (label - mean - b_i) / (n_u + s_u)

    over the training candidates of item i and of user u, with sums of weight n, `ROUNDS` times in turn. The strengths s
    are those that fit how much items and users differ (`mean_strength`), so that the baseline is as good as these
    counts allow. `users` False leaves b_u out. Arguments and errors are those of `popularity_scores`, but for labels of
    any size.
    """
    weights = train.weights[:, task].astype(np.float64)
    if not weights.sum():
        raise InputError(f"training split: found no known label of task {task}, expected some; check its column")
    mean = weights @ train.labels[:, task] / weights.sum()
    left = train.labels[:, task] - mean
    of_item = _shrunken(train.item, left, weights, n_items)
    if not users:
        return mean + of_item[split.item]
    of_train, of_split, count = number_users(train, split)
    for _ in range(ROUNDS):
        of_user = _shrunken(of_train, left - of_item[train.item], weights, count)
        of_item = _shrunken(train.item, left - of_user[of_train], weights, n_items)
    return mean + of_item[split.item] + of_user[of_split]


def _shrunken(number: np.ndarray, left: np.ndarray, weights: np.ndarray, count: int) -> np.ndarray:
    """Means of what is left of each group, drawn to 0, [count]; `number` [M] are the groups."""
    n, total = np.bincount(number, weights, count), np.bincount(number, weights * left, count)
    strength = mean_strength(n, total, float(weights @ left**2))
    return np.zeros(count) if math.isinf(strength) else total / (n + strength)


def mean_strength(n: np.ndarray, total: np.ndarray, squares: float) -> float:
    """Strength s, in observations, of the normal prior around 0 that fits how much the means of groups differ: the
    variance within groups over that between them, by the method of moments (analysis of variance, one random effect).

    Args:
        n, total: [K] float64, weight and weighted sum of each group; n 0 for a group not seen.
        squares: weighted sum of squares of all.

    Returns:
        s > 0; infinite where means differ no more than by chance, or no group is seen twice.
    """
    seen = n > 0
    n, means = n[seen], total[seen] / n[seen]
    whole, groups = n.sum(), len(n)
    if whole <= groups:
        return math.inf
    within = max((squares - n @ means**2) / (whole - groups), 0.0)
    mean = n @ means / whole
    between = (n @ (means - mean) ** 2 - (groups - 1) * within) / (whole - n @ n / whole)
    return max(within / between, 1e-6) if between > 0 else math.inf


def number_users(train: Split, split: Split) -> tuple[np.ndarray, np.ndarray, int]:
    """The user of every candidate of both splits as a number from 0, [M] int64 each, and how many there are."""
    distinct, number = np.unique(np.concatenate([train.user, split.user]), return_inverse=True)
    parts = ((number[: len(train)], train), (number[len(train) :], split))
    of_train, of_split = (np.repeat(numbers, np.diff(each.candidates)) for numbers, each in parts)
    return of_train, of_split, len(distinct)


def number_items(items: Items, train: Split, split: Split, ignored: Collection[str] = ()) -> tuple[Split, Split, int]:
    """Both splits with one number for each distinct candidate, in place of rows of `Items` that may hold it repeatedly,
    and how many there are. Candidates are equal whose text is, or, where none has text, whose categories are, but for
    features that are `ignored` (how a candidate was shown)."""
    parts = [candidate_hashes(each, items, ignored) for each in (train, split)]
    distinct, number = np.unique(np.concatenate(parts), return_inverse=True)
    first = len(train.item)
    return replace(train, item=number[:first]), replace(split, item=number[first:]), len(distinct)


def share_seen(train: Split, split: Split, of: Literal["item", "user"], task: int = 0) -> float:
    """Share of a split's weight that is on items or users with a known label in training; 0 without any weight."""
    known = train.weights[:, task] > 0
    if of == "item":
        seen, asked = train.item[known], split.item
    else:
        seen, asked = (np.repeat(each.user, np.diff(each.candidates)) for each in (train, split))
        seen = seen[known]
    weights = split.weights[:, task].astype(np.float64)
    return float(weights @ np.isin(asked, seen) / weights.sum()) if weights.sum() else 0.0


def _smoothed_rates(train: Split, number: np.ndarray, count: int, task: int) -> np.ndarray:
    """Smoothed click rates [count] of what the training candidates are numbered by, [M] int64."""
    weights = train.weights[:, task].astype(np.float64)
    counts = np.bincount(number, weights, count)
    clicks = np.bincount(number, weights * train.labels[:, task], count)
    if not counts.sum():
        raise InputError(f"training split: found no known label of task {task}, expected some; check its column")
    rate, strength = clicks.sum() / counts.sum(), prior_strength(clicks, counts)
    return np.full(count, rate) if math.isinf(strength) else (clicks + strength * rate) / (counts + strength)


def prior_strength(clicks: np.ndarray, counts: np.ndarray) -> float:
    """Strength s, in impressions, of the beta prior that fits how much click rates differ between items.

    With rates r_i = clicks_i / n_i, mean rate p, N = sum n_i and K items seen, the variance t of the true rates solves
    E[sum n_i (r_i - p)^2] = (K - 1) p (1 - p) + t (N - sum n_i^2 / N - (K - 1)), and s = p (1 - p) / t - 1. Kleinman
    1973, "Proportions with Extraneous Variance: Single and Independent Samples" (weights n_i).

    Args:
        clicks, counts: [V] float64, summed over each item; counts 0 for an item not seen.

    Returns:
        s >= 1; infinite where the rates differ no more than by chance, or too few items are seen twice to tell.
    """
    seen = counts > 0
    n, rates = counts[seen], clicks[seen] / counts[seen]
    total, mean = n.sum(), clicks.sum() / n.sum()
    chance = mean * (1 - mean)
    spread = n @ (rates - mean) ** 2 - (len(n) - 1) * chance
    repeats = total - (n @ n) / total - (len(n) - 1)
    if spread <= 0 or repeats <= 0:
        return math.inf
    return max(1.0, float(chance / (spread / repeats) - 1))


def gap_closed(auc_model: float, auc_popularity: float, auc_oracle: float) -> float:
    """Share of the AUC between item popularity and the known probabilities that the model gains; NaN without a gap."""
    gap = auc_oracle - auc_popularity
    return (auc_model - auc_popularity) / gap if gap > 0 else float("nan")

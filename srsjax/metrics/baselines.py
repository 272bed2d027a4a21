"""What a model is measured against: the popularity of each item, and the best that can be had."""

from __future__ import annotations

import math

import numpy as np

from srsjax.data.store.arrays import Split
from srsjax.errors import InputError


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
    weights = train.weights[:, task].astype(np.float64)
    counts = np.bincount(train.item, weights, n_items)
    clicks = np.bincount(train.item, weights * train.labels[:, task], n_items)
    if not counts.sum():
        raise InputError(f"training split: found no known label of task {task}, expected some; check its column")
    rate, strength = clicks.sum() / counts.sum(), prior_strength(clicks, counts)
    rates = np.full(n_items, rate) if math.isinf(strength) else (clicks + strength * rate) / (counts + strength)
    return rates[split.item]


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

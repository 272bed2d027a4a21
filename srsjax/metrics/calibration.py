"""How good the probabilities are: log loss, normalized entropy, expected calibration error."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from srsjax.metrics.sorting import known, sort_rows

BINS = 15


def sigmoid(logits: np.ndarray) -> np.ndarray:
    """Probability of a logit, float64 of the same shape: 1 / (1 + exp(-x)) without overflow."""
    return np.exp(-np.logaddexp(0, -np.asarray(logits, np.float64)))


def logit(probabilities: np.ndarray) -> np.ndarray:
    """The inverse of `sigmoid`, float64; probabilities are first brought into [1e-9, 1 - 1e-9], so it is finite."""
    p = np.clip(np.asarray(probabilities, np.float64), 1e-9, 1 - 1e-9)
    return np.log(p) - np.log1p(-p)


def log_loss(logits: np.ndarray, labels: np.ndarray, weights: np.ndarray) -> float:
    """Weighted mean binary cross-entropy in nats, computed from logits without overflow.

        sum_i w_i (y_i log(1 + exp(-x_i)) + (1 - y_i) log(1 + exp(x_i))) / sum_i w_i

    Args:
        logits: [M].
        labels: [M] in [0, 1].
        weights: [M] >= 0; 0 leaves a candidate out.

    Returns:
        Log loss >= 0, or NaN without rows.
    """
    weights, logits, labels = known(weights, logits, labels)
    losses = labels * np.logaddexp(0, -logits) + (1 - labels) * np.logaddexp(0, logits)
    return _mean(losses, weights)


def normalized_entropy(logits: np.ndarray, labels: np.ndarray, weights: np.ndarray) -> float:
    """Log loss over the log loss of always predicting the mean label; below 1 is better than the mean.

        NE = log_loss / -(p log p + (1 - p) log(1 - p)),   p = sum w y / sum w

    He et al. 2014, "Practical Lessons from Predicting Clicks on Ads at Facebook", equation 1. Arguments as `log_loss`.

    Returns:
        NE >= 0, or NaN where there is mass of one class only.
    """
    weights, logits, labels = known(weights, logits, labels)
    p = _mean(labels, weights)
    if not 0 < p < 1:
        return float("nan")
    return log_loss(logits, labels, weights) / float(-(p * np.log(p) + (1 - p) * np.log1p(-p)))


class Bins(NamedTuple):
    """Candidates binned by predicted probability: at most `bins` entries each, ascending, empty bins left out."""

    weight: np.ndarray
    """[K] float64, sum of weights."""
    predicted: np.ndarray
    """[K] float64, mean probability."""
    observed: np.ndarray
    """[K] float64, mean label."""


def calibration_bins(probabilities: np.ndarray, labels: np.ndarray, weights: np.ndarray, bins: int = BINS) -> Bins:
    """Bins of about equal weight, cut at quantiles of the probability.

    Equal probabilities share the bin in which the middle of their weight falls, so that the result depends on neither
    the order of rows nor on whether counts come as weights or as repeated rows. Equal mass rather than equal width
    (Nixon et al. 2019, "Measuring Calibration in Deep Learning"): click rates of one percent would all fall into the
    first of 15 bins of equal width. Arguments as `ece`, with at least one row.
    """
    weights, probabilities, labels = known(weights, probabilities, labels)
    rows = sort_rows(probabilities)
    mass = rows.tie_sums(weights)
    total = np.cumsum(mass)
    bin_of_tie = np.minimum((bins * (total - mass / 2) / total[-1]).astype(np.int64), bins - 1)

    def sums(values: np.ndarray) -> np.ndarray:
        return np.bincount(bin_of_tie, rows.tie_sums(values), bins)

    weight, predicted, observed = sums(weights), sums(weights * probabilities), sums(weights * labels)
    filled = weight > 0
    return Bins(weight[filled], predicted[filled] / weight[filled], observed[filled] / weight[filled])


def ece(probabilities: np.ndarray, labels: np.ndarray, weights: np.ndarray, bins: int = BINS) -> float:
    """Expected calibration error over `bins` bins of equal mass.

        ECE = sum_b W_b |mean label in b - mean probability in b| / sum_b W_b

    Guo et al. 2017, "On Calibration of Modern Neural Networks", equation 5, with the bins of `calibration_bins`.

    Args:
        probabilities: [M] in [0, 1].
        labels: [M] in [0, 1].
        weights: [M] >= 0; 0 leaves a candidate out.
        bins: number of bins.

    Returns:
        ECE in [0, 1], or NaN without rows.
    """
    if not np.any(np.asarray(weights) > 0):
        return float("nan")
    binned = calibration_bins(probabilities, labels, weights, bins)
    return _mean(np.abs(binned.observed - binned.predicted), binned.weight)


def _mean(values: np.ndarray, weights: np.ndarray) -> float:
    """Weighted mean in float64; NaN without weight."""
    total = weights.sum()
    return float(values @ weights / total) if total > 0 else float("nan")

"""Accuracy, precision, recall and F1 at a stated probability."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from srsjax.metrics.sorting import known


class Classification(NamedTuple):
    """Each in [0, 1], or NaN where its denominator is 0."""

    accuracy: float
    precision: float
    recall: float
    f1: float


def classification(
    probabilities: np.ndarray, labels: np.ndarray, weights: np.ndarray, threshold: float
) -> Classification:
    """Counts a candidate as predicted positive where its probability is at least `threshold`.

        accuracy = (TP + TN) / all,  precision = TP / (TP + FP),  recall = TP / (TP + FN),  F1 = 2 TP / (2 TP + FP + FN)

    A candidate of label y and weight w is w y of positive and w (1 - y) of negative mass, as in `auc`. F1 is 0 where
    positives exist and none is found. Van Rijsbergen 1979, "Information Retrieval", chapter 7.

    Args:
        probabilities: [M] in [0, 1].
        labels: [M] in [0, 1].
        weights: [M] >= 0; 0 leaves a candidate out.
        threshold: probability from which on a candidate counts as predicted positive.
    """
    weights, probabilities, labels = known(weights, probabilities, labels)
    positive = weights * labels
    negative = weights * (1 - labels)
    found = probabilities >= threshold
    tp, fp = positive[found].sum(), negative[found].sum()
    fn, tn = positive[~found].sum(), negative[~found].sum()
    return Classification(
        accuracy=_ratio(tp + tn, tp + tn + fp + fn),
        precision=_ratio(tp, tp + fp),
        recall=_ratio(tp, tp + fn),
        f1=_ratio(2 * tp, 2 * tp + fp + fn),
    )


def _ratio(part: float, whole: float) -> float:
    return float(part / whole) if whole > 0 else float("nan")

"""Metrics of a choice among K classes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypedDict

import numpy as np


class OfClass(TypedDict):
    """One line of a classification report; NaN is absent."""

    precision: float
    recall: float
    f1: float
    support: float
    """Weight of the candidates of the class."""


def confusion_matrix(logits: np.ndarray, labels: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """[K, K] float64: weight of the candidates of each class (row) by the predicted one (column), the first of the
    largest logits.

    Args:
        logits: [M, K] finite.
        labels: [M] whole numbers from 0 to K - 1.
        weights: [M] > 0.
    """
    count = logits.shape[-1]
    cell = labels.astype(np.int64) * count + logits.argmax(-1)
    return np.bincount(cell, weights, count * count).reshape(count, count)


def accuracy(matrix: np.ndarray) -> float:
    """Share of the weight on the diagonal of a confusion matrix."""
    return float(np.trace(matrix) / matrix.sum())


def f1_by_class(matrix: np.ndarray) -> np.ndarray:
    """F1 of each class against the rest, 2 TP / (2 TP + FP + FN), [K] float64; NaN for a class that is neither among
    the labels nor predicted."""
    whole = matrix.sum(0) + matrix.sum(1)
    return np.divide(2 * np.diag(matrix), whole, out=np.full(len(matrix), np.nan), where=whole > 0)


def macro_f1(matrix: np.ndarray) -> float:
    """Mean of F1 over the classes that are among the labels or predicted, each class alike."""
    return float(np.nanmean(f1_by_class(matrix)))


def top_accuracy(logits: np.ndarray, labels: np.ndarray, weights: np.ndarray, top: int) -> float | None:
    """Share of the weight whose class is among the `top` largest logits, equal ones in the order of the classes; None
    where there are no more classes than that. Shapes as in `confusion_matrix`."""
    if logits.shape[-1] <= top:
        return None
    number = labels.astype(np.int64)[:, None]
    own = np.take_along_axis(logits, number, axis=1)
    ahead = (logits > own) | ((logits == own) & (np.arange(logits.shape[-1]) < number))
    return float(weights @ (ahead.sum(-1) < top) / weights.sum())


def confidence(logits: np.ndarray) -> np.ndarray:
    """The largest softmax probability of each row, [M, K] -> [M] float64."""
    shifted = np.asarray(logits, np.float64) - logits.max(1, keepdims=True)
    return 1 / np.exp(shifted).sum(1)


def cross_entropy(logits: np.ndarray, labels: np.ndarray, weights: np.ndarray) -> float:
    """Mean of -log softmax(logits) of the class of each candidate, in nats. Shapes as in `confusion_matrix`."""
    top = logits.max(-1)
    whole = top + np.log(np.exp(logits - top[:, None]).sum(-1))
    own = np.take_along_axis(logits, labels.astype(np.int64)[:, None], axis=1)[:, 0]
    return float(weights @ (whole - own) / weights.sum())


def class_report(matrix: np.ndarray, names: Sequence[str]) -> dict[str, OfClass]:
    """Precision, recall, F1 and support of every class, by its name; 0 where nothing was predicted or is there."""
    hit, found, there = np.diag(matrix), matrix.sum(0), matrix.sum(1)
    precision, recall = (np.divide(hit, n, out=np.zeros(len(hit)), where=n > 0) for n in (found, there))
    f1 = np.nan_to_num(f1_by_class(matrix))
    return {
        name: OfClass(precision=float(p), recall=float(r), f1=float(f), support=float(s))
        for name, p, r, f, s in zip(names, precision, recall, f1, there, strict=True)
    }

"""Metrics of predicted numbers."""

from __future__ import annotations

import numpy as np


def mae(predicted: np.ndarray, labels: np.ndarray, weights: np.ndarray) -> float:
    """Mean absolute error, in the units of the label; all arguments [M] float64, weights > 0."""
    return float(weights @ np.abs(predicted - labels) / weights.sum())


def rmse(predicted: np.ndarray, labels: np.ndarray, weights: np.ndarray) -> float:
    """Root of the mean squared error, in the units of the label; arguments as in `mae`."""
    return float(np.sqrt(weights @ (predicted - labels) ** 2 / weights.sum()))


def r2(predicted: np.ndarray, labels: np.ndarray, weights: np.ndarray) -> float:
    """Share of the labels' variance that is explained, 1 - MSE / variance; NaN where all labels are equal."""
    mean = weights @ labels / weights.sum()
    spread = weights @ (labels - mean) ** 2
    return float(1 - weights @ (predicted - labels) ** 2 / spread) if spread > 0 else float("nan")


def spearman(predicted: np.ndarray, labels: np.ndarray, weights: np.ndarray) -> float:
    """Correlation of the ranks of predictions and labels (Spearman 1904), equal values at the mean of their ranks; NaN
    where either are all equal. With weights, the rank of a value is the weight below it plus half of its own."""
    x, y = (_ranks(values, weights) for values in (predicted, labels))
    x, y = x - weights @ x / weights.sum(), y - weights @ y / weights.sum()
    spread = np.sqrt((weights @ x**2) * (weights @ y**2))
    return float(weights @ (x * y) / spread) if spread > 0 else float("nan")


def _ranks(values: np.ndarray, weights: np.ndarray) -> np.ndarray:
    _, number = np.unique(values, return_inverse=True)
    mass = np.bincount(number, weights)
    return (np.cumsum(mass) - mass / 2)[number]

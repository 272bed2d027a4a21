"""Maps from the logits of a model to calibrated logits, fitted on rows that it was not trained on.

All arithmetic is float64, and every map of one logit rises strictly, so that it changes no order of candidates.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from srsjax.metrics.calibration import logit, sigmoid
from srsjax.metrics.sorting import sort_rows


@dataclass(frozen=True)
class Affine:
    """scale * logit + offset, one of each for all logits of a task, or one for each class."""

    scale: tuple[float, ...]
    offset: tuple[float, ...]

    def __call__(self, logits: np.ndarray) -> np.ndarray:
        """[M] -> [M], [M, K] -> [M, K], float64."""
        scale, offset = np.array(self.scale), np.array(self.offset)
        if logits.ndim == 1:
            scale, offset = scale[0], offset[0]
        return scale * np.asarray(logits, np.float64) + offset

    def to_json(self) -> dict[str, Any]:
        """As plain data."""
        return {"scale": [*self.scale], "offset": [*self.offset]}


@dataclass(frozen=True)
class Isotonic:
    """A piecewise linear map of log-odds through knots; beyond the first and the last one its slope is 1."""

    logits: tuple[float, ...]
    """Ascending."""
    calibrated: tuple[float, ...]
    """Ascending."""

    def __call__(self, logits: np.ndarray) -> np.ndarray:
        """[M] -> [M] float64."""
        x = np.asarray(logits, np.float64)
        beyond = x - np.clip(x, self.logits[0], self.logits[-1])
        return np.interp(x, self.logits, self.calibrated) + beyond

    def to_json(self) -> dict[str, Any]:
        """As plain data."""
        return {"logits": [*self.logits], "calibrated": [*self.calibrated]}


Map = Affine | Isotonic


def map_from_json(data: dict[str, Any]) -> Map:
    """The inverse of `to_json`. Raises KeyError for other data."""
    if "scale" in data:
        return Affine(tuple(data["scale"]), tuple(data["offset"]))
    return Isotonic(tuple(data["logits"]), tuple(data["calibrated"]))


def fit_temperature(logits: np.ndarray, labels: np.ndarray, weights: np.ndarray) -> Affine | None:
    """logit / T, with the T of least log loss (Guo et al. 2017, "On Calibration of Modern Neural Networks").

    Args:
        logits: [M] of a binary task, or [M, K] of K classes.
        labels: [M] in [0, 1], or classes by number.
        weights: [M] > 0.

    Returns:
        None where there is no such T > 0: labels of one class, or scores in the wrong order.
    """
    if logits.ndim == 2:
        return _fit_classes(logits, labels, weights, 1, ())
    return _fit_binary(logits[:, None], labels, weights, np.ones(1))


def fit_platt(logits: np.ndarray, labels: np.ndarray, weights: np.ndarray) -> Affine | None:
    """scale * logit + offset of least log loss (Platt 1999, "Probabilistic Outputs for Support Vector Machines"); of
    classes a scale and an offset each (vector scaling, Guo et al. 2017), which can change the most probable class.
    Arguments and result as in `fit_temperature`.
    """
    if logits.ndim == 2:
        return _fit_classes(logits, labels, weights, logits.shape[1], range(logits.shape[1]))
    return _fit_binary(np.stack([logits, np.ones(len(logits))], axis=1), labels, weights, np.array([1.0, 0.0]))


def fit_shares(logits: np.ndarray, labels: np.ndarray, weights: np.ndarray, classes: Sequence[int]) -> Affine | None:
    """logit / T, with an offset of each of these classes, of least log loss: for rows that are weighed to other shares
    of these classes than the model learnt from (prior shift, Saerens et al. 2002, "Adjusting the Outputs of a
    Classifier to New a Priori Probabilities"). Arguments and result as in `fit_temperature`, of classes.
    """
    return _fit_classes(logits, labels, weights, 1, classes)


def fit_isotonic(logits: np.ndarray, labels: np.ndarray, weights: np.ndarray) -> Isotonic | None:
    """Isotonic regression of the labels on the logits (Zadrozny and Elkan 2002, "Transforming Classifier Scores into
    Accurate Multiclass Probability Estimates"), joined through the centres of its steps.

    Plain isotonic regression ties all candidates of a step. Here each step is one knot at its mean logit, and lines of
    log-odds join the knots (centred isotonic regression, Oron and Flournoy 2017), so that every order is kept. A step
    of all 0 or all 1 has no finite log-odds: one row at the mean label is added to each step, and what then falls is
    pooled again. Arguments as in `fit_temperature`, of a binary task; None for labels of one class.
    """
    positive, total = weights @ labels, weights.sum()
    if not 0 < positive < total:
        return None
    rows = sort_rows(logits)
    mass = rows.tie_sums(weights)
    values, labelled = rows.tie_sums(weights * logits) / mass, rows.tie_sums(weights * labels) / mass
    for prior in (0.0, 1.0):
        labelled = (labelled * mass + prior * positive / total) / (mass + prior)
        labelled, starts = isotonic_steps(labelled, mass + prior)
        values = np.add.reduceat(values * mass, starts) / np.add.reduceat(mass, starts)
        mass = np.add.reduceat(mass, starts)
    return Isotonic(tuple(map(float, values)), tuple(map(float, logit(labelled))))


def prior_shift(rate: float) -> float:
    """What to add to a log-odds learnt where only a share `rate` > 0 of the negatives was kept: log(rate).

    King and Zeng 2001, "Logistic Regression in Rare Events Data", equation 7; as a probability, Dal Pozzolo et al.
    2015, "Calibrating Probability with Undersampling for Unbalanced Classification", equation 4:

        p = rate * q / (rate * q - q + 1)
    """
    return float(np.log(rate))


def isotonic_steps(values: np.ndarray, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The steps of the isotonic regression of values [B]: their heights, strictly ascending, and first places."""
    from scipy.optimize import isotonic_regression  # half a second to import, and few commands fit

    found = isotonic_regression(values, weights=weights)
    starts = found.blocks[:-1]
    heights = found.x[starts]
    new = np.concatenate([[True], heights[1:] > heights[:-1]])
    return heights[new], starts[new]


def _fit_binary(design: np.ndarray, labels: np.ndarray, weights: np.ndarray, start: np.ndarray) -> Affine | None:
    """Logistic regression of labels on `design` [M, d] by Newton's method, from `start` [d]; its first column is the
    logit.

    Targets are Platt's, (P + 1) / (P + 2) and 1 / (N + 2) for mass P of positives and N of negatives, so that there is
    a finite optimum even where the logits part the labels.
    """
    positive, total = weights @ labels, weights.sum()
    if not 0 < positive < total:
        return None
    targets = labels * (positive + 1) / (positive + 2) + (1 - labels) / (total - positive + 2)

    def loss(at: np.ndarray) -> float:
        z = design @ at
        return float(weights @ (np.logaddexp(0, z) - targets * z) / total)

    found, value = start, loss(start)
    for _ in range(100):
        p = sigmoid(design @ found)
        slope = design.T @ (weights * (p - targets)) / total
        curve = (design * (weights * p * (1 - p))[:, None]).T @ design / total
        step = np.linalg.lstsq(curve, slope, rcond=None)[0]  # of equal logits there is no single best one
        if slope @ step < 1e-12:  # twice what is left to gain; after one more step it is about the square of that
            found = found - step
            break
        while (after := loss(found - step)) > value and np.abs(step).max() > 1e-12:
            step /= 2
        found, value = found - step, after
    if not (np.isfinite(found).all() and found[0] > 0):
        return None
    return Affine((float(found[0]),), (float(found[1]) if len(found) > 1 else 0.0,))


SCALES = (0.01, 100.0)
"""Least and largest scale of a class: where the logits part all labels, any larger one would be better."""


def _fit_classes(
    logits: np.ndarray, labels: np.ndarray, weights: np.ndarray, scales: int, shifted: Sequence[int]
) -> Affine | None:
    """Least cross-entropy of softmax(scale * logits + offset), by L-BFGS-B: `scales` is 1, or K for one of each class;
    the `shifted` classes have an offset, the others 0."""
    from scipy.optimize import minimize

    logits = np.asarray(logits, np.float64)
    count, number, moved = logits.shape[1], labels.astype(np.int64), np.array(shifted, np.int64)
    if len(np.unique(number)) < 2:
        return None
    rows, share = np.arange(len(number)), weights / weights.sum()

    def parts(at: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        offset = np.zeros(count)
        offset[moved] = at[scales:]
        return np.resize(at[:scales], count), offset

    def loss(at: np.ndarray) -> tuple[float, np.ndarray]:
        scale, offset = parts(at)
        z = scale * logits + offset
        z -= z.max(1, keepdims=True)
        log_shares = z - np.log(np.exp(z).sum(1, keepdims=True))
        wrong = np.exp(log_shares)
        wrong[rows, number] -= 1
        wrong *= share[:, None]
        slope = (wrong * logits).sum(0)
        return float(-share @ log_shares[rows, number]), np.r_[
            slope if scales > 1 else slope.sum(), wrong.sum(0)[moved]
        ]

    start = np.r_[np.ones(scales), np.zeros(len(moved))]
    bounds = [SCALES] * scales + [(-20.0, 20.0)] * len(moved)
    scale, offset = parts(minimize(loss, start, jac=True, method="L-BFGS-B", bounds=bounds).x)
    return Affine(tuple(map(float, scale)), tuple(map(float, offset)))

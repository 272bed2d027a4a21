"""Metrics as functions of sums over independent clusters (users): what an interval is computed from.

A metric of M rows in C clusters is value(sum over clusters of its sums [C, S]), so that a resampled metric is one
product of counts and sums, and no row is visited again.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from srsjax.metrics import ranking
from srsjax.metrics.auc import auc_by_group
from srsjax.metrics.calibration import BINS
from srsjax.metrics.pairwise import pairwise_by_group, significant_pairwise_by_group
from srsjax.metrics.sorting import sort_rows
from srsjax.metrics.table import Candidates

MOST_CLASSES = 1000
"""Above so many classes macro F1, whose sums are three numbers a class, has no interval."""


@dataclass(frozen=True)
class Sums:
    """A metric by cluster."""

    sums: np.ndarray
    """[C, S] float64."""
    value: Callable[[np.ndarray], np.ndarray]
    """[..., S] -> [...] of total sums; NaN where it is undefined."""


class Clusters:
    """The rows of an evaluation by cluster, and the sums of every metric; clusters are numbered 0 to C - 1."""

    def __init__(self, of: Candidates, cluster: np.ndarray):
        """`cluster` [M] int64 is the number of each row's cluster; a cluster holds whole users."""
        self.of, self.cluster, self.count = of, cluster, int(cluster.max()) + 1

    def sums(self, metric: str) -> Sums | None:
        """The sums of a metric of `srsjax.metrics.table`; None for those that are no function of sums."""
        made = SUMS.get(metric)
        return made(self) if made else None

    def by_row(self, *columns: np.ndarray) -> np.ndarray:
        """[M] each -> [C, S]."""
        return np.stack([np.bincount(self.cluster, column, self.count) for column in columns], axis=1)

    def by_cell(self, cell: np.ndarray, cells: int, column: np.ndarray) -> np.ndarray:
        """Sums of [M] by cluster and cell: [C, cells]."""
        return np.bincount(self.cluster * cells + cell, column, self.count * cells).reshape(self.count, cells)

    @cached_property
    def impressions(self) -> np.ndarray:
        """The cluster of each impression, [G] int64 by ascending impression number."""
        return self.cluster[np.unique(self.of.groups, return_index=True)[1]]

    def by_group(self, values: np.ndarray, weights: np.ndarray | None = None, users: bool = False) -> Sums:
        """A weighted mean over impressions, or users, [G] by ascending number; those with NaN are left out."""
        cluster = self.cluster[np.unique(self.of.users, return_index=True)[1]] if users else self.impressions
        known = ~np.isnan(values)
        mass = np.where(known, 1.0 if weights is None else weights, 0.0)
        columns = (mass * np.where(known, values, 0.0), mass)
        return Sums(np.stack([np.bincount(cluster, each, self.count) for each in columns], axis=1), ratio)


def ratio(total: np.ndarray) -> np.ndarray:
    """The first sum over the second, NaN over 0: [..., 2] -> [...]."""
    return np.divide(total[..., 0], total[..., 1], out=np.full(total.shape[:-1], np.nan), where=total[..., 1] > 0)


def _mean(column: Callable[[Candidates], np.ndarray]) -> Callable[[Clusters], Sums]:
    """The weighted mean of a value of each row."""
    return lambda by: Sums(by.by_row(by.of.weights * column(by.of), by.of.weights), ratio)


def _losses(c: Candidates) -> np.ndarray:
    """[M] in nats."""
    if c.logits.ndim == 1:
        return c.labels * np.logaddexp(0, -c.logits) + (1 - c.labels) * np.logaddexp(0, c.logits)
    top = c.logits.max(1)
    own = np.take_along_axis(c.logits, c.labels.astype(np.int64)[:, None], axis=1)[:, 0]
    return top + np.log(np.exp(c.logits - top[:, None]).sum(1)) - own


def _normalized_entropy(by: Clusters) -> Sums:
    def value(total: np.ndarray) -> np.ndarray:
        p = total[..., 2] / total[..., 1]
        with np.errstate(divide="ignore", invalid="ignore"):
            return total[..., 0] / total[..., 1] / -(p * np.log(p) + (1 - p) * np.log1p(-p))

    c = by.of
    return Sums(by.by_row(c.weights * _losses(c), c.weights, c.weights * c.labels), value)


def _ece(by: Clusters) -> Sums:
    """With the bins of all rows, which `srsjax.metrics.calibration.calibration_bins` cuts."""
    (probabilities, labels), weights = by.of.claimed, by.of.weights
    rows = sort_rows(probabilities)
    mass = rows.tie_sums(weights)
    ends = np.cumsum(mass)
    of_tie = np.minimum((BINS * (ends - mass / 2) / ends[-1]).astype(np.int64), BINS - 1)
    number = np.empty(len(weights), np.int64)
    number[rows.order] = np.repeat(of_tie, rows.tie_sizes)
    gaps = by.by_cell(number, BINS, weights * (labels - probabilities))
    return Sums(np.c_[gaps, by.by_row(weights)], lambda total: np.abs(total[..., :-1]).sum(-1) / total[..., -1])


def _accuracy(by: Clusters) -> Sums:
    c = by.of
    if c.logits.ndim == 2:
        return _mean(lambda c: c.logits.argmax(1) == c.labels)(by)
    found = c.probabilities >= c.threshold
    return _mean(lambda c: np.where(found, c.labels, 1 - c.labels))(by)


def _found(part: str) -> Callable[[Clusters], Sums]:
    """Precision, recall and F1 at the threshold, each a ratio of sums."""

    def made(by: Clusters) -> Sums:
        c = by.of
        found = (c.probabilities >= c.threshold).astype(np.float64)
        hit, named, there = c.weights * c.labels * found, c.weights * found, c.weights * c.labels
        columns = {"precision": (hit, named), "recall": (hit, there), "f1": (2 * hit, named + there)}
        return Sums(by.by_row(*columns[part]), ratio)

    return made


def _macro_f1(by: Clusters) -> Sums | None:
    c, count = by.of, by.of.logits.shape[1]
    if count > MOST_CLASSES:
        return None
    label, predicted = c.labels.astype(np.int64), c.logits.argmax(1)
    hits = by.by_cell(label, count, c.weights * (label == predicted))
    whole = by.by_cell(label, count, c.weights) + by.by_cell(predicted, count, c.weights)

    def value(total: np.ndarray) -> np.ndarray:
        hits, whole = total[..., :count], total[..., count:]
        there = whole > 0
        f1 = np.divide(2 * hits, whole, out=np.zeros(hits.shape), where=there)
        return f1.sum(-1) / there.sum(-1)

    return Sums(np.c_[hits, whole], value)


def _top_5(by: Clusters) -> Sums:
    c = by.of
    number = c.labels.astype(np.int64)[:, None]
    own = np.take_along_axis(c.logits, number, axis=1)
    ahead = (c.logits > own) | ((c.logits == own) & (np.arange(c.logits.shape[1]) < number))
    return _mean(lambda _: ahead.sum(1) < 5)(by)


def _rmse(by: Clusters) -> Sums:
    of = _mean(lambda c: (c.logits - c.labels) ** 2)(by)
    return Sums(of.sums, lambda total: np.sqrt(ratio(total)))


def _r2(by: Clusters) -> Sums:
    c = by.of
    left = c.labels - np.average(c.labels, weights=c.weights)  # small numbers: no digits are lost in the difference

    def value(total: np.ndarray) -> np.ndarray:
        spread = total[..., 2] - total[..., 1] ** 2 / total[..., 3]
        return 1 - np.divide(total[..., 0], spread, out=np.full(spread.shape, np.nan), where=spread > 0)

    w = c.weights
    return Sums(by.by_row(w * (c.logits - c.labels) ** 2, w * left, w * left**2, w), value)


def _spearman(by: Clusters) -> Sums:
    """Linearised: what one more row at (x, y) does to the covariance of ranks F and G,

        (F(x) - 1/2)(G(y) - 1/2) + E[(G - 1/2) (X > x)] + E[(F - 1/2) (Y > y)] - its mean,

    over the deviations of the ranks (the influence function of Spearman's correlation; Croux and Dehon 2010, "Influence
    Functions of the Spearman and Kendall Correlation Measures"). Ties count half."""
    c, share = by.of, by.of.weights / by.of.weights.sum()
    x, y = (_centred_ranks(values, share) for values in (c.logits, c.labels))
    scale = np.sqrt((share @ x**2) * (share @ y**2))
    moved = x * y + _mass_above(c.logits, share * y) + _mass_above(c.labels, share * x)
    point = share @ (x * y) / scale
    moved = (moved - share @ moved) / scale
    return Sums(by.by_row(c.weights * moved, c.weights), lambda total: point + ratio(total))


def _centred_ranks(values: np.ndarray, share: np.ndarray) -> np.ndarray:
    number = np.unique(values, return_inverse=True)[1]
    mass = np.bincount(number, share)
    return (np.cumsum(mass) - mass / 2)[number] - 0.5


def _mass_above(values: np.ndarray, mass: np.ndarray) -> np.ndarray:
    """The sum of `mass` [M] over rows of larger values, half of equal ones, for each row."""
    number = np.unique(values, return_inverse=True)[1]
    of = np.bincount(number, mass)
    return (of.sum() - np.cumsum(of) + of / 2)[number]


def _gauc(by: Clusters) -> Sums:
    areas, sizes = auc_by_group(*by.of.triple, by.of.users)
    return by.by_group(areas, sizes, users=True)


def _pairs(of: Callable[..., tuple[np.ndarray, np.ndarray]]) -> Callable[[Clusters], Sums]:
    def made(by: Clusters) -> Sums:
        halves, pairs = of(*by.of.triple, by.of.groups, by.of.identity)
        values = np.divide(halves / 2, pairs, out=np.full(len(pairs), np.nan), where=pairs > 0)
        return by.by_group(values, pairs)

    return made


SUMS: dict[str, Callable[[Clusters], Sums | None]] = {
    "gauc": _gauc,
    "log_loss": _mean(_losses),
    "normalized_entropy": _normalized_entropy,
    "ece": _ece,
    "accuracy": _accuracy,
    "precision": _found("precision"),
    "recall": _found("recall"),
    "f1": _found("f1"),
    "label_rate": _mean(lambda c: c.labels),
    "predicted_rate": _mean(lambda c: c.probabilities),
    "ndcg": lambda by: by.by_group(ranking.ndcg_by_group(*by.of.triple, by.of.groups, by.of.ndcg_at)),
    "mrr": lambda by: by.by_group(ranking.mrr_by_group(*by.of.triple, by.of.groups)),
    "top_1": lambda by: by.by_group(ranking.top_1_by_group(*by.of.triple, by.of.groups)),
    "pairwise": _pairs(pairwise_by_group),
    "pairwise_significant": _pairs(significant_pairwise_by_group),
    "macro_f1": _macro_f1,
    "top_5": _top_5,
    "cross_entropy": _mean(_losses),
    "rmse": _rmse,
    "mae": _mean(lambda c: np.abs(c.logits - c.labels)),
    "r2": _r2,
    "spearman": _spearman,
    "label_mean": _mean(lambda c: c.labels),
    "predicted_mean": _mean(lambda c: c.logits),
}
"""By `Metric.name`. The AUC has an exact variance of its own (`srsjax.metrics.intervals.Area`)."""

"""95 % intervals of metrics and of their differences, where rows of one user are not independent.

The AUC has the variance of DeLong et al. 1988 (doi 10.2307/2531595), of clustered rows that of Obuchowski 1997,
"Nonparametric Analysis of Clustered ROC Curve Data". All other metrics are functions of sums over users, which are
resampled (the cluster bootstrap; Davison and Hinkley 1997, "Bootstrap Methods and their Application", section 3.8).
Equal resamples for two models of the same rows make the interval of their difference a paired one.

Intervals say how far other users would move a number; not how far another training run would.
"""

from __future__ import annotations

import functools
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import NamedTuple, Self

import numpy as np

from srsjax.metrics.auc import auc_components
from srsjax.metrics.sums import Clusters
from srsjax.metrics.table import Candidates, find

Z = 1.959963984540054
"""Two-sided 5 % point of the normal distribution."""
RESAMPLES = 1000
MOST = 4000
"""Clusters that are resampled: more of them are first put together by lot, so many users in each, which leaves the
variance of a sum as it is."""


class Interval(NamedTuple):
    """A number and its 95 % interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Area:
    """An AUC, or the difference of two over the same rows."""

    value: float
    positive: np.ndarray
    """[C] float64, sums of A of `auc_components` over each user."""
    negative: np.ndarray
    """[C] float64, sums of B."""
    counts: tuple[int, int, int]
    """Users with positive mass, with negative mass, and all."""

    @property
    def variance(self) -> float:
        """Obuchowski 1997, equation 5; with one row a user that of DeLong. NaN with one user of a class."""
        if min(self.counts) < 2:
            return float("nan")
        first, second, both = (n / (n - 1) for n in self.counts)
        a, b = self.positive, self.negative
        return float(first * a @ a + second * b @ b + 2 * both * a @ b)

    def interval(self) -> Interval:
        """Normal, of the unlimited range of a difference: an AUC is cut to [0, 1] where it is shown."""
        half = Z * np.sqrt(self.variance)
        return Interval(self.value, self.value - half, self.value + half)

    def __sub__(self, other: Self) -> Area:
        return Area(
            self.value - other.value, self.positive - other.positive, self.negative - other.negative, self.counts
        )


@dataclass(frozen=True)
class Resampled:
    """A metric, or the difference of two over the same rows, and its values on resampled users."""

    value: float
    draws: np.ndarray
    """[`RESAMPLES`] float64; NaN where it is undefined."""
    pivot: bool = False
    """Whether draws are further out than the value is, by about as much as the value is itself."""

    def interval(self) -> Interval:
        """Percentiles of the draws; `pivot` mirrors them at the value (the basic bootstrap)."""
        if np.isnan(self.draws).mean() > 0.1:  # undefined too often: percentiles of the rest would say too little
            return Interval(self.value, float("nan"), float("nan"))
        low, high = map(float, np.nanpercentile(self.draws, [2.5, 97.5]))
        return (
            Interval(self.value, 2 * self.value - high, 2 * self.value - low)
            if self.pivot
            else Interval(self.value, low, high)
        )

    def __sub__(self, other: Self) -> Resampled:
        return Resampled(self.value - other.value, self.draws - other.draws, self.pivot)


Spread = Area | Resampled


def area(scores: np.ndarray, labels: np.ndarray, weights: np.ndarray, users: np.ndarray | None = None) -> Area:
    """The AUC with its variance, in O(M log M).

    Args:
        scores, labels: [M], as in `srsjax.metrics.auc.auc`, of both classes.
        weights: [M] > 0.
        users: [M] int64; rows of different users are independent. None takes every row as one.
    """
    value, a, b = auc_components(scores, labels, weights)
    number = np.arange(len(a)) if users is None else np.unique(users, return_inverse=True)[1]
    positive, negative = np.bincount(number, weights * labels), np.bincount(number, weights * (1 - labels))
    counts = (int(np.count_nonzero(positive)), int(np.count_nonzero(negative)), len(positive))
    return Area(value, np.bincount(number, a), np.bincount(number, b), counts)


def spreads(of: Candidates, keys: Collection[str]) -> dict[str, Spread]:
    """How far metrics would be moved by other users: of those among `keys` of a report that have an interval.

    Two models of the same rows (labels, weights, impressions and users) get the same resamples.
    """
    found: dict[str, Spread] = {}
    number = np.unique(of.users, return_inverse=True)[1]
    users = int(number.max(initial=-1)) + 1
    if users < 2:
        return found
    by = Clusters(of, (np.random.default_rng(0).permutation(users) % MOST)[number])
    for key in keys:
        metric = find(key)
        if metric is None:
            continue
        if metric.name == "auc":
            found[key] = area(*of.triple, number)
        elif made := by.sums(metric.name):
            value = float(made.value(made.sums.sum(0)))
            found[key] = Resampled(value, made.value(_counts(by.count) @ made.sums), metric.name == "ece")
    return found


def intervals(of: Mapping[str, Spread]) -> dict[str, Interval]:
    """By key; bounds of metrics in [0, 1] are cut to it, and those that are undefined are left out."""
    found = {key: spread.interval() for key, spread in of.items()}
    kept = {key: each for key, each in found.items() if not np.isnan(each.low + each.high)}
    return {key: _within(key, each) for key, each in kept.items()}


def differences(of: Mapping[str, Spread], other: Mapping[str, Spread]) -> dict[str, Interval]:
    """`of` less `other`, paired, for the keys that both have."""
    made = {key: spread - other[key] for key, spread in of.items() if key in other}  # type: ignore[operator]
    found = {key: each.interval() for key, each in made.items()}
    return {key: each for key, each in found.items() if not np.isnan(each.low + each.high)}


def is_sure(difference: Interval) -> bool:
    """Whether the interval of a difference leaves out 0."""
    return difference.low > 0 or difference.high < 0


def _within(key: str, of: Interval) -> Interval:
    """An interval that leaves the range of its metric, as of few users it may, ends there."""
    metric = find(key)
    if metric is None or metric.name not in ("auc", "ece"):  # others are resampled values of the metric itself
        return of
    return Interval(of.value, max(of.low, 0.0), min(of.high, 1.0))


@functools.lru_cache(maxsize=4)
def _counts(clusters: int) -> np.ndarray:
    """How often each resample has each cluster, [`RESAMPLES`, C] float64; always the same ones."""
    drawn = np.random.default_rng(1).integers(0, clusters, (RESAMPLES, clusters))
    cell = drawn + clusters * np.arange(RESAMPLES)[:, None]
    return np.bincount(cell.ravel(), minlength=RESAMPLES * clusters).reshape(RESAMPLES, clusters).astype(np.float64)

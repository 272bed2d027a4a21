"""Whether two samples have one distribution, where rows of one user are not independent.

Counts in cells are compared by Pearson's chi-square and by the population stability index (PSI), numbers also by the
distance of Kolmogorov and Smirnov. Rows come in clusters (users), so that counts vary by more than independent ones
would: with design effects d_1, d_2, ... the statistic of Pearson is a sum of d_i * chi2_1 (Rao and Scott 1981, "The
Analysis of Categorical Data From Complex Sample Surveys", theorem 1). Three power sums of the design effects say enough
of such a sum for its tail (Buckley and Eagleson 1988, "An Approximation to the Distribution of Quadratic Forms in
Normal Random Variables"), and no row or user has to be kept to compare with later.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

GROUPS = 2000
"""Clusters that covariances are taken over: more of them are put together by lot, which leaves the variance of a sum as
it is."""
FEWEST = 30
"""Clusters, of fewer of which it is not known well enough how much they differ (Cameron, Gelbach and Miller 2008,
"Bootstrap-Based Improvements for Inference with Clustered Errors")."""
LEAST = 5.0
"""Expected count of a cell of its own (Cochran 1954); the smaller ones are put together."""


# ---------------------------------------------------------------------------------------------- distributions


def chi_square_tail(x: float, freedom: float) -> float:
    """P(chi2 > x) with `freedom` > 0 degrees of freedom, which need not be whole: the regularised upper incomplete
    gamma function Q(freedom / 2, x / 2), by its series or its continued fraction (Abramowitz and Stegun 1964, 6.5.29
    and 6.5.31)."""
    a, half = freedom / 2, x / 2
    if half <= 0:
        return 1.0
    scale = math.exp(a * math.log(half) - half - math.lgamma(a))
    if half < a + 1:
        term = total = 1 / a
        for n in range(1, 100_000):
            term *= half / (a + n)
            total += term
            if term < total * 1e-15:
                break
        return max(1 - scale * total, 0.0)
    # Lentz's evaluation from the front (Thompson and Barnett 1986).
    tiny, b = 1e-300, half + 1 - a
    c, d = 1 / tiny, 1 / b
    fraction = d
    for n in range(1, 100_000):
        b += 2
        step = n * (a - n)
        d, c = 1 / (b + step * d or tiny), b + step / c or tiny
        fraction *= c * d
        if abs(c * d - 1) < 1e-15:
            break
    return min(scale * fraction, 1.0)


def kolmogorov_tail(x: float) -> float:
    """P(K > x) of Kolmogorov's distribution: 2 sum_j (-1)^(j - 1) exp(-2 j^2 x^2)."""
    if x < 0.2:  # there it is 1 but for 1e-12, and the series does not converge
        return 1.0
    terms = (2 * (-1) ** (j - 1) * math.exp(-2 * (j * x) ** 2) for j in range(1, 101))
    return min(max(math.fsum(terms), 0.0), 1.0)


def normal_tail(x: float) -> float:
    """P(|N| > |x|) of a standard normal variable."""
    return math.erfc(abs(x) / math.sqrt(2))


def holm(values: Sequence[float]) -> list[float]:
    """p-values adjusted for how many there are: with all of them right by chance, one below alpha has probability alpha
    at most, however they depend on each other (Holm 1979)."""
    order = np.argsort(values, kind="stable")
    left = len(values) - np.arange(len(values))
    sorted_values = np.maximum.accumulate(np.asarray(values, np.float64)[order] * left)
    adjusted = np.empty(len(values))
    adjusted[order] = np.minimum(sorted_values, 1.0)
    return adjusted.tolist()


# ---------------------------------------------------------------------------------------------- samples


@dataclass(frozen=True)
class Sample:
    """Counts of a sample in K cells, and how much clusters make them vary."""

    counts: np.ndarray
    """[K] float64."""
    excess: tuple[float, float, float] = (0.0, 0.0, 0.0)
    """By how much the sums of the design effects, of their squares and of their cubes are above those of independent
    rows, which are 1 less than the cells with rows. NaN with fewer than `FEWEST` clusters."""
    step: float = 1.0
    """The largest design effect of a share of the first cells, at least 1: that of a distribution function."""

    @property
    def rows(self) -> float:
        """Rows of the sample."""
        return float(self.counts.sum())

    @property
    def shares(self) -> np.ndarray:
        """[K] float64, which sum to 1; without rows 0."""
        return self.counts / max(self.rows, 1.0)

    def merged(self, cell: np.ndarray) -> Sample:
        """The sample with cells put together: cell k becomes `cell[k]` [K], from 0. The design effects of cells put
        together are no further above 1 than those of the cells were."""
        return replace(self, counts=np.bincount(cell, self.counts))


def sample(cell: np.ndarray, cluster: np.ndarray, cells: int) -> Sample:
    """The counts of rows in cells [n] (from 0 to `cells`), with rows of one cluster [n] not independent.

    The covariance of the shares p is that of ratios of sums over clusters g, G of them, with counts x_g and rows n_g:

        V = G / (G - 1) sum_g (x_g - p n_g) (x_g - p n_g)^T / n^2,      D_kl = n V_kl / sqrt(p_k p_l)

    and the eigenvalues of D are the design effects.
    """
    number = np.unique(cluster, return_inverse=True)[1]
    groups = int(number.max(initial=-1)) + 1
    if groups > GROUPS:
        number = (np.random.default_rng(0).permutation(groups) % GROUPS)[number]
        groups = GROUPS
    table = np.bincount(number * cells + cell, minlength=groups * cells).reshape(groups, cells).astype(np.float64)
    counts, rows = table.sum(0), table.sum()
    if groups < FEWEST:
        return Sample(counts, (math.nan,) * 3, math.nan)
    shares, found = counts / rows, counts > 0
    apart = (table - shares * table.sum(1, keepdims=True)) * math.sqrt(groups / (groups - 1) / rows)
    scaled = apart[:, found] / np.sqrt(shares[found])
    effects = scaled.T @ scaled
    square = effects @ effects
    powers = (np.trace(effects), np.trace(square), np.sum(square * effects))
    first, second, third = (max(float(each) - (found.sum() - 1), 0.0) for each in powers)
    below = np.cumsum(shares)[:-1]
    spread, chance = np.sum(np.cumsum(apart, axis=1)[:, :-1] ** 2, axis=0), below * (1 - below)
    inside = chance > 1e-12
    return Sample(counts, (first, second, third), max(float(np.max(spread[inside] / chance[inside], initial=1.0)), 1.0))


# ---------------------------------------------------------------------------------------------- comparisons


@dataclass(frozen=True)
class Difference:
    """How far a sample is from another, in cells."""

    psi: float
    chance: float
    """What the PSI of two samples of one distribution would be on average."""
    p: float
    """Of a distance as large, by chance; 1 where there is nothing to compare."""


NOTHING = Difference(0.0, 0.0, 1.0)


def psi(first: np.ndarray, second: np.ndarray) -> float:
    """The population stability index of counts in K cells [K]: sum_k (p_k - q_k) log(p_k / q_k), with half a row added
    to each cell, so that an empty one does not make it infinite."""
    p, q = ((each + 0.5) / (each.sum() + 0.5 * len(each)) for each in (first, second))
    return float(np.sum((p - q) * np.log(p / q)))


def compare(first: Sample, second: Sample) -> Difference:
    """Two samples in the same cells. The statistic is Pearson's, sum_k (p_k - q_k)^2 / m_k with the shares m of both;
    its distribution that of a sum of chi-squares of the two samples' design effects over their rows. Where these are
    not of the same direction in both samples, the sum has a heavier tail here than in fact."""
    if min(first.rows, second.rows) < 2 or math.isnan(first.excess[0] + second.excess[0]):
        return NOTHING
    cell = _large_enough(first, second)
    first, second = first.merged(cell), second.merged(cell)
    counts = first.counts + second.counts
    kept = counts > 0
    if kept.sum() < 2:
        return NOTHING
    apart, middle = first.shares - second.shares, counts / counts.sum()
    statistic = float(np.sum(apart[kept] ** 2 / middle[kept]))
    powers = [_power(first, second, int(kept.sum()) - 1, j) for j in (1, 2, 3)]
    return Difference(psi(first.counts[kept], second.counts[kept]), powers[0], quadratic_tail(statistic, powers))


def quadratic_tail(x: float, powers: Sequence[float]) -> float:
    """P(sum_i c_i chi2_1 > x) for c_i > 0 of which `powers` are the sums of the first three powers, by the chi-square
    with the same mean, variance and skewness (Buckley and Eagleson 1988)."""
    first, second, third = powers
    if not second:
        return 1.0
    freedom = second**3 / third**2
    return chi_square_tail(float((x - first) * math.sqrt(freedom / second) + freedom), float(freedom))


def ks(first: tuple[np.ndarray, np.ndarray], second: tuple[np.ndarray, np.ndarray]) -> float:
    """The distance of two distribution functions at the same places: each is the shares of rows up to and below them,
    [n] float64. It is that of Kolmogorov and Smirnov where all values of one sample are among the places, else at most
    that."""
    return float(max(np.max(np.abs(a - b), initial=0.0) for a, b in zip(first, second, strict=True)))


def ks_tail(distance: float, first: Sample, second: Sample) -> float:
    """P(a distance as large, by chance), for many rows; clusters count as so many rows fewer as they do where they do
    most."""
    rows = [each.rows / each.step for each in (first, second)]
    if not distance or min(rows) < 2 or math.isnan(sum(rows)):
        return 1.0
    return kolmogorov_tail(distance * math.sqrt(rows[0] * rows[1] / sum(rows)))


def _large_enough(first: Sample, second: Sample) -> np.ndarray:
    """Where each cell goes [K]: those in which either sample is expected to have too few rows go together."""
    share = (first.counts + second.counts) / (first.rows + second.rows)
    small = share * min(first.rows, second.rows) < LEAST
    if small.sum() < 2:
        return np.arange(len(share))
    return np.where(small, (~small).sum(), np.cumsum(~small) - 1)


def _power(first: Sample, second: Sample, independent: int, j: int) -> float:
    """At most the sum of the j-th powers of the eigenvalues of D_1 / n + D_2 / m, of which so many are those of
    `independent` rows: Schatten norms obey the triangle inequality."""
    return float(sum((independent + each.excess[j - 1]) ** (1 / j) / each.rows for each in (first, second)) ** j)

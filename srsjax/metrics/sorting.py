"""Rows in order of group and value: the one sort under every exact metric, with no loop over groups.

M rows, G groups, B ties. A tie is a run of rows of one group with equal values.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np


class GroupMean(NamedTuple):
    """A metric averaged over the groups in which it is defined."""

    value: float
    """The mean; NaN where it is defined in no group."""
    groups: int
    """Groups it is defined in."""
    covered: float
    """Their share of all groups, or of all weight where the mean is weighted; NaN without rows."""


@dataclass(frozen=True)
class SortedRows:
    """Rows ordered by group, then by value, both ascending. Groups keep their order whatever the values are."""

    order: np.ndarray
    """[M] int64, the row at each place."""
    groups: np.ndarray
    """[G] int64, first place of each group."""
    ties: np.ndarray
    """[B] int64, first place of each tie."""
    first_tie: np.ndarray
    """[G] int64, first tie of each group."""

    @property
    def group_sizes(self) -> np.ndarray:
        """Rows of each group, [G] int64."""
        return np.diff(self.groups, append=len(self.order))

    @property
    def tie_sizes(self) -> np.ndarray:
        """Rows of each tie, [B] int64."""
        return np.diff(self.ties, append=len(self.order))

    @property
    def tie_ranks(self) -> np.ndarray:
        """Rows of the same group before each tie, [B] int64."""
        return self.ties - np.repeat(self.groups, np.diff(self.first_tie, append=len(self.ties)))

    def tie_sums(self, rows: np.ndarray) -> np.ndarray:
        """[M] in the caller's order -> [B], summed over each tie."""
        return np.add.reduceat(rows[self.order], self.ties)

    def group_sums(self, ties: np.ndarray) -> np.ndarray:
        """[B] -> [G], summed over each group."""
        return np.add.reduceat(ties, self.first_tie)

    def sums_before(self, ties: np.ndarray) -> np.ndarray:
        """[B] -> [B], the sum over the earlier ties of the same group."""
        steps = np.concatenate([ties[:1], ties[:-1]])
        steps[self.first_tie] = 0
        # Each group starts by taking away what the one before left, so that the running sum stays as small as its own
        # group; what rounding leaves at the start of a group goes too.
        steps[self.first_tie[1:]] = -np.add.reduceat(steps, self.first_tie)[:-1]
        running = np.cumsum(steps)
        return running - np.repeat(running[self.first_tie], np.diff(self.first_tie, append=len(ties)))


def sort_rows(values: np.ndarray, groups: np.ndarray | None = None) -> SortedRows:
    """Sorts M rows, M >= 1.

    Args:
        values: [M], any dtype that sorts; no NaN.
        groups: [M] int64 group numbers, in any order; None makes one group of all rows.
    """
    order = np.argsort(values)
    if groups is not None:
        # Ranks make one integer key of group and value, which sorts several times faster than two keys do.
        rank = np.empty(len(values), np.int64)
        rank[order] = np.cumsum(_changes(values[order]))
        key = np.unique(groups, return_inverse=True)[1] * (len(values) + 1) + rank
        order = np.argsort(key)
        ties = np.flatnonzero(_changes(key[order]))
        group_starts = np.flatnonzero(_changes(groups[order]))
    else:
        ties = np.flatnonzero(_changes(values[order]))
        group_starts = np.zeros(1, np.int64)
    return SortedRows(order, group_starts, ties, np.searchsorted(ties, group_starts))


def group_sizes(groups: np.ndarray) -> np.ndarray:
    """Rows of each group, [G] int64, ascending by group number; `groups` [M], M >= 1."""
    return np.diff(np.flatnonzero(_changes(np.sort(groups))), append=len(groups))


def known(weights: np.ndarray, *columns: np.ndarray | None) -> tuple[Any, ...]:
    """The rows with weight above 0, of `weights` and of each column; floats and bools become float64.

    Raises ValueError where columns differ in length or a row that counts holds NaN.
    """
    keep = np.asarray(weights) > 0
    return (_select(weights, keep), *(None if column is None else _select(column, keep) for column in columns))


def _select(column: np.ndarray, keep: np.ndarray) -> np.ndarray:
    if len(column) != len(keep):
        raise ValueError(f"expected {len(keep)} rows as in weights, found a column of {len(column)}")
    kept = np.asarray(column)[keep]
    if kept.dtype.kind in "fb":
        kept = kept.astype(np.float64)
        if np.isnan(kept).any():
            raise ValueError(f"found {int(np.isnan(kept).sum())} NaN in {len(kept)} rows, expected numbers")
    return kept


def _changes(values: np.ndarray) -> np.ndarray:
    """[M] bool: whether a value differs from the one before; True for the first."""
    return np.concatenate([[True], values[1:] != values[:-1]])

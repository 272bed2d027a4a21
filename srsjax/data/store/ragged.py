"""Ragged columns: variable-length rows as one flat array and its offsets, in memory or memory-mapped.

The main data structure of the token store. `n` rows are `values[offsets[i]:offsets[i + 1]]`.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Ragged:
    """`values` [total, ...] of any dtype and `offsets` [n + 1] int64, offsets[0] = 0."""

    values: np.ndarray
    offsets: np.ndarray

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, i: int) -> np.ndarray:
        return self.values[self.offsets[i] : self.offsets[i + 1]]

    @property
    def lengths(self) -> np.ndarray:
        """Row lengths, [n] int64."""
        return np.diff(self.offsets)

    @classmethod
    def from_lengths(cls, values: np.ndarray, lengths: np.ndarray) -> Ragged:
        """Rows of these lengths, cut from `values` in order."""
        return cls(values, np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)]))

    @classmethod
    def from_rows(cls, rows, dtype) -> Ragged:
        """From a list of sequences."""
        lengths = np.fromiter((len(row) for row in rows), np.int64, len(rows))
        values = np.empty(int(lengths.sum()), dtype)
        at = 0
        for row in rows:
            values[at : at + len(row)] = row
            at += len(row)
        return cls.from_lengths(values, lengths)

    def take(self, rows: np.ndarray) -> Ragged:
        """The rows with these indices, in this order; an index below 0 gives an empty row."""
        rows = np.asarray(rows, np.int64)
        starts = np.where(rows < 0, 0, self.offsets[np.maximum(rows, 0)])
        lengths = np.where(rows < 0, 0, self.offsets[np.maximum(rows, 0) + 1] - starts)
        return Ragged.from_lengths(self.values[spans(starts, lengths)], lengths)

    def append(self, other: Ragged) -> Ragged:
        """The rows of both, those of `other` last."""
        values = [part.values[part.offsets[0] : part.offsets[-1]] for part in (self, other)]
        return Ragged.from_lengths(np.concatenate(values), np.concatenate([self.lengths, other.lengths]))

    def truncate(self, limit: int | np.ndarray) -> Ragged:
        """Each row cut at its end to at most `limit` values."""
        lengths = np.minimum(self.lengths, limit)
        return Ragged.from_lengths(self.values[spans(self.offsets[:-1], lengths)], lengths)

    def regroup(self, outer: np.ndarray) -> Ragged:
        """Consecutive rows joined: new row j is rows outer[j]:outer[j + 1] one after another."""
        return Ragged(self.values, self.offsets[outer])


def join(parts: list[Ragged], separator: int | None = None) -> Ragged:
    """Concatenates the parts row by row; `separator` is put between parts that are not empty."""
    rows = len(parts[0])
    lengths = np.stack([part.lengths for part in parts])  # [P, n]
    if separator is not None:
        filled = np.cumsum(lengths > 0, axis=0)
        gap = (lengths > 0) & (filled > 1)  # a separator goes before this part
    else:
        gap = np.zeros_like(lengths, bool)
    out = np.zeros(rows + 1, np.int64)
    np.cumsum((lengths + gap).sum(0), out=out[1:])
    values = np.empty(out[-1], parts[0].values.dtype)
    at = out[:-1].copy()
    for part, length, before in zip(parts, lengths, gap, strict=True):
        if separator is not None:
            values[at[before]] = separator
        at += before
        values[spans(at, length)] = part.values[spans(part.offsets[:-1], length)]
        at += length
    return Ragged(values, out)


def spans(starts: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """Indices start, start + 1, ... of every span, one after another (int64)."""
    total = int(lengths.sum())
    ends = np.cumsum(lengths)
    return np.arange(total, dtype=np.int64) + np.repeat(starts - (ends - lengths), lengths)

"""Casting the columns of a chunk, with errors that say file, row, column, what was found and what was expected.

Every cast takes the chunk, the column's name and a `Problems`, and gives one value a row. A value is *missing* where it is
null, NaN, blank, or, in a column of numbers or labels, one of `MISSING_WORDS`; what becomes of it is the caller's choice. A
value that is there but cannot be read is a problem: it stops the run or, by the policy, marks the row as bad (and its place
in the result is missing).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pyarrow as pa

from srsjax.data.tables import Chunk

MISSING_WORDS = ("", "na", "n/a", "nan", "null", "none")
"""What people write for a missing number (compared in lower case, without spaces around)."""


@dataclass(frozen=True)
class Problem:
    """A row that cannot be read as the schema says."""

    row: int
    """Row of the chunk, from 0."""
    file: str
    file_row: int
    """Row of the file, from 1."""
    column: str
    found: str
    expected: str

    def __str__(self) -> str:
        return f"{self.file} row {self.file_row}, column {self.column}: found {self.found}, expected {self.expected}"


class Problems:
    """What was wrong with the rows of ONE chunk, and the policy for it: `error` raises InputError at the first,
    `skip` keeps them."""

    def __init__(self, on_bad_row: Literal["error", "skip"] = "error"):
        self.on_bad_row = on_bad_row
        self.found: list[Problem] = []

    def report(self, chunk: Chunk, bad: np.ndarray, column: str, expected: str) -> None:
        """Reports the rows where `bad` [n] bool is true: `column` does not hold what was `expected` (an end of a
        sentence, advice included: `a number; clean it or set Numeric("price", missing="median")`). Also for the caller's
        own checks, such as missing values under `missing="error"`."""
        raise NotImplementedError

    def rows(self, chunk: Chunk) -> np.ndarray:
        """[n] bool, the rows of the chunk that have a problem."""
        raise NotImplementedError


def numbers(chunk: Chunk, column: str, problems: Problems, expected: str = "a number") -> tuple[np.ndarray, np.ndarray]:
    """Finite numbers, [n] float64 (0 where missing), and missing [n] bool. Integers, floats, decimals, booleans (0, 1),
    and text that holds a number are read."""
    raise NotImplementedError


def non_negative(chunk: Chunk, column: str, problems: Problems) -> tuple[np.ndarray, np.ndarray]:
    """Numbers >= 0 (weights, counts, grades), [n] float64, and missing [n] bool."""
    raise NotImplementedError


def texts(chunk: Chunk, column: str, problems: Problems) -> pa.Array:
    """[n] string, null where missing. Numbers, booleans, dates and timestamps become text the obvious way; a float that
    is a whole number is written as one (`3`), so that keys join whatever the type they were stored in."""
    raise NotImplementedError


def text_lists(chunk: Chunk, column: str, problems: Problems) -> pa.Array:
    """[n] list<string>, null where missing; missing elements are left out. A text cell (CSV) holds a JSON list if it
    begins with `[`, else elements separated by `|`; a single number is a list of one."""
    raise NotImplementedError


def vectors(chunk: Chunk, column: str, size: int, problems: Problems) -> tuple[np.ndarray, np.ndarray]:
    """Vectors of finite numbers, [n, size] float32 (0 where missing), and missing [n] bool. Text cells as in
    `text_lists`."""
    raise NotImplementedError


def times(chunk: Chunk, column: str, problems: Problems) -> tuple[np.ndarray, np.ndarray]:
    """What orders rows in time, [n] float64, and missing [n] bool: dates, timestamps and ISO 8601 text as seconds since
    1970 (UTC where no zone is named), numbers as they are."""
    raise NotImplementedError


def labels(chunk: Chunk, column: str, problems: Problems, positive: str = "") -> tuple[np.ndarray, np.ndarray]:
    """Labels in [0, 1], [n] float32, and missing [n] bool: 0, 1, true, false, or a probability. With `positive` the column
    is read as text: that value is 1, every other is 0."""
    raise NotImplementedError


def click_rates(
    chunk: Chunk, clicks: str, impressions: str, problems: Problems
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Aggregated rows: clicks / impressions [n] float32, impressions [n] float64, and missing [n] bool (also where
    impressions are 0). More clicks than impressions is a problem."""
    raise NotImplementedError


def explode(chunk: Chunk, columns: Sequence[str], problems: Problems) -> tuple[Chunk, np.ndarray]:
    """One row a candidate: list columns of equal lengths in a row become one value a row, the others are repeated.

    Gives the exploded chunk (m rows; its `where` still names the row of the file) and parent [m] int64, the row of `chunk`
    each came from. A list of structs `c` gives columns `c.field`. An empty or missing list has no candidate. Unequal
    lengths, and a column that holds no list, are a problem of the row (and give no candidate). Text cells as in
    `text_lists`.
    """
    raise NotImplementedError

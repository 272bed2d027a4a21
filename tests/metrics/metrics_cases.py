"""Rows that metrics find hard, for hypothesis: ties, soft labels, zero weights, groups of one class or one row."""

from typing import NamedTuple

import numpy as np
from hypothesis import strategies as st


class Rows(NamedTuple):
    scores: np.ndarray
    labels: np.ndarray
    weights: np.ndarray
    groups: np.ndarray

    def permuted(self, seed: int) -> "Rows":
        order = np.random.default_rng(seed).permutation(len(self.scores))
        return Rows(*(column[order] for column in self))

    def counted(self) -> "Rows":
        """Without the rows of weight 0."""
        return Rows(*(column[self.weights > 0] for column in self))

    def split_labels(self) -> "Rows":
        """Each row as one of label 1 with its positive mass and one of label 0 with its negative mass."""
        ones, zeros = np.ones(len(self.labels)), np.zeros(len(self.labels))
        return Rows(
            np.tile(self.scores, 2),
            np.concatenate([ones, zeros]),
            np.concatenate([self.weights * self.labels, self.weights * (1 - self.labels)]),
            np.tile(self.groups, 2),
        )

    def by_group(self) -> "list[Rows]":
        """Ascending by group number."""
        return [Rows(*(column[self.groups == group] for column in self)) for group in np.unique(self.groups)]


@st.composite
def rows(draw, labels=(0.0, 0.0, 0.25, 0.5, 1.0, 1.0), weights=(0.0, 0.5, 1.0, 3.0), max_rows=40, max_groups=8) -> Rows:
    count = draw(st.integers(1, max_rows))

    def column(values, dtype=np.float64):
        return np.array(draw(st.lists(st.sampled_from(values), min_size=count, max_size=count)), dtype)

    # Few distinct scores make ties; group numbers are as far apart as hashes are.
    numbers = np.random.default_rng(count).integers(-(2**62), 2**62, draw(st.integers(1, max_groups)))
    return Rows(
        column(np.linspace(-2, 2, draw(st.integers(1, 9)))), column(labels), column(weights), column(numbers, np.int64)
    )

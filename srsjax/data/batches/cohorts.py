"""Which group each training candidate is in, in the batches or in its weight: for losses that treat groups alike."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from srsjax.data.store.arrays import Split

# No feature of a schema has a name with a slash.
COHORT = "fairness/cohort"
"""Name in `PackedBatch.candidate_features`: [R, C] int32, the number of the candidate's group."""
COHORTS = 9
"""Groups: the largest categories of a feature, 0 to 7, and the rest, 8."""


def cohorts(categories: np.ndarray) -> np.ndarray:
    """The groups [M] int32 of candidates with these categories [M]."""
    numbers, place, counts = np.unique(categories, return_inverse=True, return_counts=True)
    ranks = np.empty(len(numbers), np.int32)
    ranks[np.argsort(-counts, kind="stable")] = np.arange(len(numbers))
    return np.minimum(ranks, COHORTS - 1)[place]


def with_cohorts(split: Split, cohort: np.ndarray) -> Split:
    """A training split whose batches hold the groups [M] int32 of its candidates."""
    return replace(split, candidate_features=split.candidate_features | {COHORT: cohort})


def reweighted(split: Split, cohort: np.ndarray, strength: float, power: float) -> Split:
    """A training split in whose first task the label does not depend on the group (Kamiran and Calders 2012, "Data
    preprocessing techniques for classification without discrimination"):

        w(g, y) = (W(g) W(y) / (W W(g, y))) ** strength

    with W(g, y) the weight of the rows of a group with a label; soft labels are shares of both. Training takes weights
    to the `power` (`Task.weight_power`), so that what is multiplied here is the root of it.
    """
    labels = np.asarray(split.labels[:, 0], np.float64)
    weights = np.asarray(split.weights[:, 0], np.float64)
    used = np.where(weights > 0, np.maximum(weights, 1e-30) ** power, 0.0)
    of = np.stack([np.bincount(cohort, used * share, COHORTS) for share in (1 - labels, labels)], axis=1)
    expected = of.sum(1, keepdims=True) * of.sum(0) / of.sum()
    factor = np.where(of > 0, expected / np.where(of > 0, of, 1), 1.0) ** strength
    own = (1 - labels) * factor[cohort, 0] + labels * factor[cohort, 1]
    changed = np.array(split.weights, np.float32)
    changed[:, 0] *= own ** (1 / power)
    return replace(split, weights=changed)

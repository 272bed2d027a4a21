"""Where the head's bias starts: at the label rate of the training split."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from srsjax.config import Task
from srsjax.data.store.arrays import Split
from srsjax.objectives import objectives

CHUNK = 1 << 20
"""Candidates read at a time, so that a split larger than memory is only streamed."""


def prior_logits(tasks: tuple[Task, ...], train: Split) -> np.ndarray:
    """The first bias of every output of every task, [K] float32: `Objective.bias` over the training split."""
    return np.concatenate([made.bias(_chunks(train, t)) for t, (made, _) in enumerate(objectives(tasks))])


def _chunks(train: Split, task: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    for first in range(0, len(train.labels), CHUNK):
        part = slice(first, first + CHUNK)
        yield np.asarray(train.labels[part, task]), np.asarray(train.weights[part, task])

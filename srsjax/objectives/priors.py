"""Where the head's bias starts: at the label rate of the training split."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from srsjax.data.store.arrays import Split
from srsjax.metrics.calibration import logit, sigmoid
from srsjax.objectives.losses import Objectives

MOST = 0.99
"""Largest share of a task among the positives of the one it comes after that a bias starts from."""
CHUNK = 1 << 20
"""Candidates read at a time, so that a split larger than memory is only streamed."""


def prior_logits(goals: Objectives, train: Split) -> np.ndarray:
    """The first bias of every output of every task, [K] float32: `Objective.bias` over the training split; of a task
    that comes after another, the log-odds of its share among the positives of that."""
    found = np.concatenate([made.bias(_chunks(train, t)) for t, (made, _) in enumerate(goals)])
    marginal = found.copy()
    places = {made.task.name: own.start for made, own in goals}
    for made, own in goals:
        if made.task.after:  # its own probability is that under the condition of the other
            share = sigmoid(marginal[own.start]) / sigmoid(marginal[places[made.task.after]])
            found[own.start] = logit(np.minimum(share, MOST))
    return found


def _chunks(train: Split, task: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    for first in range(0, len(train.labels), CHUNK):
        part = slice(first, first + CHUNK)
        yield np.asarray(train.labels[part, task]), np.asarray(train.weights[part, task])

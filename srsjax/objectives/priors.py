"""Where the head begins: at the label rate of the training split."""

from __future__ import annotations

import numpy as np

from srsjax.config import Task
from srsjax.data.store.arrays import Split

CHUNK = 1 << 20
"""Candidates read at a time, so that a split larger than memory is only streamed."""


def prior_logits(tasks: tuple[Task, ...], train: Split) -> np.ndarray:
    """Log-odds of each task's mean training label, the head's first bias, [T] float32.

    With a bias of 0 every pair begins at probability 1/2, and where positives are rare the first hundred steps teach
    the encoder little but "no": its pooled vectors are pushed along the head's kernel, all alike, before any pair is
    told from another. The prior of Lin et al. 2017 ("Focal Loss for Dense Object Detection", section 4.1), taken from
    the data:

        log((P + 1/2) / (W - P + 1/2)),  W = sum of w,  P = sum of w * label

    over the candidates that are trained on, with the training weights w and smoothed labels of the loss. The halves
    keep it finite where all labels are alike. A listwise task begins at 0: its loss does not see a bias, and its labels
    may be any grades.
    """
    binary = np.array([task.kind == "binary" for task in tasks])
    powers = np.array([task.weight_power for task in tasks])
    smoothing = np.array([task.label_smoothing for task in tasks])
    total, positive = np.zeros(len(tasks)), np.zeros(len(tasks))
    for first in range(0, len(train.labels), CHUNK):
        weights = np.asarray(train.weights[first : first + CHUNK], np.float64)
        labels = np.asarray(train.labels[first : first + CHUNK], np.float64) * (1 - smoothing) + smoothing / 2
        used = np.where((weights > 0) & binary, np.maximum(weights, 1e-30) ** powers, 0.0)
        total += used.sum(0)
        positive += (used * labels).sum(0)
    return np.log((positive + 0.5) / (total - positive + 0.5)).astype(np.float32)

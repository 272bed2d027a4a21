"""What another model says of each training candidate, in the batches: for losses that learn from it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from srsjax.data.store.arrays import Split

# No feature of a schema has a name with a slash.
TEACHER = "teacher/logits"
"""Name in `PackedBatch.candidate_features`: [R, C, K] float32, the teacher's logits of all tasks."""


def with_teacher(split: Split, logits: np.ndarray) -> Split:
    """A training split whose batches hold these logits [M, K] float32 of its candidates."""
    return replace(split, candidate_features=split.candidate_features | {TEACHER: logits})

"""Logits of every candidate of a split: the loop that validation, evaluation and scoring share."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable

import jax
import numpy as np

from srsjax.data.batch import PackedBatch
from srsjax.training.sharding import put_batch

IN_FLIGHT = 2
"""Batches dispatched before the oldest result is read: the device never waits for the host, memory stays bounded."""


def predict(
    step: Callable,
    params: dict[str, jax.Array],
    batches: Iterable[tuple[PackedBatch, np.ndarray]],
    mesh: jax.sharding.Mesh,
    shape: tuple[int, int],
    progress: Callable[[int], None] = lambda candidates: None,
) -> np.ndarray:
    """Logits [M, T] float32 of M candidates, in the order of the split; NaN where no batch held the candidate.

    Args:
      step: from `step.jit_predict_step`.
      batches: pairs of a batch [R, ...] and the candidate number of each slot [R, C] int64 (-1 empty), from
        `srsjax.data.loader.eval_batches`.
      shape: (M, T).
      progress: called with the number of candidates of each batch that is done.
    """
    logits = np.full(shape, np.nan, np.float32)
    waiting: deque = deque()

    def collect() -> None:
        result, where = waiting.popleft()
        used = where >= 0
        logits[where[used]] = jax.device_get(result)[used]
        progress(int(used.sum()))

    for batch, where in batches:
        waiting.append((step(params, put_batch(mesh, batch, row_axis=0)), where))
        if len(waiting) >= IN_FLIGHT:
            collect()
    while waiting:
        collect()
    return logits

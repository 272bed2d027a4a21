"""Logits of every candidate of a split: the loop that validation, evaluation and scoring share."""

from __future__ import annotations

import functools
from collections import deque
from collections.abc import Callable, Iterable

import jax
import numpy as np
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from srsjax.compilation import compiler_options
from srsjax.data.batches.batch import PackedBatch
from srsjax.runs.sharding import ROWS, put_batch
from srsjax.runs.state import Forward

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
    """Logits [M, K] float32 of M candidates, in the order of the split; NaN where no batch held the candidate.

    Every host has all of them.

    Args:
      step: from `step.jit_predict_step`.
      batches: pairs of a batch [R, ...] and the candidate number of each slot [R, C] int64 (-1 empty), this host's
        part of each, from `srsjax.data.batches.loader.eval_batches`.
      shape: (M, K).
      progress: called with the number of candidates of each batch that is done.
    """
    logits = np.full(shape, np.nan, np.float32)
    waiting: deque = deque()
    everywhere = _everywhere(mesh)

    def collect() -> None:
        result, where = waiting.popleft()
        where = np.asarray(where)
        used = where >= 0
        logits[where[used]] = jax.device_get(result)[used]
        progress(int(used.sum()))

    for batch, where in batches:
        waiting.append((step(params, put_batch(mesh, batch, row_axis=0)), everywhere(where)))
        if len(waiting) >= IN_FLIGHT:
            collect()
    while waiting:
        collect()
    return logits


@functools.cache
def _everywhere(mesh: jax.sharding.Mesh) -> Callable[[np.ndarray], np.ndarray | jax.Array]:
    """Makes the candidate numbers of all hosts of those of this one, in the order of the rows of the logits.

    Every host reads all logits; it has to know whose they are. int32, because JAX has no other integers by default.
    """
    if not mesh.is_multi_process:
        return lambda where: where

    @functools.partial(jax.jit, out_shardings=NamedSharding(mesh, P()))
    def gather_numbers(where):
        return where

    def everywhere(where: np.ndarray) -> jax.Array:
        if where.max(initial=0) > np.iinfo(np.int32).max:
            raise ValueError("more than 2**31 candidates in one split")
        return gather_numbers(put_batch(mesh, where.astype(np.int32), row_axis=0))

    return everywhere


def jit_predict_step(forward: Forward, mesh: jax.sharding.Mesh, parameters: dict[str, NamedSharding]):
    """(params, batch [R, ...]) -> logits [R, C, K] float32, whole on every device so that any host can read them."""

    def predict_step(params, batch):
        return forward(params, batch)

    return jax.jit(
        predict_step,
        in_shardings=(parameters, NamedSharding(mesh, P(ROWS))),
        out_shardings=NamedSharding(mesh, P()),
        compiler_options=compiler_options(mesh),
    )

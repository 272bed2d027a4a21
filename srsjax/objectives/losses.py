"""The loss of a step over packed batches, as sums with their normalisers, so that micro-batches add up exactly.

    sum over tasks t of  loss_weight_t * sum over terms i of t of  share_i * S_i / max(N_i, least_i)

The terms of a binary task with `softmax` s and of a listwise task (s = 1) are, for example,

    (1 - s) * B / max(W, tiny)  +  s * S / max(N, 1)

    B  sum of w * binary cross-entropy over candidates,         W  sum of w
    S  sum of softmax cross-entropies over impressions,         N  number of impressions with a positive label

with the training weight w = weight ** weight_power. With a teacher (`config.Distill`, weight d) the shares are
multiplied by 1 - d, and a term of share d is added that compares with the teacher's logits (`terms.soft`,
`terms.margins`); with groups (`config.Fairness`) one that compares these (`terms.opportunity`). W and N depend on
labels alone: they are taken over the whole batch before the first micro-batch, and each micro-batch contributes its
share of the one quotient.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from srsjax.config import Task
from srsjax.data.batches.batch import PackedBatch
from srsjax.data.batches.cohorts import COHORT
from srsjax.data.batches.identity import ITEM, LOG_SHARE
from srsjax.data.batches.teacher import TEACHER
from srsjax.model.heads import Pairs
from srsjax.objectives import objective
from srsjax.objectives.objective import Labels, Objective

Objectives = tuple[tuple[Objective, slice], ...]
"""From `srsjax.objectives.objectives`."""
Normalisers = tuple[tuple[jax.Array, ...], ...]
"""The divisor of each term of each task, float32 scalars."""


def normalisers(goals: Objectives, batch: PackedBatch) -> Normalisers:
    """The divisors of a batch, over all leading axes (see the module's formula)."""
    return tuple(made.normalisers(_labels(batch, t, outputs)) for t, (made, outputs) in enumerate(goals))


def total_loss(
    goals: Objectives,
    logits: jax.Array,
    batch: PackedBatch,
    normaliser: Normalisers,
    log_variance: jax.Array | None = None,
    share: float = 1.0,
    pairs: Pairs | None = None,
) -> jax.Array:
    """This (micro-)batch's share of the step's loss, a float32 scalar.

    Args:
      logits: [R, C, K] float32, the outputs of all tasks one after another.
      normaliser: of the whole batch, from `normalisers`.
      log_variance: s [T] of `model.task_weights uncertainty`: task t counts exp(-s_t) times its loss, plus s_t / 2.
      share: of this micro-batch in the step, of what does not depend on its candidates.
      pairs: from `ctr.forward_pairs`, where `compares_batch`.
    """
    total = jnp.float32(0)
    for t, (made, outputs) in enumerate(goals):
        known = _labels(batch, t, outputs)
        if pairs is not None:
            known = known._replace(pairs=pairs._replace(queries=pairs.queries[..., outputs, :]))
        loss = made.loss(logits[..., outputs], known, normaliser[t])
        if log_variance is not None:
            loss = jnp.exp(-log_variance[t]) * loss + share * log_variance[t] / 2
        total += loss
    return total


def needs_whole_impressions(tasks: tuple[Task, ...]) -> bool:
    """Whether a loss compares the candidates of an impression, which then must lie in one row."""
    return any(objective(task).whole_impressions for task in tasks)


def compares_batch(tasks: tuple[Task, ...]) -> bool:
    """Whether a loss compares all candidates of a batch, which then must say which items they are
    (`srsjax.data.batches.identity`)."""
    return any(objective(task).in_batch for task in tasks)


def _labels(batch: PackedBatch, task: int, outputs: slice) -> Labels:
    names = (ITEM, LOG_SHARE, TEACHER, COHORT)
    item, log_share, teacher, cohort = (batch.candidate_features.get(name) for name in names)
    return Labels(
        batch.labels[..., task],
        batch.weights[..., task],
        batch.group,
        item,
        log_share,
        teacher=None if teacher is None else teacher[..., outputs],
        cohort=cohort,
    )

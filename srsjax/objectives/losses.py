"""Losses over packed batches, as sums with their normalisers, so that micro-batches add up exactly.

The loss of a step is

    sum over tasks t of  loss_weight_t * [ (1 - s_t) * B_t / max(W_t, tiny)  +  s_t * S_t / max(N_t, 1) ]

    B_t  sum of w * binary cross-entropy over candidates,         W_t  sum of w
    S_t  sum of softmax cross-entropies over impressions,         N_t  number of impressions with a positive label

with the training weight w = weight ** weight_power. W and N depend on labels alone: they are taken over the whole
batch before the first micro-batch, and each micro-batch contributes its share of the one quotient.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import optax
import rax

from srsjax.config import Task
from srsjax.data.batches.batch import PackedBatch


def training_weights(task: Task, weights: jax.Array) -> jax.Array:
    """weight ** weight_power where the weight is above 0, else 0; any shape, float32."""
    return jnp.where(weights > 0, jnp.maximum(weights, 1e-30) ** task.weight_power, 0.0)


def binary_cross_entropy(task: Task, logits: jax.Array, labels: jax.Array, weights: jax.Array) -> jax.Array:
    """Sum of weight * binary cross-entropy over [..., C]; hard or soft labels in [0, 1], smoothed as the task says."""
    smoothing = task.label_smoothing
    labels = labels * (1.0 - smoothing) + 0.5 * smoothing
    return jnp.sum(training_weights(task, weights) * optax.sigmoid_binary_cross_entropy(logits, labels))


def target_distribution(
    task: Task, labels: jax.Array, weights: jax.Array, group: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """What the softmax of each impression should be: p_i proportional to w_i * label_i (clicks, for counts).

    Args:
      labels, weights: [..., R, C] float32.
      group: [..., R, C] int32, equal within an impression.

    Returns:
      p [..., R, C], summing to 1 over each impression with a positive label and 0 elsewhere, and the segments
      [..., R, C] in which candidates of unknown label (weight 0) are set apart as -1. An impression split over rows
      counts as one list in each row.
    """
    segments = jnp.where(weights > 0, group, -1)
    mass = labels * training_weights(task, weights)
    same = segments[..., :, None] == segments[..., None, :]
    total = jnp.sum(jnp.where(same, mass[..., None, :], 0.0), axis=-1)
    return jnp.where(total > 0, mass / jnp.where(total > 0, total, 1.0), 0.0), segments


def softmax_cross_entropy(
    task: Task, logits: jax.Array, labels: jax.Array, weights: jax.Array, group: jax.Array
) -> jax.Array:
    """Sum over impressions of -sum_i p_i log softmax(logits)_i (ListNet, Cao et al. 2007), by `rax.softmax_loss`."""
    target, segments = target_distribution(task, labels, weights, group)
    return jnp.sum(rax.softmax_loss(logits, target, segments=segments, reduce_fn=None))


def normalisers(tasks: tuple[Task, ...], batch: PackedBatch) -> tuple[jax.Array, jax.Array]:
    """W [T] and N [T] of a batch, over all leading axes (see the module's formula)."""
    weight_sums, impression_counts = [], []
    for t, task in enumerate(tasks):
        labels, weights = batch.labels[..., t], batch.weights[..., t]
        weight_sums.append(jnp.sum(training_weights(task, weights)))
        impression_counts.append(jnp.sum(target_distribution(task, labels, weights, batch.group)[0]))
    return jnp.stack(weight_sums), jnp.stack(impression_counts)


def total_loss(
    tasks: tuple[Task, ...], logits: jax.Array, batch: PackedBatch, normaliser: tuple[jax.Array, jax.Array]
) -> jax.Array:
    """This (micro-)batch's share of the step's loss, a float32 scalar.

    Args:
      logits: [R, C, T] float32.
      normaliser: W and N of the whole batch, from `normalisers`.
    """
    weight_sums, impression_counts = normaliser
    total = jnp.float32(0)
    for t, task in enumerate(tasks):
        share = 1.0 if task.kind == "listwise" else task.softmax
        scores, labels, weights = logits[..., t], batch.labels[..., t], batch.weights[..., t]
        loss = jnp.float32(0)
        if share < 1:
            summed = binary_cross_entropy(task, scores, labels, weights)
            loss += (1.0 - share) * summed / jnp.maximum(weight_sums[t], 1e-30)
        if share > 0:
            summed = softmax_cross_entropy(task, scores, labels, weights, batch.group)
            loss += share * summed / jnp.maximum(impression_counts[t], 1.0)
        total += task.loss_weight * loss
    return total


def needs_whole_impressions(tasks: tuple[Task, ...]) -> bool:
    """Whether a loss compares the candidates of an impression, which then must lie in one row."""
    return any(task.kind == "listwise" or task.softmax > 0 for task in tasks)

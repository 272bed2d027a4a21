"""Loss functions over packed batches, as sums: what the objectives are made of."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import optax
import rax

from srsjax.config import Task
from srsjax.objectives.objective import Labels, Term


def training_weights(task: Task, weights: jax.Array) -> jax.Array:
    """weight ** weight_power where the weight is above 0, else 0; any shape, float32."""
    return jnp.where(weights > 0, jnp.maximum(weights, 1e-30) ** task.weight_power, 0.0)


def binary_cross_entropy(task: Task, logits: jax.Array, known: Labels) -> jax.Array:
    """Sum of weight * binary cross-entropy; hard or soft labels in [0, 1], smoothed as the task says.

    `logits` [R, C, 1] float32.
    """
    smoothing = task.label_smoothing
    labels = known.labels * (1.0 - smoothing) + 0.5 * smoothing
    losses = optax.sigmoid_binary_cross_entropy(logits[..., 0], labels)
    return jnp.sum(training_weights(task, known.weights) * losses)


def target_distribution(task: Task, known: Labels) -> tuple[jax.Array, jax.Array]:
    """What the softmax of each impression should be: p_i proportional to w_i * label_i (clicks, for counts).

    Returns:
      p [..., R, C], summing to 1 over each impression with a positive label and 0 elsewhere, and the segments
      [..., R, C] in which candidates of unknown label (weight 0) are set apart as -1. An impression split over rows
      counts as one list in each row.
    """
    segments = jnp.where(known.weights > 0, known.group, -1)
    mass = known.labels * training_weights(task, known.weights)
    same = segments[..., :, None] == segments[..., None, :]
    total = jnp.sum(jnp.where(same, mass[..., None, :], 0.0), axis=-1)
    return jnp.where(total > 0, mass / jnp.where(total > 0, total, 1.0), 0.0), segments


def softmax_cross_entropy(task: Task, logits: jax.Array, known: Labels) -> jax.Array:
    """Sum over impressions of -sum_i p_i log softmax(logits)_i (ListNet, Cao et al. 2007), by `rax.softmax_loss`.

    `logits` [R, C, 1] float32.
    """
    target, segments = target_distribution(task, known)
    return jnp.sum(rax.softmax_loss(logits[..., 0], target, segments=segments, reduce_fn=None))


def pointwise(task: Task, share: float) -> Term:
    """Binary cross-entropy, averaged over the training weight of the batch."""
    return Term(
        share,
        total=lambda logits, known: binary_cross_entropy(task, logits, known),
        normaliser=lambda known: jnp.sum(training_weights(task, known.weights)),
        least=1e-30,
    )


def listwise(task: Task, share: float) -> Term:
    """Softmax cross-entropy, averaged over the impressions with a positive label."""
    return Term(
        share,
        total=lambda logits, known: softmax_cross_entropy(task, logits, known),
        normaliser=lambda known: jnp.sum(target_distribution(task, known)[0]),
        least=1.0,
        whole_impressions=True,
    )

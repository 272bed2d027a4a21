"""Loss functions over packed batches, as sums: what the objectives are made of."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax
import rax

from srsjax.config import Task
from srsjax.data.batches.cohorts import COHORTS
from srsjax.objectives.objective import Labels, Term


def training_weights(task: Task, weights: jax.Array) -> jax.Array:
    """weight ** weight_power where the weight is above 0, else 0; any shape, float32."""
    return jnp.where(weights > 0, jnp.maximum(weights, 1e-30) ** task.weight_power, 0.0)


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


def normalised_sigmoids(task: Task, logits: jax.Array, known: Labels) -> jax.Array:
    """Sum over impressions of -sum_i p_i log(q_i / sum_j q_j) with q = sigmoid(logits): the listwise loss that
    probabilities minimise too (Bai et al. 2023, "Regression Compatible Listwise Objectives for Calibrated Ranking").

    `logits` [R, C, 1] float32. It is the softmax cross-entropy of log q.
    """
    return softmax_cross_entropy(task, jax.nn.log_sigmoid(logits), known)


def same_impression(known: Labels) -> jax.Array:
    """[..., R, C, C] bool: whether two candidates of known label are of one impression."""
    segments = jnp.where(known.weights > 0, known.group, -1)
    return (segments[..., :, None] == segments[..., None, :]) & (segments[..., :, None] >= 0)


def pairs_of(known: Labels) -> jax.Array:
    """[..., R, C, C] bool: whether candidate i has a higher known label than candidate j of the same impression."""
    return same_impression(known) & (known.labels[..., :, None] > known.labels[..., None, :])


def pair_weights(task: Task, known: Labels) -> jax.Array:
    """[..., R, C, C] float32: the product of the training weights of each pair of `pairs_of`, 0 for others."""
    weights = training_weights(task, known.weights)
    return jnp.where(pairs_of(known), weights[..., :, None] * weights[..., None, :], 0.0)


def pair_loss(task: Task, logits: jax.Array, known: Labels) -> jax.Array:
    """Sum over pairs of weight * log(1 + exp(s_j - s_i)), or of weight * max(0, margin - (s_i - s_j)).

    `logits` [R, C, 1] float32.
    """
    lead = logits[..., :, None, 0] - logits[..., None, :, 0]
    if task.loss == "margin":
        return jnp.sum(pair_weights(task, known) * jax.nn.relu(task.margin - lead))
    return jnp.sum(pair_weights(task, known) * jax.nn.softplus(-lead))


def ndcg_change(logits: jax.Array, known: Labels) -> jax.Array:
    """[..., R, C, C] float32: by how much NDCG changes where two candidates of an impression change places,

        |2^y_i - 2^y_j| |1 / log2(1 + rank_i) - 1 / log2(1 + rank_j)| / (DCG of the best order)

    with ranks by `logits` [..., R, C], equal ones in the order of their slots; 0 across impressions.
    """
    same, slot = same_impression(known), jnp.arange(known.labels.shape[-1])

    def discounts(values: jax.Array) -> jax.Array:
        first = values[..., None, :], values[..., :, None]  # j, i: whether j comes before i
        ahead = same & ((first[0] > first[1]) | ((first[0] == first[1]) & (slot[None, :] < slot[:, None])))
        return 1 / jnp.log2(2.0 + ahead.sum(-1))

    gain = jnp.exp2(known.labels) - 1
    best = jnp.sum(jnp.where(same, (gain * discounts(known.labels))[..., None, :], 0.0), axis=-1)
    discount = discounts(logits)
    change = jnp.abs(gain[..., :, None] - gain[..., None, :]) * jnp.abs(discount[..., :, None] - discount[..., None, :])
    return jnp.where(same, change / jnp.maximum(best, 1e-9)[..., :, None], 0.0)


def lambda_loss(task: Task, logits: jax.Array, known: Labels) -> jax.Array:
    """Sum over impressions and their pairs of |change of NDCG| log(1 + exp(s_j - s_i)), whose gradient is LambdaRank's
    (Burges 2010, "From RankNet to LambdaRank to LambdaMART"; Wang et al. 2018). Weights only tell known labels.

    `logits` [R, C, 1] float32.
    """
    scores = logits[..., 0]
    change = jax.lax.stop_gradient(ndcg_change(scores, known))
    lead = scores[..., :, None] - scores[..., None, :]
    return jnp.sum(jnp.where(pairs_of(known), change * jax.nn.softplus(-lead), 0.0))


def binary_soft_loss(temperature: float) -> Callable[[jax.Array, jax.Array], jax.Array]:
    """T^2 times the binary cross-entropy of sigmoid(logit / T) with the teacher's sigmoid(logit / T), [R, C, 1] and
    [R, C, 1] -> [R, C] (Hinton et al. 2015, "Distilling the Knowledge in a Neural Network"): T^2 keeps the size of the
    gradient."""

    def loss(logits: jax.Array, teacher: jax.Array) -> jax.Array:
        target = jax.nn.sigmoid(teacher[..., 0] / temperature)
        return temperature**2 * optax.sigmoid_binary_cross_entropy(logits[..., 0] / temperature, target)

    return loss


def multiclass_soft_loss(temperature: float) -> Callable[[jax.Array, jax.Array], jax.Array]:
    """As `binary_soft_loss` with the softmax over the last axis, [R, C, K] and [R, C, K] -> [R, C]."""

    def loss(logits: jax.Array, teacher: jax.Array) -> jax.Array:
        target = jax.nn.softmax(teacher / temperature, axis=-1)
        return temperature**2 * optax.softmax_cross_entropy(logits / temperature, target)

    return loss


def margin_error(task: Task, logits: jax.Array, known: Labels) -> jax.Array:
    """Sum over pairs of weight * ((s_i - s_j) - (t_i - t_j))^2 with the teacher's logits t: Margin-MSE (Hofstaetter et
    al. 2020, "Improving Efficient Neural Ranking Models with Cross-Architecture Knowledge Distillation").

    `logits` [R, C, 1] float32.
    """
    assert known.teacher is not None, "no teacher"
    margins = (each[..., :, None, 0] - each[..., None, :, 0] for each in (logits, known.teacher))
    return jnp.sum(pair_weights(task, known) * optax.squared_error(*margins))


def group_sums(task: Task, values: jax.Array, known: Labels) -> jax.Array:
    """[`COHORTS`] float32: the sum over each group of w * label * value, `values` [R, C] float32."""
    assert known.cohort is not None, "no groups"
    own = jax.nn.one_hot(known.cohort, COHORTS)
    return jnp.einsum("rc,rcg->g", training_weights(task, known.weights) * known.labels * values, own)


# ---------------------------------------------------------------------------------------------- terms


def pointwise(task: Task, share: float, loss: Callable[[jax.Array, jax.Array], jax.Array]) -> Term:
    """A loss of each candidate, averaged over the training weight of the batch; `loss` is a function of logits
    [R, C, K] and labels [R, C] that gives [R, C]."""
    return Term(
        share,
        total=lambda logits, known: jnp.sum(training_weights(task, known.weights) * loss(logits, known.labels)),
        normaliser=lambda known: jnp.sum(training_weights(task, known.weights)),
        least=1e-30,
    )


def listwise(
    task: Task, share: float, loss: Callable[[Task, jax.Array, Labels], jax.Array] = softmax_cross_entropy
) -> Term:
    """A cross-entropy within each impression, averaged over the impressions with a positive label."""
    return Term(
        share,
        total=lambda logits, known: loss(task, logits, known),
        normaliser=lambda known: jnp.sum(target_distribution(task, known)[0]),
        least=1.0,
        whole_impressions=True,
    )


def lambdarank(task: Task, share: float) -> Term:
    """`lambda_loss`, averaged over the impressions with a positive label."""
    return listwise(task, share, lambda_loss)


def soft(task: Task, share: float, loss: Callable[[jax.Array, jax.Array], jax.Array]) -> Term:
    """A loss of each candidate that compares with the teacher, averaged over the training weight of the batch; `loss`
    is a function of both logits [R, C, K] that gives [R, C]. Candidates of unknown label have no weight here either."""

    def total(logits: jax.Array, known: Labels) -> jax.Array:
        assert known.teacher is not None, "no teacher"
        return jnp.sum(training_weights(task, known.weights) * loss(logits, known.teacher))

    return Term(
        share,
        total=total,
        normaliser=lambda known: jnp.sum(training_weights(task, known.weights)),
        least=1e-30,
    )


def opportunity(task: Task, share: float, scores: Callable[[jax.Array], jax.Array]) -> Term:
    """sum_g P_g (m_g - m)^2 / sum_g P_g: the variance between the groups g of their mean scores m_g of positive rows,
    with P_g the weight of these in the group and m the mean score of all of them. It is 0 where the groups have equal
    opportunity in the mean (Hardt et al. 2016, "Equality of Opportunity in Supervised Learning").

    Means are those of a micro-batch, whose penalties are averaged by their P. `scores`: logits [R, C, 1] -> [R, C].
    """

    def total(logits: jax.Array, known: Labels) -> jax.Array:
        weight = group_sums(task, jnp.ones_like(known.labels), known)
        sums = group_sums(task, scores(logits), known)
        means = sums / jnp.maximum(weight, 1e-30)
        mean = sums.sum() / jnp.maximum(weight.sum(), 1e-30)
        return jnp.sum(weight * (means - mean) ** 2)

    return Term(
        share,
        total=total,
        normaliser=lambda known: jnp.sum(training_weights(task, known.weights) * known.labels),
        least=1e-30,
    )


def margins(task: Task, share: float) -> Term:
    """`margin_error`, averaged over the weight of the pairs."""
    return pairs(task, share, margin_error)


def pairs(task: Task, share: float, loss: Callable[[Task, jax.Array, Labels], jax.Array] = pair_loss) -> Term:
    """A loss of pairs of different labels, averaged over their weight."""
    return Term(
        share,
        total=lambda logits, known: loss(task, logits, known),
        normaliser=lambda known: jnp.sum(pair_weights(task, known)),
        least=1e-30,
        whole_impressions=True,
    )

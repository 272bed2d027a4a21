"""Losses against float64 formulas, one candidate and one impression at a time."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from batches import make_batch
from hypothesis import given
from hypothesis import strategies as st
from models import goals

from srsjax.config import Task
from srsjax.data.batches.batch import PackedBatch
from srsjax.objectives import losses


def a_batch(labels, weights, group) -> PackedBatch:
    return make_batch(group=np.asarray(group, np.int32), labels=labels[..., None], weights=weights[..., None])


def reference(task: Task, logits, labels, weights, group) -> float:
    """The formula of the module, slot by slot in float64."""
    bce = total_weight = softmax = impressions = 0.0
    for r in range(len(logits)):
        for c in range(len(logits[r])):
            if weights[r, c] > 0:
                w = float(weights[r, c]) ** task.weight_power
                y = labels[r, c] * (1 - task.label_smoothing) + task.label_smoothing / 2
                bce += w * (np.logaddexp(0, logits[r, c]) - y * logits[r, c])
                total_weight += w
        for g in set(group[r]) - {-1}:
            inside = [c for c in range(len(group[r])) if group[r, c] == g and weights[r, c] > 0]
            mass = np.array([labels[r, c] * float(weights[r, c]) ** task.weight_power for c in inside])
            if mass.sum() > 0:
                x = np.array([logits[r, c] for c in inside])
                log_softmax = x - np.logaddexp.reduce(x)
                softmax -= float(mass / mass.sum() @ log_softmax)
                impressions += 1
    share = 1.0 if task.kind == "listwise" else task.softmax
    return task.loss_weight * ((1 - share) * bce / max(total_weight, 1e-30) + share * softmax / max(impressions, 1))


@st.composite
def slots(draw):
    rows, width = draw(st.integers(1, 3)), draw(st.integers(1, 6))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    group = rng.integers(-1, 3, (rows, width))
    weights = np.where(group < 0, 0, rng.choice([0.0, 0.5, 1.0, 3.0], (rows, width)))
    labels = rng.choice([0.0, 0.25, 1.0], (rows, width))
    return rng.normal(0, 3, (rows, width)), labels, weights, group


@given(
    slots(),
    st.sampled_from(
        [Task(), Task(label_smoothing=0.2), Task(softmax=0.4, weight_power=0.5, loss_weight=2.0), Task(kind="listwise")]
    ),
)
def test_the_loss_is_the_formula(slots, task):
    logits, labels, weights, group = (np.asarray(x, np.float32) for x in slots)
    batch = a_batch(labels, weights, group)
    found = losses.total_loss(
        goals(task), jnp.asarray(logits)[..., None], batch, losses.normalisers(goals(task), batch)
    )
    # float32 sums of fewer than twenty terms of size below 40
    np.testing.assert_allclose(found, reference(task, *(x.astype(np.float64) for x in slots)), rtol=2e-5, atol=2e-5)


@given(slots())
def test_gradients_are_finite_and_empty_slots_have_none(slots):
    logits, labels, weights, group = (np.asarray(x, np.float32) for x in slots)
    task, batch = Task(softmax=0.5), a_batch(labels, weights, group)
    gradient = jax.grad(
        lambda x: losses.total_loss(goals(task), x[..., None], batch, losses.normalisers(goals(task), batch))
    )(jnp.asarray(logits))
    assert np.isfinite(gradient).all()
    assert (np.asarray(gradient)[weights == 0] == 0).all()


def test_aggregated_counts_equal_repeated_rows():
    """7 clicks of 10 impressions as one soft row with weight 10, or as ten rows of weight 1."""
    logits = np.full((1, 10), 0.3, np.float32)
    hard = a_batch(np.array([[1.0] * 7 + [0.0] * 3], np.float32), np.ones((1, 10), np.float32), np.zeros((1, 10)))
    soft = a_batch(np.array([[0.7]], np.float32), np.array([[10.0]], np.float32), np.zeros((1, 1)))
    tasks = goals(Task())
    one = losses.total_loss(tasks, logits[..., None], hard, losses.normalisers(tasks, hard))
    other = losses.total_loss(tasks, logits[:, :1, None], soft, losses.normalisers(tasks, soft))
    assert float(one) == pytest.approx(float(other), rel=1e-6)


def test_parts_of_a_batch_add_up_to_the_whole():
    rng = np.random.default_rng(0)
    labels, weights = rng.random((4, 5)).astype(np.float32), rng.random((4, 5)).astype(np.float32)
    group, logits = np.repeat(np.arange(4), 5).reshape(4, 5), rng.normal(size=(4, 5, 1)).astype(np.float32)
    tasks = goals(Task(softmax=0.3))
    whole = a_batch(labels, weights, group)
    normaliser = losses.normalisers(tasks, whole)
    parts = [
        losses.total_loss(
            tasks, logits[i : i + 2], a_batch(labels[i : i + 2], weights[i : i + 2], group[i : i + 2]), normaliser
        )
        for i in (0, 2)
    ]
    assert float(sum(parts)) == pytest.approx(float(losses.total_loss(tasks, logits, whole, normaliser)), rel=1e-6)

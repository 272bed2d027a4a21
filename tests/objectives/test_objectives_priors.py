"""The head's first bias against the loss itself: it is where the loss of a constant logit is least."""

from __future__ import annotations

import jax
import numpy as np
import pytest
from batches import make_batch, make_split
from models import goals

from srsjax.config import Task
from srsjax.data.store.arrays import Split
from srsjax.objectives import losses, priors

TASKS = goals(Task(), Task(label_smoothing=0.1, weight_power=0.5))


def a_split(labels: np.ndarray, weights: np.ndarray) -> Split:
    """Single candidates, labels and weights [M, T]."""
    return make_split(labels, weights)


@pytest.fixture
def split() -> Split:
    rng = np.random.default_rng(0)
    weights = rng.uniform(0, 3, (4000, 2)) * (rng.random((4000, 2)) < 0.8)
    return a_split(rng.random((4000, 2)) ** 9, weights)


def test_the_loss_of_a_constant_logit_is_least_there(split):
    batch = make_batch(labels=split.labels[None], weights=split.weights[None])
    whole = losses.normalisers(TASKS, batch)

    def loss(bias):
        return losses.total_loss(TASKS, bias + np.zeros((1, 4000, 2), np.float32), batch, whole)

    slope = jax.grad(loss)(priors.prior_logits(TASKS, split))
    # The slope is mean(p - label); the halves of the formula move p by at most 1/2 in about 2,000 weights. At the usual
    # bias of 0 it is 0.4.
    np.testing.assert_allclose(slope, 0, atol=0.5 / 2000)
    assert jax.grad(loss)(np.zeros(2, np.float32)).min() > 0.3


def test_a_split_is_read_in_chunks(split, monkeypatch):
    whole = priors.prior_logits(TASKS, split)
    monkeypatch.setattr(priors, "CHUNK", 17)
    np.testing.assert_allclose(priors.prior_logits(TASKS, split), whole, rtol=1e-6)


@pytest.mark.parametrize("label, sign", [(0, -1), (1, 1)])
def test_labels_all_alike_give_a_finite_bias(label, sign):
    logits = priors.prior_logits(goals(Task()), a_split(np.full((100, 1), label), np.ones((100, 1))))
    np.testing.assert_allclose(logits, [sign * np.log(100.5 / 0.5)], rtol=1e-6)


def test_a_listwise_task_begins_at_zero_whatever_its_grades():
    grades = np.tile([[0.0, 1.0], [3.0, 0.0], [2.0, 1.0]], (10, 1))
    logits = priors.prior_logits(goals(Task(kind="listwise"), Task()), a_split(grades, np.ones((30, 2))))
    np.testing.assert_allclose(logits, [0, np.log(20.5 / 10.5)], rtol=1e-6)

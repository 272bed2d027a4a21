"""Weights and penalties for groups, against float64 formulas."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from batches import make_batch, make_split
from hypothesis import given
from hypothesis import strategies as st

from srsjax.config import Fairness, Task
from srsjax.data.batches.cohorts import COHORT, COHORTS, cohorts, reweighted
from srsjax.errors import InputError
from srsjax.model.spec import Outputs
from srsjax.objectives import losses, objectives

TASK = Task("click", weight_power=0.5)


def batch(seed: int, rows: int = 4):
    rng = np.random.default_rng(seed)
    shape = (rows, 6)
    return (
        rng.normal(0, 2, (*shape, 1)).astype(np.float32),
        make_batch(
            group=np.zeros(shape, np.int32),
            labels=(rng.random((*shape, 1)) < 0.5).astype(np.float32),
            weights=(rng.random((*shape, 1)) * (rng.random((*shape, 1)) < 0.8)).astype(np.float32),
            candidate_features={COHORT: rng.integers(0, 3, shape).astype(np.int32)},
        ),
    )


def penalty(logits, of) -> float:
    """sum_g P_g (m_g - m)^2 / P, slot by slot."""
    used = {g: [] for g in range(COHORTS)}
    for (r, c), weight in np.ndenumerate(of.weights[..., 0]):
        if weight > 0 and of.labels[r, c, 0]:
            score = 1 / (1 + np.exp(-np.float64(logits[r, c, 0])))
            used[int(of.candidate_features[COHORT][r, c])].append((np.float64(weight) ** 0.5, score))
    every = [each for own in used.values() for each in own]
    mean = sum(w * s for w, s in every) / sum(w for w, _ in every)
    total = 0.0
    for own in filter(None, used.values()):
        weight = sum(w for w, _ in own)
        total += weight * (sum(w * s for w, s in own) / weight - mean) ** 2
    return total / sum(w for w, _ in every)


@given(st.integers(0, 1000))
def test_the_penalty_is_the_formula_and_nothing_else_changes(seed):
    logits, of = batch(seed)
    plain = objectives((TASK,), (Outputs("click", "binary"),))
    fair = objectives((TASK,), (Outputs("click", "binary"),), None, Fairness("country", "opportunity", 3.0))

    def loss(goals):
        return float(losses.total_loss(goals, logits, of, losses.normalisers(goals, of)))

    # float32 sums of a few dozen numbers of order 1
    assert loss(fair) - loss(plain) == pytest.approx(3 * penalty(logits, of), abs=2e-6)


def test_its_gradient_brings_the_groups_together():
    logits, of = batch(1, rows=30)
    made = objectives((TASK,), (Outputs("click", "binary"),), None, Fairness("country", "opportunity", 1.0))
    ((own, _),) = made
    known = losses._labels(of, 0, slice(0, 1))
    term = own.summands[-1]
    step = jax.grad(lambda x: term.total(x, known) / term.normaliser(known))(jnp.asarray(logits))
    after = penalty(logits - 100 * np.asarray(step), of)
    assert after < 0.9 * penalty(logits, of)
    assert not np.asarray(step)[(of.labels == 0) | (of.weights == 0)].any()  # positive rows alone


@given(st.integers(0, 1000), st.sampled_from([1.0, 0.5]))
def test_reweighted_labels_do_not_depend_on_the_group(seed, power):
    rng = np.random.default_rng(seed)
    group = rng.integers(0, 4, 400)
    labels = (rng.random(400) < 0.1 + 0.2 * group).astype(np.float32)
    weights = rng.uniform(0.5, 2, 400) * (rng.random(400) < 0.9)
    changed = reweighted(make_split(labels, weights), cohorts(group), 1.0, power).weights[:, 0].astype(np.float64)
    before, after = weights**power, changed**power
    rates = [after[(group == g) & (labels > 0)].sum() / after[group == g].sum() for g in range(4)]
    # float32 weights
    np.testing.assert_allclose(rates, (before * labels).sum() / before.sum(), rtol=1e-5)
    for g in range(4):
        assert after[group == g].sum() == pytest.approx(before[group == g].sum(), rel=1e-5)
    half = reweighted(make_split(labels, weights), cohorts(group), 0.0, power).weights[:, 0]
    np.testing.assert_allclose(half, weights, rtol=1e-6)


def test_groups_are_the_largest_categories_and_the_rest():
    categories = np.repeat(np.arange(20), np.arange(20, 0, -1))[::-1]
    found = cohorts(categories)
    assert found.max() == COHORTS - 1
    for category in range(20):
        assert {*found[categories == category]} == {min(category, COHORTS - 1)}


def test_other_kinds_have_no_penalty():
    (made, _), *_ = objectives(
        (Task("stars", kind="regression"),), (Outputs("stars", "regression"),), None, Fairness("country", "opportunity")
    )
    with pytest.raises(InputError, match="expected a binary one"):
        made.summands  # noqa: B018

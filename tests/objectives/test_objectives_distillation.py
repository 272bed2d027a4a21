"""Losses that compare with a teacher: against torch in float64, and the same however a step is computed."""

from __future__ import annotations

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from batches import make_batch
from hypothesis import given
from hypothesis import strategies as st
from small_problem import clicks

from srsjax.config import Distill, Mesh, Task
from srsjax.data.batches.loader import train_batches
from srsjax.data.batches.teacher import TEACHER, with_teacher
from srsjax.data.preparing.statistics import Fitted
from srsjax.errors import InputError
from srsjax.objectives import losses, objective, objectives
from srsjax.runs.steps import training_step
from srsjax.runs.tables import optimizer_of

torch = pytest.importorskip("torch", reason="needs pip install -e '.[reference]'")
FITTED = Fitted(classes={"topic": ["a", "b", "c"]}, labels={"stars": {"mean": 3.5, "std": 2.0}})


@st.composite
def impressions(draw, outputs: int = 1):
    """Logits and teacher's logits [R, C, K], labels, weights and groups [R, C]."""
    rows, width = draw(st.integers(1, 3)), draw(st.integers(1, 6))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    group = np.sort(rng.integers(-1, 3, (rows, width)), axis=1)
    weights = np.where(group < 0, 0, rng.choice([0.0, 0.5, 1.0, 2.0], (rows, width))).astype(np.float32)
    labels = rng.integers(0, 2, (rows, width)).astype(np.float32)
    logits, teacher = rng.normal(0, 2, (2, rows, width, outputs)).astype(np.float32)
    return logits, teacher, labels, weights, group


def soft_loss(task: Task, slots, distill: Distill) -> float:
    """The loss of a whole batch."""
    logits, teacher, labels, weights, group = slots
    batch = make_batch(group=group.astype(np.int32), labels=labels[..., None], weights=weights[..., None])
    batch = batch._replace(candidate_features={TEACHER: teacher})
    made = objectives((task,), [objective(task).outputs(FITTED)], distill)
    return float(losses.total_loss(made, jnp.asarray(logits), batch, losses.normalisers(made, batch)))


def hard_loss(task: Task, slots) -> float:
    """That of the labels alone."""
    logits, _, labels, weights, group = slots
    batch = make_batch(group=group.astype(np.int32), labels=labels[..., None], weights=weights[..., None])
    made = objectives((task,), [objective(task).outputs(FITTED)])
    return float(losses.total_loss(made, jnp.asarray(logits), batch, losses.normalisers(made, batch)))


def mean(each, weights: np.ndarray) -> float:
    """The weighted mean, 0 where all weights are."""
    return float((np.asarray(each) * weights).sum()) / max(float(weights.sum()), 1e-30)


@given(impressions(), st.sampled_from([1.0, 3.0]), st.sampled_from([0.3, 1.0]))
def test_binary_is_the_cross_entropy_at_a_temperature(slots, temperature, weight):
    logits, teacher, _, weights, _ = slots
    student, target = (torch.tensor(x[..., 0].astype(np.float64)) / temperature for x in (logits, teacher))
    each = torch.nn.functional.binary_cross_entropy_with_logits(student, target.sigmoid(), reduction="none")
    expected = weight * temperature**2 * mean(each, weights) + (1 - weight) * hard_loss(Task(), slots)
    found = soft_loss(Task(), slots, Distill("run", weight, temperature))
    assert found == pytest.approx(expected, rel=2e-5, abs=1e-6)  # float32 sums of at most 18 terms


@given(impressions(3), st.sampled_from([1.0, 3.0]))
def test_multiclass_is_the_cross_entropy_at_a_temperature(slots, temperature):
    logits, teacher, _, weights, group = slots
    task = Task("topic", kind="multiclass")
    student, target = (torch.tensor(x[group >= 0].astype(np.float64)) / temperature for x in (logits, teacher))
    each = torch.nn.functional.cross_entropy(student, target.softmax(-1), reduction="none")
    expected = 0.5 * temperature**2 * mean(each, weights[group >= 0]) + 0.5 * hard_loss(task, slots)
    assert soft_loss(task, slots, Distill("run", 0.5, temperature)) == pytest.approx(expected, rel=2e-5, abs=1e-6)


@given(impressions())
def test_regression_is_the_squared_difference(slots):
    logits, teacher, _, weights, _ = slots
    task = Task("stars", kind="regression")
    each = torch.nn.functional.mse_loss(*map(torch.tensor, (logits[..., 0], teacher[..., 0])), reduction="none")
    expected = 0.25 * mean(each, weights) + 0.75 * hard_loss(task, slots)
    assert soft_loss(task, slots, Distill("run", 0.25)) == pytest.approx(expected, rel=2e-5, abs=1e-6)


@given(impressions(), st.sampled_from(["pairwise", "listwise"]))
def test_rankings_are_taught_by_margins(slots, kind):
    """Hofstaetter et al. 2020, equation 3, over all pairs of a better and a worse candidate."""
    logits, teacher, labels, weights, group = slots
    total, count = torch.zeros((), dtype=torch.float64), 0.0
    for r in range(len(group)):
        for i in range(group.shape[1]):
            for j in range(group.shape[1]):
                pair = float(weights[r, i] * weights[r, j])
                if group[r, i] == group[r, j] >= 0 and pair > 0 and labels[r, i] > labels[r, j]:
                    margins = (torch.tensor(float(x[r, i, 0]) - float(x[r, j, 0])) for x in (logits, teacher))
                    total += pair * torch.nn.functional.mse_loss(*margins)
                    count += pair
    task = Task(kind=kind)
    expected = 0.5 * float(total) / max(count, 1e-30) + 0.5 * hard_loss(task, slots)
    assert soft_loss(task, slots, Distill("run", 0.5)) == pytest.approx(expected, rel=1e-4, abs=1e-5)


def test_a_contrastive_task_has_no_soft_targets():
    made = objectives(
        (Task(kind="contrastive"),), [objective(Task(kind="contrastive")).outputs(FITTED)], Distill("run")
    )
    with pytest.raises(InputError, match="is contrastive, which has no soft targets"):
        made[0][0].summands  # noqa: B018


# ---------------------------------------------------------------------------------------------- steps


def taught(problem, task: Task, mesh: Mesh | None, devices, micro_batches: int):
    """Parameters after two steps with a teacher, and the losses of the steps."""
    made = problem(mesh=mesh, devices=devices, micro_batches=micro_batches, task=task)
    config = replace(made.config, distill=Distill("run", 0.7))
    split, items = clicks(600)
    logits = np.random.default_rng(1).normal(size=(len(split.item), 1)).astype(np.float32)
    whole = losses.needs_whole_impressions((task,))
    batches = train_batches(
        with_teacher(split, logits), items, made.layout, config.batch, whole_impressions=whole, seed=0, max_steps=2
    )
    step = training_step(
        config, made.session, optimizer_of(config.optimizer, 6, list(made.state.params), made.session.spec)
    )
    state, found = made.state, []
    for batch, numbers in batches:
        np.testing.assert_array_equal(batch.candidate_features[TEACHER][numbers >= 0], logits[numbers[numbers >= 0]])
        state, metrics = step(state, batch)
        found.append(float(metrics.loss))
    batches.close()
    return {path: np.asarray(value) for path, value in state.params.items()}, found


@pytest.mark.parametrize("task", [Task(), Task(kind="pairwise")], ids=["binary", "pairwise"])
def test_devices_and_micro_batches_do_not_matter(problem, task):
    expected, first = taught(problem, task, Mesh(1), jax.devices()[:1], 1)
    found, second = taught(problem, task, Mesh(2, 2, 1), jax.devices()[:4], 2)
    # Sums in another order; Adam divides by the size of a gradient, so that its rounding is seen in full where the
    # gradient is near 0: by the learning rate of these steps, 1e-3 at most.
    np.testing.assert_allclose(second, first, rtol=1e-5)
    moved = np.concatenate([(found[path] - expected[path]).ravel() for path in expected])
    assert np.sqrt(np.mean(moved**2)) < 1e-5


def test_a_resumed_run_reads_the_same_logits(problem):
    made = problem()
    split, items = clicks(200)
    logits = np.random.default_rng(2).normal(size=(len(split.item), 1)).astype(np.float32)
    of = (with_teacher(split, logits), items, made.layout, made.config.batch)
    unbroken, resumed = (train_batches(*of, whole_impressions=False, seed=3, max_steps=4) for _ in range(2))
    expected = [batch.candidate_features[TEACHER] for batch, _ in unbroken]
    resumed.restore(2)
    for (batch, _), own in zip(resumed, expected[2:], strict=True):
        np.testing.assert_array_equal(batch.candidate_features[TEACHER], own)

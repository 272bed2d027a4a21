"""Kinds of task and their losses against torch, rax and float64 loops over candidates and pairs."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import rax
from batches import make_batch, make_split
from hypothesis import given
from hypothesis import strategies as st
from models import goals

from srsjax.config import Task
from srsjax.data.preparing.statistics import Fitted
from srsjax.objectives import losses, predict, priors
from srsjax.objectives.objective import Labels
from srsjax.objectives.terms import ndcg_change, pairs_of

CLASSES = Fitted(classes={"topic": ["a", "b", "c"]})
STARS = Fitted(labels={"stars": {"mean": 3.5, "std": 2.0, "count": 100}})


@st.composite
def impressions(draw, values=(0.0, 1.0, 2.0)):
    """Scores, labels, weights and groups of packed slots, [R, C]."""
    rows, width = draw(st.integers(1, 3)), draw(st.integers(1, 7))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    group = np.sort(rng.integers(-1, 3, (rows, width)), axis=1)
    weights = np.where(group < 0, 0, rng.choice([0.0, 0.5, 1.0, 2.0], (rows, width)))
    scores = rng.choice([-1.0, 0.0, 0.3, 2.0], (rows, width)) + 0.1 * rng.normal(size=(rows, width)).round(1)
    return tuple(np.asarray(x, np.float32) for x in (scores, rng.choice(values, (rows, width)), weights, group))


def total(task: Task, logits, labels, weights, group, fitted: Fitted = Fitted()) -> float:
    """The loss of a whole batch; `logits` [R, C] or [R, C, K]."""
    batch = make_batch(group=group.astype(np.int32), labels=labels[..., None], weights=weights[..., None])
    logits = jnp.asarray(logits if logits.ndim == 3 else logits[..., None])
    made = goals(task, fitted=fitted)
    return float(losses.total_loss(made, logits, batch, losses.normalisers(made, batch)))


def inside(weights, group):
    """The known slots of each impression of each row."""
    for r in range(len(group)):
        for g in sorted(set(group[r]) - {-1.0}):
            yield [(r, c) for c in range(len(group[r])) if group[r, c] == g and weights[r, c] > 0]


# ---------------------------------------------------------------------------------------------- one candidate


@given(impressions(), st.sampled_from([0.0, 0.1]))
def test_multiclass_is_torchs_cross_entropy(slots, smoothing):
    torch = pytest.importorskip("torch", reason="needs pip install -e '.[reference]'")
    _, labels, weights, group = slots
    logits = np.random.default_rng(0).normal(0, 2, (*labels.shape, 3)).astype(np.float32)
    found = total(Task("topic", kind="multiclass", label_smoothing=smoothing), logits, labels, weights, group, CLASSES)
    known = weights > 0
    each = torch.nn.functional.cross_entropy(
        torch.tensor(logits[known], dtype=torch.float64),
        torch.tensor(labels[known]).long(),
        reduction="none",
        label_smoothing=smoothing,
    )
    expected = float((each * torch.tensor(weights[known])).sum()) / max(weights.sum(), 1e-30) if known.any() else 0.0
    assert found == pytest.approx(expected, rel=2e-5, abs=1e-6)


@given(impressions(values=(1.0, 2.5, 5.0)), st.sampled_from(["squared", "huber"]))
def test_regression_is_torchs_loss_of_standardised_labels(slots, loss):
    torch = pytest.importorskip("torch", reason="needs pip install -e '.[reference]'")
    scores, labels, weights, group = slots
    found = total(Task("stars", kind="regression", loss=loss, huber_delta=0.7), scores, labels, weights, group, STARS)
    arguments = (torch.tensor(scores.astype(np.float64)), torch.tensor((labels.astype(np.float64) - 3.5) / 2.0))
    if loss == "huber":
        each = torch.nn.functional.huber_loss(*arguments, reduction="none", delta=0.7)
    else:
        each = torch.nn.functional.mse_loss(*arguments, reduction="none")
    assert found == pytest.approx(float((each.numpy() * weights).sum()) / max(weights.sum(), 1e-30), rel=2e-5, abs=1e-6)


@given(impressions(values=(0.0, 1.0)))
def test_focal_loss_is_its_formula(slots):
    """Lin et al. 2017, equation 4: -(1 - p_t)^gamma log p_t."""
    scores, labels, weights, group = slots
    p = 1 / (1 + np.exp(-scores.astype(np.float64)))
    p_t = np.where(labels > 0, p, 1 - p)
    expected = float((weights * -((1 - p_t) ** 3) * np.log(p_t)).sum()) / max(weights.sum(), 1e-30)
    assert total(Task(loss="focal", focal_gamma=3.0), scores, labels, weights, group) == pytest.approx(
        expected, rel=1e-4, abs=1e-6
    )
    plain = total(Task(), scores, labels, weights, group)
    assert total(Task(loss="focal", focal_gamma=0.0), scores, labels, weights, group) == pytest.approx(plain, rel=1e-5)


# ---------------------------------------------------------------------------------------------- one impression


@given(impressions(values=(0.0, 1.0)))
def test_rcr_is_its_formula(slots):
    """Bai et al. 2023: cross-entropy of probabilities, and of probabilities divided by their sum over a list."""
    scores, labels, weights, group = slots
    q = 1 / (1 + np.exp(-scores.astype(np.float64)))
    lists, count = 0.0, 0
    for slot in inside(weights, group):
        at = tuple(zip(*slot, strict=True)) if slot else ()
        mass = labels[at].astype(np.float64) * weights[at] if slot else np.zeros(1)
        if mass.sum() > 0:
            lists -= float(mass / mass.sum() @ np.log(q[at] / q[at].sum()))
            count += 1
    points = weights * -np.where(labels > 0, np.log(q), np.log(1 - q))
    expected = 0.6 * float(points.sum()) / max(weights.sum(), 1e-30) + 0.4 * lists / max(count, 1)
    found = total(Task(loss="rcr", softmax=0.4), scores, labels, weights, group)
    assert found == pytest.approx(expected, rel=1e-4, abs=1e-5)


def test_the_optimum_of_rcr_is_the_probability_and_that_of_softmax_is_not():
    """Click rates 0.6 and 0.2 of two candidates of one list, as weighted labels."""
    labels = np.array([[0.6, 0.2]], np.float32)
    slots = (labels, np.ones((1, 2), np.float32), np.zeros((1, 2)))
    exact = np.log(labels / (1 - labels))

    def slope(task):
        made = goals(task)
        batch = make_batch(group=slots[2].astype(np.int32), labels=labels[..., None], weights=slots[1][..., None])
        whole = losses.normalisers(made, batch)
        return np.asarray(jax.grad(lambda x: losses.total_loss(made, x[..., None], batch, whole))(exact))

    np.testing.assert_allclose(slope(Task(loss="rcr", softmax=0.5)), 0, atol=1e-6)
    assert np.abs(slope(Task(softmax=0.5))).max() > 0.05


@pytest.mark.parametrize("loss", ["logistic", "margin"])
@given(slots=impressions())
def test_pairwise_is_a_loop_over_pairs(loss, slots):
    scores, labels, weights, group = slots
    whole, mass = 0.0, 0.0
    for slot in inside(weights, group):
        for i in slot:
            for j in slot:
                if labels[i] > labels[j]:
                    lead, weight = float(scores[i]) - float(scores[j]), float(weights[i]) * float(weights[j])
                    whole += weight * (np.logaddexp(0, -lead) if loss == "logistic" else max(0.0, 0.5 - lead))
                    mass += weight
    found = total(Task(kind="pairwise", loss=loss, margin=0.5), scores, labels, weights, group)
    assert found == pytest.approx(whole / max(mass, 1e-30), rel=1e-4, abs=1e-5)


def ndcg(order_by, labels) -> float:
    """With gains 2^y - 1 and discounts 1 / log2(1 + rank); equal scores in the order given."""
    gain = 2.0 ** np.asarray(labels, np.float64) - 1
    discount = 1 / np.log2(2.0 + np.arange(len(gain)))
    best = np.sort(gain)[::-1] @ discount
    return float(gain[np.argsort(-np.asarray(order_by), kind="stable")] @ discount / best) if best > 0 else 0.0


@given(slots=impressions())
def test_lambdarank_weighs_a_pair_by_the_change_of_ndcg_where_it_is_swapped(slots):
    scores, labels, weights, group = slots
    known = Labels(labels, weights, group.astype(np.int32))
    change = np.asarray(ndcg_change(jnp.asarray(scores), known))
    wins = np.asarray(pairs_of(known))
    expected = 0.0
    for slot in inside(weights, group):
        at = tuple(zip(*slot, strict=True)) if slot else ()
        own, grades = (scores[at], labels[at]) if slot else (np.zeros(0), np.zeros(0))
        # Distinct scores in the same order, so that a swap is one.
        placed = np.empty(len(own))
        placed[np.argsort(-own, kind="stable")] = -np.arange(len(own), dtype=float)
        for a, (r, i) in enumerate(slot):
            for b, (_, j) in enumerate(slot):
                if grades[a] > grades[b]:
                    assert wins[r, i, j]
                    swapped = placed.copy()
                    swapped[[a, b]] = swapped[[b, a]]
                    difference = abs(ndcg(placed, grades) - ndcg(swapped, grades))
                    assert change[r, i, j] == pytest.approx(difference, abs=1e-5)
                    expected += difference * np.logaddexp(0, -(float(own[a]) - float(own[b])))
    lists = sum(1 for slot in inside(weights, group) if any(labels[at] > 0 for at in slot))
    found = total(Task(kind="listwise", loss="lambdarank"), scores, labels, weights, group)
    assert found == pytest.approx(expected / max(lists, 1), rel=1e-4, abs=1e-4)


def test_lambdarank_agrees_with_rax_on_one_list():
    scores, labels = np.array([0.1, 2.0, -1.0, 0.5], np.float32), np.array([2.0, 0.0, 1.0, 0.0], np.float32)
    weight = rax.dcg_lambdaweight(
        jnp.asarray(scores), jnp.asarray(labels), normalize=True, gain_fn=lambda y: 2.0**y - 1
    )
    known = Labels(labels[None], np.ones((1, 4)), np.zeros((1, 4), np.int32))
    # rax multiplies by the length of the list.
    np.testing.assert_allclose(
        4 * np.asarray(ndcg_change(scores[None], known))[0].ravel(), weight, rtol=1e-4, atol=1e-6
    )


@pytest.mark.parametrize(
    "task, fitted",
    [
        (Task(kind="pairwise"), Fitted()),
        (Task(kind="pairwise", loss="margin"), Fitted()),
        (Task(kind="listwise", loss="lambdarank"), Fitted()),
        (Task(loss="rcr", softmax=0.5), Fitted()),
        (Task(loss="focal"), Fitted()),
        (Task("stars", kind="regression"), STARS),
        (Task("topic", kind="multiclass"), CLASSES),
    ],
)
def test_gradients_are_finite_parts_add_up_and_empty_slots_have_none(task, fitted):
    rng = np.random.default_rng(1)
    labels, group = rng.choice([0.0, 1.0], (4, 6)).astype(np.float32), np.repeat([[0, 0, 0, 1, 1, -1]], 4, 0)
    group = np.where(group >= 0, group + 2 * np.arange(4)[:, None], -1)
    weights = np.where(group < 0, 0, rng.choice([0.0, 1.0, 2.0], (4, 6))).astype(np.float32)
    made = goals(task, fitted=fitted)
    logits = jnp.asarray(rng.normal(0, 20, (4, 6, made[0][1].stop)), jnp.float32)

    def batch(rows: slice):
        arrays = {"labels": labels[rows, :, None], "weights": weights[rows, :, None]}
        return make_batch(group=group[rows].astype(np.int32), **arrays)

    whole = losses.normalisers(made, batch(slice(0, 4)))
    loss, gradient = jax.value_and_grad(lambda x: losses.total_loss(made, x, batch(slice(0, 4)), whole))(logits)
    assert np.isfinite(gradient).all() and (np.asarray(gradient)[weights == 0] == 0).all()
    parts = [float(losses.total_loss(made, logits[r], batch(r), whole)) for r in (slice(0, 2), slice(2, 4))]
    assert sum(parts) == pytest.approx(float(loss), rel=1e-5)


# ---------------------------------------------------------------------------------------------- bias and prediction


def test_the_first_bias_predicts_the_shares_of_the_classes():
    labels = np.repeat([0, 1, 1, 2], 1000)
    made = goals(Task("topic", kind="multiclass"), fitted=CLASSES)
    bias = priors.prior_logits(made, make_split(labels))
    np.testing.assert_allclose(np.exp(bias), [0.25, 0.5, 0.25], atol=1e-3)  # half a candidate in 4,000


def test_predictions_are_probabilities_and_numbers_in_the_units_of_the_label():
    tasks = (Task(), Task("topic", kind="multiclass"), Task("stars", kind="regression"))
    fitted = Fitted(classes=CLASSES.classes, labels=STARS.labels)
    outputs = [made.known for made, _ in goals(*tasks, fitted=fitted)]
    found = predict(tasks, outputs, np.array([[0.0, 1.0, 3.0, 1.0, -0.5]], np.float32))
    np.testing.assert_allclose(found, [[0.5, np.exp(3) / (np.exp(3) + 2 * np.exp(1)), 3.5 + 2.0 * -0.5]])


def test_a_task_after_another_starts_at_its_share_of_the_other_ones_positives():
    click, buy = np.repeat([1.0, 0.0], [400, 600]), np.repeat([1.0, 0.0], [100, 900])
    made = goals(Task(), Task("buy", after="click"))
    bias = priors.prior_logits(made, make_split(np.stack([click, buy], 1)))
    np.testing.assert_allclose(1 / (1 + np.exp(-bias)), [0.4, 0.25], atol=2e-3)  # half a candidate in 1,000

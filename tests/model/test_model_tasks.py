"""Several tasks in one head: a mixture of experts for each, and a task that comes after another."""

from __future__ import annotations

from dataclasses import replace

import jax
import numpy as np
import pytest
from batches import make_batch
from hypothesis import given
from hypothesis import strategies as st
from models import goals, make_spec

from srsjax import config
from srsjax.data.inputs import InputSpec
from srsjax.model import ctr
from srsjax.model.bert import BertConfig
from srsjax.model.heads import MixtureHead, both
from srsjax.model.spec import ModelSpec, Outputs
from srsjax.objectives import losses

BERT = BertConfig(vocab_size=20, hidden_size=8, num_layers=1, num_heads=2, intermediate_size=16, max_positions=16)
OUTPUTS = (Outputs("click", "binary"), Outputs("topic", "multiclass", 3, ("a", "b", "c")), Outputs("buy", "binary"))


@given(st.floats(-60, 60), st.floats(-60, 60))
def test_the_logit_of_both_is_that_of_the_product_of_probabilities(a, b):
    def sigmoid(x):
        return 1 / (1 + np.exp(-x))

    # 1 - pq = (1 - p) + p (1 - q), without cancellation
    wanted = np.log(sigmoid(a) * sigmoid(b)) - np.log(sigmoid(-a) + sigmoid(a) * sigmoid(-b))
    found = float(both(np.float32(a), np.float32(b)))
    assert found == pytest.approx(wanted, rel=1e-4, abs=1e-4)


def test_a_mixture_of_experts_is_its_formula():
    module = MixtureHead(8, (1, 3, 1), 4, 0.0, ctr.nnx.Rngs(0))
    flat = ctr.nnx.to_flat_state(ctr.nnx.state(module, ctr.nnx.Param))
    rng = np.random.default_rng(0)
    p = {"/".join(map(str, path)): np.asarray(x[...], np.float64) for path, x in flat}
    x = rng.normal(size=(2, 5, 8)).astype(np.float32)
    experts = np.maximum(x @ p["up/kernel"] + p["up/bias"], 0).reshape(2, 5, 4, 8)
    gates = (x @ p["gate/kernel"] + p["gate/bias"]).reshape(2, 5, 3, 4)
    gates = np.exp(gates) / np.exp(gates).sum(-1, keepdims=True)
    wanted = []
    for output, task in enumerate([0, 1, 1, 1, 2]):
        mixed = (gates[:, :, task, :, None] * experts).sum(2)
        wanted.append(mixed @ p["dense/kernel"][:, output] + p["dense/bias"][output])
    np.testing.assert_allclose(module(x, None), np.stack(wanted, -1), rtol=1e-4, atol=1e-5)


def test_a_spec_of_several_tasks_comes_back_from_its_file_and_computes_them():
    feature = InputSpec("item", "candidate", "categorical", 7)
    spec = make_spec(config.Model(combine="mlp", combine_layers=(6,), experts=2), BERT, 1, (feature,), reads_text=False)
    spec = replace(spec, outputs=OUTPUTS)
    assert ModelSpec.from_json(spec.to_json(), "model.json") == spec
    after = replace(spec, outputs=(*OUTPUTS[:2], replace(OUTPUTS[2], after="click")))
    params = ctr.init(spec, jax.random.key(0))
    slots = np.zeros((1, 3), np.int32)
    batch = make_batch(group=slots, context_of=slots, candidate_features={"item": np.array([[1, 2, 3]], np.int32)})
    plain, chained = (np.asarray(ctr.forward(ctr.build(each), params, batch)) for each in (spec, after))
    np.testing.assert_array_equal(chained[..., :4], plain[..., :4])
    np.testing.assert_allclose(chained[..., 4], both(plain[..., 0], plain[..., 4]), rtol=1e-6)
    assert (chained[..., 4] < np.minimum(plain[..., 0], plain[..., 4])).all()


@given(st.lists(st.floats(-2, 2), min_size=2, max_size=2), st.integers(1, 2))
def test_weights_by_uncertainty_are_their_formula_and_parts_of_a_step_add_up(s, parts):
    """Kendall et al. 2018: sum over tasks of exp(-s) loss + s / 2; its optimum is at exp(-s) loss = 1 / 2."""
    rng = np.random.default_rng(0)
    tasks = (config.Task(), config.Task("buy", loss_weight=0.5))
    labels = rng.integers(0, 2, (4, 3, 2)).astype(np.float32)
    logits = rng.normal(size=(4, 3, 2)).astype(np.float32)
    log_variance = np.array(s, np.float32)

    def loss(rows, *more):
        batch = make_batch(labels=labels[rows], weights=np.ones_like(labels[rows]))
        return float(losses.total_loss(goals(*tasks), logits[rows], batch, whole, *more))

    whole = losses.normalisers(goals(*tasks), make_batch(labels=labels, weights=np.ones_like(labels)))
    each = []
    for task in range(2):
        one = losses.normalisers(goals(tasks[task]), make_batch(labels=labels[..., [task]], weights=np.ones((4, 3, 1))))
        batch = make_batch(labels=labels[..., [task]], weights=np.ones((4, 3, 1), np.float32))
        each.append(float(losses.total_loss(goals(tasks[task]), logits[..., [task]], batch, one)))
    wanted = (np.exp(-log_variance) * each + log_variance / 2).sum()
    rows = np.array_split(np.arange(4), parts)
    assert sum(loss(part, log_variance, 1 / parts) for part in rows) == pytest.approx(wanted, rel=1e-5, abs=1e-6)

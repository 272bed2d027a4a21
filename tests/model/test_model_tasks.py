"""Several tasks in one head: a mixture of experts for each, and a task that comes after another."""

from __future__ import annotations

from dataclasses import replace

import jax
import jax.numpy as jnp
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
from srsjax.model.heads import Experts, MixtureHead, balanced, both
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


@pytest.mark.parametrize("experts", [Experts(4), Experts(3, 2), Experts(2, 1, 3)], ids=["mmoe", "ple", "ple-3"])
def test_a_mixture_of_experts_is_its_formula(experts):
    """MMoE, and PLE of one level and of three, as loops over levels, tasks and experts in float64."""
    module = MixtureHead(8, (1, 3, 1), experts, 0.0, ctr.nnx.Rngs(0))
    flat = ctr.nnx.to_flat_state(ctr.nnx.state(module, ctr.nnx.Param))
    p = {"/".join(map(str, path)): np.asarray(x[...], np.float64) for path, x in flat}
    p = {path: x + 0.3 * np.random.default_rng(len(path)).normal(size=x.shape) for path, x in p.items()}
    for path, variable in flat:
        variable.set_value(np.asarray(p["/".join(map(str, path))], np.float32))
    x = np.random.default_rng(0).normal(size=(2, 5, 8)).astype(np.float32)
    np.testing.assert_allclose(module(x, None), mixture(p, experts, x.astype(np.float64)), rtol=1e-4, atol=1e-4)


def mixture(p, experts: Experts, x):
    """The formula of `MixtureHead` for outputs (1, 3, 1)."""

    def dense(name, x):
        return x @ p[f"{name}/kernel"] + p[f"{name}/bias"]

    def split(name, x):
        return np.split(np.maximum(dense(name, x), 0), p[f"{name}/kernel"].shape[1] // 8, axis=-1)

    def mix(name, x, parts):
        gates = np.exp(dense(name, x))
        gates /= gates.sum(-1, keepdims=True)
        return sum(gates[..., [e]] * part for e, part in enumerate(parts))

    tasks, shared = [x, x, x], x
    for level in range(experts.levels):
        at = f"levels/{level}"
        common = split(f"{at}/shared", shared)
        own = [split(f"{at}/own/{t}", tasks[t]) if experts.own else [] for t in range(3)]
        if level < experts.levels - 1:
            shared = mix(f"{at}/gate", shared, [*own[0], *own[1], *own[2], *common])
        tasks = [mix(f"{at}/gates/{t}", tasks[t], [*own[t], *common]) for t in range(3)]
    of_task = [0, 1, 1, 1, 2]
    kernel, bias = p["dense/kernel"], p["dense/bias"]
    return np.stack([tasks[t] @ kernel[:, k] + bias[k] for k, t in enumerate(of_task)], -1)


def test_balanced_tasks_pull_equally_hard_whatever_the_size_of_their_losses():
    """Each task's gradient of what all read has the mean length times its weight; those of its own are as they were."""
    x, kernel = jax.random.normal(jax.random.key(0), (2, 4, 3)), jax.random.normal(jax.random.key(1), (3, 3))
    sizes, weights = np.array([1.0, 100.0, 0.01]), (1.0, 2.0, 1.0)

    def task(t, x, kernel):
        return sizes[t] * jnp.sum(jnp.sin(x @ kernel[t]))

    def all_tasks(x, kernel):
        return sum(task(t, own, kernel) for t, [own] in enumerate(balanced(weights, [x])))

    found_x, found_kernel = jax.grad(all_tasks, argnums=(0, 1))(x, kernel)
    each = [np.asarray(jax.grad(task, argnums=1)(t, x, kernel), np.float64) for t in range(3)]
    norms = [np.linalg.norm(g) for g in each]
    wanted = sum(3 * w / 4 * np.mean(norms) * g / n for w, g, n in zip(weights, each, norms, strict=True))
    np.testing.assert_allclose(found_x, wanted, rtol=1e-4, atol=1e-4)
    plain = jax.grad(lambda k: sum(task(t, x, k) for t in range(3)))(kernel)
    np.testing.assert_allclose(found_kernel, plain, rtol=1e-5)


def test_balancing_changes_training_alone_and_reaches_every_shared_parameter():
    feature = InputSpec("item", "candidate", "categorical", 7)
    model = config.Model(combine="mlp", combine_layers=(6,), head_dropout=0.0)
    plain = replace(make_spec(model, BERT, 1, (feature,), reads_text=False), outputs=OUTPUTS)
    spec = replace(plain, balance=(1.0, 1.0, 1.0))
    assert ModelSpec.from_json(spec.to_json(), "model.json") == spec
    params = ctr.init(spec, jax.random.key(0))
    slots = np.zeros((1, 3), np.int32)
    batch = make_batch(group=slots, context_of=slots, candidate_features={"item": np.array([[1, 2, 3]], np.int32)})
    logits = {s: ctr.forward(ctr.build(s), params, batch, dropout_key=jax.random.key(0)) for s in (plain, spec)}
    np.testing.assert_allclose(logits[plain], logits[spec], rtol=1e-6)

    def slopes(spec, size):
        def loss(params):
            out = ctr.forward(ctr.build(spec), params, batch, dropout_key=jax.random.key(0))
            return size * jnp.sum(out[..., 0]) + jnp.sum(out[..., 1:3]) - jnp.sum(out[..., 4])

        return jax.grad(loss)(params)

    # A loss a thousand times as large turns the shared gradient to its task's, unless it is balanced.
    def direction(spec, size):
        g = np.asarray(slopes(spec, size)["combine/candidate/layers/0/kernel"]).ravel()
        return g / np.linalg.norm(g)

    assert direction(spec, 1.0) @ direction(spec, 1000.0) == pytest.approx(1, abs=1e-4)
    assert direction(plain, 1.0) @ direction(plain, 1000.0) < 0.99


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

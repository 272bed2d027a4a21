"""Schedules, decay, layer-wise rates and clipping, against their definitions; AdamW against torch."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import optax
import pytest

from srsjax.config import Optimizer
from srsjax.errors import InputError
from srsjax.runs.optimizers import learning_rate_multipliers, make_optimizer, schedule

PATHS = [
    "bert/embeddings/token/embedding",
    "bert/embeddings/position/embedding",
    "bert/layers/0/mlp/up/kernel",
    "bert/layers/0/mlp/up/bias",
    "bert/layers/1/attention/norm/scale",
    "bert/pooler/kernel",
    "head/dense/kernel",
]


def ones(value: float = 1.0) -> dict:
    return {path: jnp.full(3, value) for path in PATHS}


@pytest.mark.parametrize(
    ("shape", "middle"), [("linear", 0.5), ("cosine", 0.5), ("constant", 1.0)], ids=["linear", "cosine", "constant"]
)
def test_schedules_warm_up_and_end(shape, middle):
    rate = schedule(Optimizer(learning_rate=2.0, schedule=shape, warmup=0.2), 100)
    assert float(rate(0)) == pytest.approx(2.0 / 21)
    assert float(rate(20)) == pytest.approx(2.0)
    assert float(rate(60)) == pytest.approx(2.0 * middle)
    assert float(rate(100)) == pytest.approx(2.0 if shape == "constant" else 0.0, abs=1e-6)


def test_warmup_longer_than_the_run_is_refused():
    with pytest.raises(InputError, match=r"optimizer.warmup: found 50 .* fewer than the run's 20"):
        schedule(Optimizer(warmup=50), 20)


def test_only_matrices_decay():
    optimizer = make_optimizer(Optimizer(learning_rate=1.0, weight_decay=0.1, warmup=0, schedule="constant"), 10, PATHS)
    updates, _ = optimizer.update(ones(0.0), optimizer.init(ones()), ones())
    decayed = {path for path, update in updates.items() if float(update[0]) != 0}
    assert decayed == {
        "bert/embeddings/token/embedding",
        "bert/layers/0/mlp/up/kernel",
        "bert/pooler/kernel",
        "head/dense/kernel",
    }


def test_layer_decay_multiplies_the_update():
    config = Optimizer(name="sgd", learning_rate=1.0, warmup=0, schedule="constant", layer_decay=0.5, head_multiplier=3)
    optimizer = make_optimizer(config, 10, PATHS)
    updates, _ = optimizer.update(ones(0.1), optimizer.init(ones()), ones())
    found = [round(-float(update[0]) / 0.1, 4) for update in updates.values()]
    assert found == [0.125, 0.125, 0.25, 0.25, 0.5, 1.0, 3.0]
    assert list(learning_rate_multipliers(config, PATHS).values()) == found


def test_the_global_norm_is_clipped():
    config = Optimizer(name="sgd", learning_rate=1.0, warmup=0, schedule="constant", clip_norm=2.0)
    optimizer = make_optimizer(config, 10, PATHS)
    updates, _ = optimizer.update(ones(5.0), optimizer.init(ones()), ones())
    assert float(optax.tree.norm(updates)) == pytest.approx(2.0, rel=1e-5)


@pytest.mark.parametrize("name", ["adam", "sgd", "lion", "adafactor", "prodigy", "lamb"])
def test_any_optax_optimizer_steps(name):
    optimizer = make_optimizer(Optimizer(name=name, learning_rate=0.1), 10, PATHS)
    updates, _ = optimizer.update(ones(0.5), optimizer.init(ones()), ones())
    assert all(np.isfinite(update).all() for update in updates.values())


def test_an_unknown_optimizer_and_argument_are_refused_with_the_nearest():
    with pytest.raises(InputError, match="found 'adamww', expected an optimizer of optax, nearest: 'adamw"):
        make_optimizer(Optimizer(name="adamww"), 10, PATHS)
    with pytest.raises(InputError, match="adamw takes no 'bb2', nearest: 'b2'"):
        make_optimizer(Optimizer(args={"bb2": 0.9}), 10, PATHS)


@pytest.mark.parametrize(
    "name, argument, value, allowed",
    [
        ("adamw", "b2", 5.0, False),
        ("adamw", "b1", 1.0, False),
        ("adamw", "eps", -1.0, False),
        ("sgd", "momentum", 1.5, False),
        ("adamw", "b2", 0.0, True),
        ("adamw", "eps", 0.0, True),
        ("sgd", "momentum", 0.9, True),
    ],
)
def test_arguments_have_bounds(name, argument, value, allowed):
    config = Optimizer(name=name, args={argument: value})
    if allowed:
        make_optimizer(config, 10, PATHS)
    else:
        with pytest.raises(InputError, match=rf"optimizer\.args\.{argument}: found .*, expected at least 0"):
            make_optimizer(config, 10, PATHS)


def test_adamw_is_torchs():
    torch = pytest.importorskip("torch", reason="torch is the reference here")
    rng = np.random.default_rng(0)
    start, gradients = rng.normal(size=(4, 3)).astype(np.float32), rng.normal(size=(5, 4, 3)).astype(np.float32)
    config = Optimizer(learning_rate=0.01, warmup=0, schedule="constant", weight_decay=0.1, clip_norm=0)
    optimizer = make_optimizer(config, 5, ["head/dense/kernel"])
    params = {"head/dense/kernel": jnp.asarray(start)}
    state = optimizer.init(params)
    theirs = torch.nn.Parameter(torch.tensor(start))
    adamw = torch.optim.AdamW([theirs], lr=0.01, weight_decay=0.1)
    for gradient in gradients:
        updates, state = optimizer.update({"head/dense/kernel": jnp.asarray(gradient)}, state, params)
        params = optax.apply_updates(params, updates)
        theirs.grad = torch.tensor(gradient)
        adamw.step()
    # five float32 steps of size 0.01 on numbers of size 1
    np.testing.assert_allclose(params["head/dense/kernel"], theirs.detach().numpy(), atol=2e-6)


def test_l1_makes_what_does_not_help_exactly_zero():
    """Proximal gradient descent on (p - t)^2 / 2 + l1 |p| ends at the soft threshold of t; biases are spared."""
    target = np.array([0.05, -0.3, 1.0], np.float32)
    config = Optimizer(name="sgd", learning_rate=0.1, warmup=0, schedule="constant", clip_norm=0, l1=0.2)
    paths = ["head/dense/kernel", "head/dense/bias"]
    optimizer = make_optimizer(config, 300, paths)
    params = {path: jnp.ones(3) for path in paths}
    state = optimizer.init(params)
    for _ in range(300):
        updates, state = optimizer.update({path: x - target for path, x in params.items()}, state, params)
        params = optax.apply_updates(params, updates)
    found = np.asarray(params["head/dense/kernel"])
    np.testing.assert_allclose(found, np.sign(target) * np.maximum(np.abs(target) - 0.2, 0), atol=1e-5)
    assert found[0] == 0
    np.testing.assert_allclose(params["head/dense/bias"], target, atol=1e-5)


def test_layers_of_a_combination_have_the_rate_of_the_top():
    paths = ["bert/layers/0/mlp/up/kernel", "combine/candidate/layers/0/kernel", "head/dense/kernel"]
    assert list(learning_rate_multipliers(Optimizer(layer_decay=0.5), paths).values()) == [0.5, 1.0, 1.0]

"""Parameters that are not trained, and groups of parameters with optimizers of their own."""

from __future__ import annotations

import jax
import numpy as np
import optax
import pytest

from srsjax.config import Mesh, Optimizer, ParameterGroup
from srsjax.errors import InputError
from srsjax.runs import optimizers
from srsjax.runs.checkpoints import Checkpointer, load_params
from srsjax.runs.session import state_target, target
from srsjax.runs.sharding import put_batch

EMBEDDINGS = "^bert/embeddings/"


def run(p, steps: int = 3):
    """The state after some steps; the parameters before them."""
    before = {path: np.asarray(array) for path, array in p.state.all_params.items()}
    state = p.state
    for batch, _ in list(p.batches)[:steps]:
        state, _ = p.step(state, put_batch(p.session.mesh, batch, row_axis=1))
    return state, before


def test_frozen_parameters_stay_and_have_neither_gradient_nor_optimizer_state(problem):
    p = problem(optimizer=Optimizer(learning_rate=1e-3, frozen=(EMBEDDINGS,)))
    state, before = run(p)
    assert set(state.frozen) == {path for path in before if path.startswith("bert/embeddings/")}
    for path, array in state.all_params.items():
        assert np.array_equal(array, before[path]) == (path in state.frozen), path
    moments = [
        path[-1].key
        for path, _ in jax.tree_util.tree_leaves_with_path(state.opt)
        if isinstance(path[-1], jax.tree_util.DictKey)
    ]
    assert set(moments) == set(state.params)


def test_the_trained_part_learns_as_if_the_frozen_part_had_no_update(problem):
    """The same updates as of a whole state whose embeddings are set back after every step."""
    plain = Optimizer(name="sgd", learning_rate=1e-2, clip_norm=0.0, layer_decay=1.0)
    p = problem(optimizer=Optimizer(**{**vars(plain), "frozen": (EMBEDDINGS,)}))
    q = problem(optimizer=plain)
    kept = {path: np.asarray(array) for path, array in q.state.params.items() if path.startswith("bert/embeddings/")}
    state, other = p.state, q.state
    for batch, _ in list(p.batches)[:3]:
        state, _ = p.step(state, put_batch(p.session.mesh, batch, row_axis=1))
        other, _ = q.step(other, put_batch(q.session.mesh, batch, row_axis=1))
        other = other._replace(params={**other.params, **{path: jax.numpy.asarray(x) for path, x in kept.items()}})
    for path, array in state.params.items():
        np.testing.assert_allclose(array, other.params[path], rtol=1e-6, atol=1e-7, err_msg=path)


def test_a_checkpoint_holds_both_and_gives_them_back(problem, tmp_path):
    groups = (ParameterGroup("^head/", name="sgd", learning_rate=0.1),)
    p = problem(mesh=Mesh(2, 2, 2), optimizer=Optimizer(frozen=(EMBEDDINGS,), groups=groups))
    state, _ = run(p, steps=2)
    wanted = jax.tree.map(np.asarray, state)
    with Checkpointer(tmp_path / "checkpoints") as checkpointer:
        checkpointer.save(2, state, {"next_step": 2}, None)
    optimizer = optimizers.make_optimizer(p.config.optimizer, p.batches.steps, list(p.state.params))
    with Checkpointer(tmp_path / "checkpoints") as checkpointer:
        found = checkpointer.restore(2, state_target(p.session, optimizer))
    jax.tree.map(np.testing.assert_array_equal, jax.tree.map(np.asarray, found), wanted)
    inferred = load_params(tmp_path / "checkpoints", 2, target(p.session))
    assert {path: array.shape for path, array in inferred.items()} == {
        path: array.shape for path, array in state.all_params.items()
    }


def test_groups_train_with_their_own_optimizer():
    """The head by SGD at its own rate, the rest by AdamW, after one clip over both: against optax by hand."""
    params = {"bert/layers/0/mlp/up/kernel": np.ones((2, 2), np.float32), "head/dense/kernel": np.ones(3, np.float32)}
    gradients = jax.tree.map(lambda x: 3 * x, params)
    config = Optimizer(
        learning_rate=1e-3,
        schedule="constant",
        warmup=0,
        groups=(ParameterGroup("^head/", name="sgd", learning_rate=0.5),),
    )
    made = optimizers.make_optimizer(config, 10, list(params))
    updates, _ = made.update(gradients, made.init(params), params)
    clip = 1 / np.sqrt(9 * 4 + 9 * 3)
    np.testing.assert_allclose(updates["head/dense/kernel"], -0.5 * 3 * clip * np.ones(3), rtol=1e-6)
    alone = {"bert/layers/0/mlp/up/kernel": params["bert/layers/0/mlp/up/kernel"]}
    adamw = optax.adamw(1e-3, weight_decay=0.01)
    expected, _ = adamw.update(jax.tree.map(lambda x: 3 * clip * x, alone), adamw.init(alone), alone)
    np.testing.assert_allclose(
        updates["bert/layers/0/mlp/up/kernel"], expected["bert/layers/0/mlp/up/kernel"], rtol=1e-6
    )


@pytest.mark.parametrize(
    ("config", "said"),
    [
        (Optimizer(frozen=("^encoder/",)), r"optimizer\.frozen: '\^encoder/' is found in no parameter's path; they"),
        (Optimizer(frozen=("(",)), r"optimizer\.frozen: found '\(', expected a regular expression"),
        (Optimizer(frozen=(".",)), r"optimizer\.frozen: found every parameter"),
        (Optimizer(groups=(ParameterGroup("^tables/"),)), r"optimizer\.groups\.0\.match: '\^tables/' is found in no"),
        (Optimizer(groups=(ParameterGroup("^head/", name="sgd", args={"b3": 1.0}),)), r"groups\.0\.args: sgd takes no"),
    ],
)
def test_what_matches_nothing_is_refused(problem, config, said):
    with pytest.raises(InputError, match=said):
        problem(optimizer=config)

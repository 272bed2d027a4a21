"""Tables of ids: rows touched by a batch are updated as a dense optimizer would, on one device and on a mesh."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from batches import make_batch
from models import make_spec

from srsjax.config import Batch, Mesh, Model, Optimizer, Schema, Task, TrainConfig
from srsjax.data.inputs import InputSpec
from srsjax.model.bert import BertConfig
from srsjax.runs.checkpoints import Checkpointer
from srsjax.runs.session import initial_state, open_session, state_target
from srsjax.runs.sharding import put_batch
from srsjax.runs.steps import training_step
from srsjax.runs.tables import Tables, optimizer_of, table_readers

BERT = BertConfig(vocab_size=20, hidden_size=8, num_layers=1, num_heads=2, intermediate_size=16, max_positions=16)
ITEMS, USERS = 5000, 300
FEATURES = (
    InputSpec("user", "context", "categorical", USERS, dropout=0.1),
    InputSpec("bought", "context", "categorical", ITEMS, values=4, like="item", pooling="attention"),
    InputSpec("item", "candidate", "categorical", ITEMS),
    InputSpec("price", "candidate", "numeric", 1),
)
ITEM = "features/candidate/input_item/table/embedding"
USER = "features/context/input_user/table/embedding"
SGD = Optimizer(name="sgd", learning_rate=0.5, clip_norm=0.0, warmup=0.0, schedule="constant")


def a_problem(optimizer: Optimizer, mesh: Mesh = Mesh(1), devices: int = 1, parts: int = 1) -> SimpleNamespace:
    config = TrainConfig(
        schema=Schema(tasks=(Task(),)),
        model=Model(combine="mlp", combine_layers=(16,)),
        mesh=mesh,
        batch=Batch(rows=8, tokens=16, micro_batches=parts),
        optimizer=optimizer,
    )
    spec = make_spec(config.model, BERT, 1, FEATURES, reads_text=False)
    session = open_session(config, spec, jax.devices()[:devices])
    transform = optimizer_of(optimizer, 10, list(session.trained(session.shapes)), spec)
    state = initial_state(session, transform, 0)
    return SimpleNamespace(
        session=session, transform=transform, state=state, step=training_step(config, session, transform), parts=parts
    )


def batches(count: int, parts: int = 1):
    """Batches [A, R / A, ...] of 8 rows of 16 candidates with ids that recur, 0 among them."""
    rng = np.random.default_rng(0)
    for _ in range(count):
        slots = np.tile(np.arange(16, dtype=np.int32), (8, 1))
        item = (rng.zipf(1.3, (8, 16)) % ITEMS).astype(np.int32)
        batch = make_batch(
            np.zeros((8, 16), np.int32),
            labels=(rng.random((8, 16, 1)) < 0.3).astype(np.float32),
            weights=np.ones((8, 16, 1), np.float32),
            group=slots,
            context_of=slots,
            readout=slots,
            context_readout=slots,
            context_features={
                "user": rng.integers(0, USERS, (8, 16)).astype(np.int32),
                "bought": rng.integers(0, 40, (8, 16, 4)).astype(np.int32) * rng.integers(0, 2, (8, 16, 4), np.int32),
            },
            candidate_features={"item": item, "price": rng.normal(size=(8, 16)).astype(np.float32)},
        )
        yield jax.tree.map(lambda x: np.asarray(x).reshape(parts, 8 // parts, *x.shape[1:]), batch)


def run(p, count: int = 3):
    """State and losses after some batches."""
    state, losses = p.state, []
    for batch in batches(count, p.parts):
        state, metrics = p.step(state, put_batch(p.session.mesh, batch, row_axis=1))
        losses.append(float(metrics.loss))
    return state, losses


def test_readers_are_found_also_of_shared_tables():
    spec = make_spec(Model(), BERT, 1, FEATURES)
    assert table_readers(spec) == {
        USER: (("context", "user"),),
        ITEM: (("context", "bought"), ("candidate", "item")),
    }


@pytest.mark.parametrize("parts", [1, 2])
def test_sparse_gradient_descent_is_the_dense_one(parts):
    dense, sparse = a_problem(SGD, parts=parts), a_problem(replace(SGD, tables="sgd"), parts=parts)
    (a, first), (b, second) = run(dense), run(sparse)
    np.testing.assert_allclose(first, second, rtol=1e-6)
    for path in a.params:
        # float32 sums of the gradients of an id that occurs some hundred times, in another order
        np.testing.assert_allclose(a.params[path], b.params[path], rtol=1e-5, atol=1e-6, err_msg=path)
    assert b.opt["tables"] == {}


def test_row_wise_adagrad_is_its_formula_and_leaves_other_rows_alone():
    rng = np.random.default_rng(1)
    table, ids = rng.normal(size=(50, 4)).astype(np.float32), np.array([[7, 3, 7, 0]], np.int32)
    tables = Tables({"t": (("candidate", "x"),)}, rate=lambda step: 0.1)
    params, sums = {"t": jax.numpy.asarray(table)}, {"t": jax.numpy.asarray(rng.random(50).astype(np.float32))}
    batch = make_batch(group=ids, candidate_features={"x": ids})
    rows, numbers, renumbered = tables.take(params, batch)
    np.testing.assert_array_equal(numbers["t"], [0, 3, 7, 50, 50])
    np.testing.assert_array_equal(renumbered.candidate_features["x"], [[2, 1, 2, 0]])
    np.testing.assert_array_equal(rows["t"][:3], table[[0, 3, 7]])
    gradient = rng.normal(size=(5, 4)).astype(np.float32)
    after, kept = tables.update(params, sums, numbers, {"t": jax.numpy.asarray(gradient)}, 0)
    wanted, squares = table.astype(np.float64), np.asarray(sums["t"], np.float64)
    for place, row in enumerate([0, 3, 7]):
        squares[row] += (gradient[place].astype(np.float64) ** 2).mean()
        wanted[row] -= 0.1 * gradient[place] / np.sqrt(squares[row] + 1e-10)
    np.testing.assert_allclose(after["t"], wanted, rtol=1e-6)
    np.testing.assert_allclose(kept["t"], squares, rtol=1e-6)


def test_adam_of_touched_rows_is_torchs_sparse_adam():
    torch = pytest.importorskip("torch", reason="needs pip install -e '.[reference]'")
    rng = np.random.default_rng(2)
    table = rng.normal(size=(20, 4)).astype(np.float32)
    tables = Tables({"t": (("candidate", "x"),)}, rate=lambda step: 0.1, name="adam")
    params = {"t": jax.numpy.asarray(table)}
    state = tables.start(params)
    theirs = torch.nn.Parameter(torch.tensor(table))
    optimizer = torch.optim.SparseAdam([theirs], lr=0.1)
    for step in range(5):
        ids = rng.integers(0, 20, (1, 6)).astype(np.int32)
        batch = make_batch(group=ids, candidate_features={"x": ids})
        _, numbers, _ = tables.take(params, batch)
        rows = np.asarray(numbers["t"])
        gradient = rng.normal(size=(len(rows), 4)).astype(np.float32)
        params, state = tables.update(params, state, numbers, {"t": jax.numpy.asarray(gradient)}, step)
        there = rows < 20
        values, index = torch.tensor(gradient[there]), torch.tensor(rows[there][None])
        theirs.grad = torch.sparse_coo_tensor(index, values, (20, 4), check_invariants=True)
        optimizer.step()
    np.testing.assert_allclose(params["t"], theirs.detach().numpy(), rtol=1e-4, atol=1e-5)


def test_a_row_that_is_not_in_a_batch_does_not_change_and_training_learns():
    p = a_problem(replace(SGD, name="adam", learning_rate=1e-2, tables="rowwise_adagrad", table_learning_rate=0.1))
    before = np.asarray(p.state.params[ITEM])
    state, losses = run(p, 10)
    assert losses[-1] < losses[0]
    touched = np.concatenate([[0], *(np.unique(b.candidate_features["item"]) for b in batches(10)), np.arange(40)])
    others = np.setdiff1d(np.arange(ITEMS), touched)
    np.testing.assert_array_equal(np.asarray(state.params[ITEM])[others], before[others])
    assert not np.asarray(state.opt["tables"][ITEM])[others].any()


@pytest.mark.parametrize(
    ("mesh", "tables"),
    [
        *((mesh, "rowwise_adagrad") for mesh in (Mesh(8), Mesh(2, 4, 1), Mesh(1, 4, 2))),
        *((mesh, "adam") for mesh in (Mesh(8), Mesh(2, 4, 1))),
    ],
)
def test_a_mesh_of_eight_devices_gives_the_same_and_divides_a_large_table_by_rows(mesh, tables):
    settings = Optimizer(learning_rate=1e-2, tables=tables, warmup=0.0, schedule="constant")
    one, many = a_problem(settings), a_problem(settings, mesh, devices=8)
    held = many.state.params[ITEM].sharding.shard_shape(many.state.params[ITEM].shape)
    divided = mesh.fsdp * mesh.tensor
    assert held == (5120 // divided, 8)  # 5,000 ids in rows that are a multiple of 128
    if tables == "adam":
        assert many.state.opt["tables"]["mean"][ITEM].sharding.shard_shape((5120, 8)) == (5120 // divided, 8)
    else:
        assert many.state.opt["tables"][ITEM].sharding.shard_shape((5120,)) == (5120 // divided,)
    (a, first), (b, second) = run(one), run(many)
    np.testing.assert_allclose(first, second, rtol=1e-5)
    for path in a.params:
        np.testing.assert_allclose(a.params[path], b.params[path], rtol=1e-4, atol=1e-5, err_msg=path)


@pytest.mark.parametrize("tables", ["rowwise_adagrad", "adam"])
def test_a_checkpoint_holds_the_sums_and_training_resumes_bit_for_bit(tmp_path, tables):
    settings = Optimizer(learning_rate=1e-2, tables=tables)
    p = a_problem(settings)
    given = [put_batch(p.session.mesh, batch, row_axis=1) for batch in batches(4)]
    state = p.state
    for batch in given[:2]:
        state, _ = p.step(state, batch)
    with Checkpointer(tmp_path / "checkpoints", keep=1) as checkpoints:
        checkpoints.save(2, state, {}, None)
    with Checkpointer(tmp_path / "checkpoints", keep=1) as checkpoints:
        resumed = checkpoints.restore(2, state_target(p.session, p.transform))
    for batch in given[2:]:
        state, _ = p.step(state, batch)
        resumed, _ = p.step(resumed, batch)
    jax.tree.map(np.testing.assert_array_equal, resumed, state)


@pytest.mark.parametrize("tables", ["dense", "rowwise_adagrad", "adam", "sgd"])
def test_a_step_that_is_not_finite_leaves_tables_and_their_state_alone(tables):
    p = a_problem(replace(SGD, name="adamw", learning_rate=0.1, tables=tables))
    first, broken, last = batches(3)
    broken.labels.flat[0] = np.nan
    state, _ = p.step(p.state, put_batch(p.session.mesh, first, row_axis=1))
    before = jax.device_get(state)
    state, metrics = p.step(state, put_batch(p.session.mesh, broken, row_axis=1))
    after = jax.device_get(state)
    assert not bool(metrics.applied) and after.step == before.step + 1
    jax.tree.map(np.testing.assert_array_equal, after._replace(step=0), before._replace(step=0))
    state, metrics = p.step(state, put_batch(p.session.mesh, last, row_axis=1))
    changed = jax.device_get(state.params)
    assert bool(metrics.applied) and all((changed[path] != before.params[path]).any() for path in (ITEM, USER))

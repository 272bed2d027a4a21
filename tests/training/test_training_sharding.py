"""The same losses on every mesh and with every number of micro-batches; refused meshes."""

from __future__ import annotations

from dataclasses import replace

import jax
import numpy as np
import pytest

from srsjax.config import Mesh, Model, Optimizer
from srsjax.errors import InputError
from srsjax.training.sharding import make_mesh, put_batch
from srsjax.training.step import jit_predict_step

SMALL = Model(hidden_size=64, num_heads=4, intermediate_size=128, max_positions=64)


def losses_of(made) -> np.ndarray:
    state, found = made.state, []
    for batch, _ in made.batches:
        state, metrics = made.step(state, put_batch(made.session.mesh, batch, row_axis=1))
        found.append(float(metrics.loss))
    return np.array(found)


@pytest.fixture(scope="module")
def one_device():
    """Filled by the first test that needs it: losses on one device, one micro-batch."""
    return {}


def reference(problem, cache: dict, **settings) -> np.ndarray:
    key = tuple(sorted(settings))
    if key not in cache:
        cache[key] = losses_of(problem(mesh=Mesh(1), devices=jax.devices()[:1], **settings))
    return cache[key]


# The sums of a batch run in another order on each mesh: float32 rounding, some 1e-7 of a loss near 1, which six steps
# of training may amplify a little.
TOLERANCE = 2e-6


@pytest.mark.parametrize(
    "mesh", [Mesh(8), Mesh(1, 8), Mesh(2, 1, 4), Mesh(2, 2, 2)], ids=["data", "fsdp", "tensor", "mixed"]
)
def test_every_mesh_gives_the_losses_of_one_device(problem, one_device, mesh):
    np.testing.assert_allclose(losses_of(problem(mesh=mesh)), reference(problem, one_device), atol=TOLERANCE)


def test_four_micro_batches_give_the_losses_of_one(problem, one_device):
    for devices, mesh in ((jax.devices()[:1], Mesh(1)), (None, Mesh(2, 2, 2))):
        found = losses_of(problem(mesh=mesh, devices=devices, micro_batches=4))
        np.testing.assert_allclose(found, reference(problem, one_device), atol=TOLERANCE)


def test_dropout_does_not_depend_on_the_mesh(problem, one_device):
    settings = {"model": replace(SMALL, hidden_dropout=0.1, attention_dropout=0.1, head_dropout=0.1)}
    found = losses_of(problem(mesh=Mesh(2, 2, 2), **settings))
    np.testing.assert_allclose(found, reference(problem, one_device, **settings), atol=TOLERANCE)


def test_training_learns(problem):
    found = losses_of(problem(mesh=Mesh(8), max_steps=60, optimizer=Optimizer(learning_rate=3e-3)))
    assert found[-10:].mean() < found[:10].mean() - 0.02


def test_parameters_are_divided_as_the_table_says(problem):
    made = problem(mesh=Mesh(1, 8))
    for path, array in made.state.params.items():
        if path.endswith(("kernel", "embedding")) and "head" not in path and "token_type" not in path:
            assert array.addressable_shards[0].data.size * 8 == array.size, path
    moments = [leaf for leaf in jax.tree.leaves(made.state.opt) if leaf.ndim == 3]
    assert moments and all(leaf.addressable_shards[0].data.size * 8 == leaf.size for leaf in moments)


@pytest.mark.parametrize(
    ("mesh", "message"),
    [
        (Mesh(3), "data 3, fsdp 1, tensor 1 is 3 devices, found 8 cpu"),
        (Mesh(-1, -1), "at most one -1"),
        (Mesh(0), "sizes of at least 1"),
        (Mesh(-1, 16), "is 16 devices, found 8"),
    ],
)
def test_a_mesh_that_does_not_fit_is_refused(mesh, message):
    with pytest.raises(InputError, match=message):
        make_mesh(mesh)


def test_leaving_most_bytes_whole_under_fsdp_is_refused(problem):
    odd = Model(hidden_size=36, num_layers=1, num_heads=4, intermediate_size=52, max_positions=64)
    with pytest.raises(InputError, match=r"% of parameter bytes would be whole on every device \(largest: bert"):
        problem(mesh=Mesh(1, 8), model=odd)


def test_the_training_step_compiles_once(problem):
    made = problem(mesh=Mesh(8))
    losses_of(made)
    assert made.step._cache_size() == 1


def test_no_host_transfer_inside_steps(problem):
    made = problem(mesh=Mesh(8))
    batches = [put_batch(made.session.mesh, batch, row_axis=1) for batch, _ in made.batches]
    state, metrics = made.step(made.state, batches[0])
    with jax.transfer_guard("disallow"):
        for batch in batches[1:]:
            state, metrics = made.step(state, batch)
    assert np.isfinite(float(metrics.loss))


def test_prediction_is_the_same_on_every_mesh(problem):
    made = problem(mesh=Mesh(8))
    other = problem(mesh=Mesh(2, 2, 2))
    batch, _ = next(made.batches)
    rows = jax.tree.map(lambda array: array[0], batch)
    one, two = (
        jit_predict_step(p.session.forward, p.session.mesh, p.session.shardings)(
            p.state.params, put_batch(p.session.mesh, rows, row_axis=0)
        )
        for p in (made, other)
    )
    np.testing.assert_allclose(one, two, atol=1e-5)  # float32 sums of a forward pass in two orders

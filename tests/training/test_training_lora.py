"""Adapters beside the encoder's kernels (`model.adapter_rank`)."""

from __future__ import annotations

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small_problem import SMALL

from srsjax.config import Mesh
from srsjax.model import ctr, lora
from srsjax.runs.sharding import put_batch

LORA = replace(SMALL, adapter_rank=4)


def run(p, steps=4):
    """State after some steps, and their losses."""
    state, found = p.state, []
    for batch, _ in list(p.batches)[:steps]:
        state, metrics = p.step(state, put_batch(p.session.mesh, batch, row_axis=1))
        found.append(float(metrics.loss))
    return state, np.array(found)


def stirred(params):
    """Adapters as after some training: B is no longer 0."""
    rng = np.random.default_rng(0)
    return {
        path: jnp.asarray(rng.normal(0, 0.05, x.shape), jnp.float32) if path.startswith("lora/") else x
        for path, x in params.items()
    }


def test_sums_are_those_of_the_paper(problem):
    params = {path: np.asarray(x) for path, x in stirred(problem(model=LORA).state.all_params).items()}
    made = lora.merged(params)
    assert not any(path.startswith("lora/") for path in made)
    adapted = [path for path in made if "lora/" + path + "/a" in params]
    assert len(adapted) == 2 * 4  # two layers: query-key-value, out, up, down
    for path, array in made.items():
        if path not in adapted:
            np.testing.assert_array_equal(array, params[path])
            continue
        a, b = (params[f"lora/{path}/{name}"].astype(np.float64) for name in "ab")
        assert a.shape[1] == b.shape[0] == 4
        wanted = params[path] + 2 * np.einsum("ir,r...->i...", a, b)
        np.testing.assert_allclose(array, wanted, rtol=1e-5, atol=1e-6)  # float32 sums of four products


def test_fresh_adapters_change_nothing_and_the_encoder_stays(problem):
    p, plain = problem(model=LORA), problem(model=SMALL)
    before = {path: np.asarray(x) for path, x in p.state.all_params.items()}
    batch = put_batch(p.session.mesh, next(iter(p.batches))[0], row_axis=1)
    first = jax.tree.map(lambda x: x[0], batch)
    of = (plain.session.graphdef, plain.state.all_params)
    np.testing.assert_array_equal(p.session.forward(p.state.all_params, first), ctr.forward(*of, first))
    state, _ = run(p)
    for path, array in state.all_params.items():
        assert np.array_equal(array, before[path]) == path.startswith("bert/"), path
    assert all(path.startswith(("lora/", "head/")) for path in state.params)


def test_gradients_are_those_of_the_product(problem):
    """With G the gradient of the summed kernel: dA = 2 G B^T and dB = 2 A^T G."""
    p = problem(model=LORA, devices=jax.devices()[:1])
    params = stirred(p.state.all_params)
    batch = jax.tree.map(lambda x: x[0], next(iter(p.batches))[0])

    def loss(params):
        return jnp.sum(jnp.sin(ctr.forward(p.session.graphdef, params, batch)))

    found, whole = jax.grad(loss)(params), jax.grad(loss)(lora.merged(params))
    for path in (path for path in params if path.endswith("/a")):
        kernel = path.removeprefix("lora/").removesuffix("/a")
        g = np.asarray(whole[kernel], np.float64)
        a, b = (np.asarray(params[path[:-1] + name], np.float64) for name in "ab")
        g, b = g.reshape(len(g), -1), b.reshape(len(b), -1)
        largest = max(np.abs(2 * g @ b.T).max(), np.abs(2 * a.T @ g).max())
        np.testing.assert_allclose(found[path], 2 * g @ b.T, atol=1e-5 * largest)
        np.testing.assert_allclose(found[path[:-1] + "b"].reshape(b.shape), 2 * a.T @ g, atol=1e-5 * largest)


@pytest.mark.parametrize("mesh", [Mesh(2, 2, 2), Mesh(1, 8, 1)])
def test_every_mesh_gives_the_losses_of_one_device(problem, mesh):
    state, found = run(problem(model=LORA, mesh=mesh))
    divided = [path for path, x in state.params.items() if path.startswith("lora/") and not x.is_fully_replicated]
    assert len(divided) == 16
    _, alone = run(problem(model=LORA, devices=jax.devices()[:1]))
    # The bound of test_runs_sharding: sums over devices are taken in another order.
    np.testing.assert_allclose(found, alone, atol=2e-6)

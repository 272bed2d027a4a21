"""The same losses on every mesh and with every number of micro-batches; refused meshes."""

from __future__ import annotations

import math
from dataclasses import replace
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.compilation_cache import compilation_cache
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from srsjax.config import Mesh, Model, Optimizer
from srsjax.errors import InputError
from srsjax.runs.predict import jit_predict_step
from srsjax.runs.sharding import make_mesh, put_batch, row_share

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


MESHES = {"data": Mesh(8), "fsdp": Mesh(1, 8), "tensor": Mesh(2, 1, 4), "mixed": Mesh(2, 2, 2)}


@pytest.mark.parametrize("mesh", MESHES.values(), ids=MESHES)
def test_every_mesh_gives_the_losses_of_one_device(problem, one_device, mesh):
    np.testing.assert_allclose(losses_of(problem(mesh=mesh)), reference(problem, one_device), atol=TOLERANCE)


@pytest.mark.parametrize("interaction", ["cross", "shared", "split", "towers"])
def test_every_interaction_has_the_gradients_of_one_device_on_every_mesh(problem, interaction):
    """With plain gradient descent at a rate of 1, parameters after a step are those before it minus the gradients."""
    settings = {
        "model": replace(SMALL, interaction=interaction, split_layers=1),
        "optimizer": Optimizer(name="sgd", learning_rate=1.0, warmup=0.0, clip_norm=0.0, weight_decay=0.0),
        "max_steps": 2,
    }

    def after_a_step(mesh, devices=None):
        made = problem(mesh=mesh, devices=devices, **settings)
        before = jax.device_get(made.state.params)
        batch, _ = next(made.batches)
        state, metrics = made.step(made.state, put_batch(made.session.mesh, batch, row_axis=1))
        after = jax.device_get(state.params)
        return float(metrics.loss), {path: before[path] - after[path] for path in before}

    loss, gradients = after_a_step(Mesh(1), jax.devices()[:1])
    assert max(np.abs(gradient).max() for gradient in gradients.values()) > 1e-2
    for mesh in MESHES.values():
        found, divided = after_a_step(mesh)
        assert found == pytest.approx(loss, abs=TOLERANCE)
        for path, gradient in gradients.items():  # float32 rounding of parameters near 1, and of sums
            np.testing.assert_allclose(divided[path], gradient, rtol=1e-4, atol=TOLERANCE, err_msg=path)


REMATERIALISED = "Involuntary full rematerialization"


@pytest.fixture
def compiler_says(capfd):
    """`compiler_says(jitted, *arguments)`: what XLA writes to the error stream while it compiles, nothing loaded."""

    def said(jitted, *arguments) -> str:
        capfd.readouterr()
        jitted.lower(*arguments).compile()
        return capfd.readouterr().err

    jax.config.update("jax_enable_compilation_cache", False)
    compilation_cache.reset_cache()  # JAX looks at the setting once
    yield said
    jax.config.update("jax_enable_compilation_cache", True)
    compilation_cache.reset_cache()


def test_the_compiler_is_heard_where_it_gives_up_a_sharding(compiler_says):
    """The next test would see it: rows of a table divided otherwise than the batch."""
    mesh = make_mesh(Mesh(2, 2, 2))
    rows = NamedSharding(mesh, P(("data", "fsdp")))

    def gather(table, index):
        return jax.lax.with_sharding_constraint(table[index], rows)

    table = NamedSharding(mesh, P(("fsdp", "tensor"), "data"))
    jitted = jax.jit(gather, in_shardings=(table, rows), out_shardings=rows)
    assert REMATERIALISED in compiler_says(jitted, jnp.zeros((256, 64)), jnp.zeros((8, 64), jnp.int32))


@pytest.mark.parametrize("mesh", MESHES.values(), ids=MESHES)
def test_no_parameter_is_made_whole_because_the_compiler_gave_up(problem, compiler_says, mesh):
    made = problem(mesh=mesh)
    batch = put_batch(made.session.mesh, next(made.batches)[0], row_axis=1)
    assert REMATERIALISED not in compiler_says(made.step, made.state, batch)


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


@pytest.mark.slow
def test_training_in_float8_learns_as_in_bfloat16(problem):
    def curve(dtype: str) -> np.ndarray:
        model = replace(SMALL, dtype=dtype, hidden_dropout=0.0, attention_dropout=0.0, head_dropout=0.0)
        return losses_of(problem(mesh=Mesh(1), devices=jax.devices()[:1], model=model, max_steps=120))

    wide, narrow = curve("bfloat16"), curve("float8")
    # Roundings of an eighth at most in each of very many terms: the losses of a step differ by a thousandth or so, and
    # what is learnt does not. bfloat16 goes down by 0.07 here.
    assert wide[-20:].mean() < wide[:20].mean() - 0.05
    np.testing.assert_allclose(narrow, wide, atol=0.01)


def test_parameters_are_divided_as_the_table_says(problem):
    made = problem(mesh=Mesh(1, 8))
    for path, array in made.state.params.items():
        if path.endswith(("kernel", "embedding")) and "head" not in path and "token_type" not in path:
            assert array.addressable_shards[0].data.size * 8 == array.size, path
    moments = [leaf for leaf in jax.tree.leaves(made.state.opt) if leaf.ndim == 3]
    assert moments and all(leaf.addressable_shards[0].data.size * 8 == leaf.size for leaf in moments)


def test_parameters_and_moments_are_born_divided(problem):
    """The program that draws them gives each device its part: no device ever holds the whole."""
    made = problem(mesh=Mesh(1, 8))
    session = made.session
    drawn = jax.jit(session.init, out_shardings=session.shardings).lower(jax.random.key(0)).compile()
    held = drawn.memory_analysis().output_size_in_bytes
    whole = sum(math.prod(shape.shape) * 4 for shape in session.shapes.values())
    assert held == pytest.approx(whole / 8, rel=0.2)
    for path, array in made.state.params.items():
        assert array.sharding == session.shardings[path]


class Placed:
    """A device of another process."""

    def __init__(self, process: int):
        self.process_index = process


@pytest.mark.parametrize(
    ("processes", "tensor", "shares"),
    [
        ([0, 0, 1, 1], 1, [(0, 2), (1, 2)]),
        ([0, 1, 2, 3], 2, [(0, 2), (0, 2), (1, 2), (1, 2)]),  # two processes hold the same rows
        ([0, 1, 2, 3], 4, [(0, 1)] * 4),
        ([0, 1, 1, 0], 1, [(0, 2), (1, 2)]),  # as the links of a TPU slice may order them
    ],
)
def test_processes_read_the_rows_that_their_devices_hold(processes, tensor, shares, monkeypatch):
    devices = np.array([Placed(process) for process in processes]).reshape(-1, 1, tensor)
    mesh = SimpleNamespace(devices=devices, shape={"data": len(devices), "fsdp": 1, "tensor": tensor})
    for process, share in enumerate(shares):
        monkeypatch.setattr(jax, "process_index", lambda process=process: process)
        assert row_share(mesh) == share


def test_rows_that_processes_share_in_part_are_refused():
    devices = np.array([Placed(process) for process in (0, 0, 0, 1, 1, 1)]).reshape(-1, 1, 2)
    mesh = SimpleNamespace(devices=devices, shape={"data": 3, "fsdp": 1, "tensor": 2}, local_devices=[0, 0, 0])
    with pytest.raises(InputError, match="rows that overlap in part"):
        row_share(mesh)


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

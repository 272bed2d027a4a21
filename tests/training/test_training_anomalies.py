"""Steps whose loss is not finite are skipped, counted and recorded, and a run of them ends the training."""

from __future__ import annotations

import io
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from srsjax.compilation import Compilations
from srsjax.config import Checkpoints, Evaluate, Mesh, Optimizer, TrainConfig
from srsjax.console import Console
from srsjax.runs.run_folder import RunFolder
from srsjax.runs.step import StepMetrics
from srsjax.training.anomalies import Anomalies, NonFiniteLoss
from srsjax.training.goodput import Goodput
from srsjax.training.loop import fit


def bad(batch):
    """The same batch with a label that is not a number."""
    labels = np.array(batch.labels)
    labels.flat[np.flatnonzero(batch.weights)[0]] = np.nan
    return batch._replace(labels=labels)


def copied(state):
    return jax.tree.map(jnp.copy, state)  # the step donates its state


@pytest.mark.parametrize("micro_batches", [1, 2])
@pytest.mark.parametrize("mesh", [Mesh(), Mesh(data=2, fsdp=4)])
def test_a_step_that_is_not_finite_changes_nothing_but_its_number(problem, micro_batches, mesh):
    p = problem(mesh=mesh, micro_batches=micro_batches)
    first, second = (next(p.batches)[0] for _ in range(2))
    state, metrics = p.step(p.state, jax.device_put(first))
    assert bool(metrics.applied)
    before = jax.device_get(state)
    state, metrics = p.step(state, jax.device_put(bad(second)))
    assert not bool(metrics.applied) and not np.isfinite(metrics.loss)
    after = jax.device_get(state)
    assert after.step == before.step + 1
    jax.tree.map(np.testing.assert_array_equal, after._replace(step=0), before._replace(step=0))
    state, metrics = p.step(state, jax.device_put(second))
    assert bool(metrics.applied) and np.isfinite(metrics.loss)


def run(p, folder, broken=(), most=10, evaluate=lambda params: {"auc": 0.5}, stop_at=0, **settings):
    """`fit` with the batches of these steps broken; returns what it printed and the last state."""
    out, seen, last = io.StringIO(), [p.batches.state()], []

    def step(state, batch):
        number = int(state.step) + 1
        if number == stop_at:
            raise KeyboardInterrupt
        state, metrics = p.step(state, bad(jax.device_get(batch)) if number in broken else batch)
        seen.append(number)
        last[:] = [state]
        return state, metrics

    settings = {"log_every": 2, "checkpoints": Checkpoints(every=2), "evaluate": Evaluate(every=4)} | settings
    config = TrainConfig(optimizer=Optimizer(max_skipped=most), **settings)
    rates, mesh, console = np.zeros(p.batches.steps), p.session.mesh, Console(file=out)
    try:
        fit(config, copied(p.state), step, p.batches, evaluate, rates, folder, mesh, console, Compilations(), Goodput())
    finally:
        p.batches.restore(0)
    return out.getvalue(), jax.device_get(last[0])


def test_skipped_steps_are_counted_and_their_rows_kept(problem, tmp_path):
    p, folder = problem(max_steps=8), RunFolder(tmp_path)
    said, _ = run(p, folder, broken=(3, 5))
    lines = [json.loads(line) for line in folder.skipped_file.read_text().splitlines()]
    assert [line["step"] for line in lines] == [3, 5] and lines[0]["loss"] == "nan"
    taken = [numbers for _, numbers in p.batches]
    for line in lines:
        numbers = taken[line["step"] - 1]
        assert line["rows"] == np.unique(p.split.example[numbers[numbers >= 0]]).tolist()
    assert "step 3: skipped, loss nan" in said
    train = [json.loads(line) for line in folder.metrics_file.read_text().splitlines()]
    train = [line for line in train if line["kind"] == "train"]
    assert [line.get("skipped", 0) for line in train] == [0, 1, 1, 0]
    assert all(np.isfinite(line["loss"]) for line in train)


def test_a_run_of_skipped_steps_ends_the_training(problem, tmp_path):
    p = problem(max_steps=8)
    run(p, RunFolder(tmp_path / "few"), broken=(2, 3, 4), most=3)  # as many as may be
    with pytest.raises(NonFiniteLoss, match=r"not finite at steps 2 to 5; .*skipped\.jsonl"):
        run(p, RunFolder(tmp_path / "many"), broken=(2, 3, 4, 5), most=3)
    with pytest.raises(NonFiniteLoss, match="not finite at step 2;"):
        run(p, RunFolder(tmp_path / "none"), broken=(2,), most=0)


def test_a_resumed_run_goes_on_counting(problem, tmp_path):
    """Killed in step 6 and started again: parameters, lines and the count are those of a run that was not."""
    p, whole, cut = problem(max_steps=8), RunFolder(tmp_path / "whole"), RunFolder(tmp_path / "cut")
    _, expected = run(p, whole, broken=(3, 5))
    with pytest.raises(KeyboardInterrupt):
        run(p, cut, broken=(3, 5), stop_at=6)
    _, state = run(p, cut, broken=(3, 5))
    jax.tree.map(np.testing.assert_array_equal, state, expected)
    assert cut.skipped_file.read_text() == whole.skipped_file.read_text()
    with pytest.raises(KeyboardInterrupt):
        run(p, other := RunFolder(tmp_path / "other"), broken=(3, 4, 5, 6), most=3, stop_at=5)
    with pytest.raises(NonFiniteLoss):  # two before the kill, two after it
        run(p, other, broken=(3, 4, 5, 6), most=3)


def test_parameters_that_are_not_finite_are_in_no_checkpoint(problem, tmp_path):
    """An update may be finite and the parameters not."""
    p, folder = problem(max_steps=8), RunFolder(tmp_path)
    inner = p.step

    def overflow(state, batch):
        state, metrics = inner(state, batch)
        if int(state.step) == 3:
            params = {path: x.at[...].set(jnp.inf) if path.endswith("bias") else x for path, x in state.params.items()}
            state = state._replace(params=params)
        return state, metrics

    p.step = overflow
    with pytest.raises(NonFiniteLoss, match="not finite at"):
        run(p, folder)
    assert sorted(int(path.name) for path in folder.checkpoints.iterdir() if path.name.isdigit()) == [2]


def test_spikes_are_said_and_noise_is_not():
    out, rng = io.StringIO(), np.random.default_rng(0)
    anomalies = Anomalies(None, 10, lambda numbers: numbers, Console(file=out))
    losses = rng.normal(0.5, 0.02, 300)
    losses[250] = 2.0

    def metrics(loss):
        return StepMetrics(np.float32(loss), *[np.float32(1)] * (len(StepMetrics._fields) - 1))

    for step, loss in enumerate(losses, 1):
        assert anomalies.see([step], [metrics(loss)], [None]) == 0
    (line,) = out.getvalue().splitlines()
    assert line.startswith("step 251: loss 2.0000, a spike: the median of 100 steps before is 0.4")

"""The loop keeps the device fed: nothing goes between host and device but batches and, at log lines, metrics."""

from __future__ import annotations

import io
import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from srsjax.compilation import Compilations
from srsjax.config import Checkpoints, Evaluate, Mesh, TrainConfig
from srsjax.console import Console
from srsjax.data.batches.layout import BatchShape
from srsjax.runs.evaluation import predict_split
from srsjax.runs.run_folder import RunFolder
from srsjax.runs.sharding import make_mesh
from srsjax.runs.state import TrainState
from srsjax.runs.step import StepMetrics
from srsjax.training.goodput import Goodput
from srsjax.training.loop import fit


@pytest.fixture
def folder(tmp_path):
    """A run folder without a run."""
    return RunFolder(tmp_path)


def train(config, state, step, batches, folder, mesh, evaluate=lambda params: {}, **more):
    """`fit` without a terminal; learning rates are 0."""
    console = Console(file=io.StringIO())
    rates, heard = np.zeros(batches.steps), Compilations()
    return fit(config, state, step, batches, evaluate, rates, folder, mesh, console, heard, Goodput(), **more)


def test_steps_log_lines_and_evaluations_transfer_nothing_unasked(problem, folder):
    """On CPU JAX guards the way to the device only; the order of reads is the next test's matter."""
    p = problem(mesh=Mesh(data=2), devices=jax.devices()[:2], max_steps=6)
    config = TrainConfig(log_every=2, evaluate=Evaluate(every=3))
    shape = BatchShape(p.layout, 64, p.batches.candidates, 32)
    calls = []

    def step(state, batch):
        calls.append(batch)
        with jax.transfer_guard("disallow_explicit"):  # not even what is asked for: all of it is there already
            return p.step(state, batch)

    def evaluate(params):
        logits = predict_split(p.session.predict_step, params, p.split, p.items, shape, p.session.mesh)
        return {"auc": float(np.isfinite(logits).mean())}

    with jax.transfer_guard("disallow"):
        progress = train(config, p.state, step, p.batches, folder, p.session.mesh, evaluate)
    assert progress.next_step == len(calls) == 6
    kinds = [json.loads(line)["kind"] for line in folder.metrics_file.read_text().splitlines()]
    assert kinds == ["train", "train", "valid", "train", "train", "valid"]  # steps 2, 3, 3, 4, 6, 6


class Scalar:
    """A metric of step n that notes when the host waits for it or reads it."""

    def __init__(self, events: list, step: int):
        self.events, self.step = events, step

    def block_until_ready(self):
        self.events.append(("wait", self.step))

    def is_ready(self):
        return False

    def __array__(self, *_, **__):
        self.events.append(("read", self.step))
        return np.float32(1)


class Taken:
    """Batches that note when they are taken."""

    def __init__(self, events: list, steps: int):
        self.events, self.steps, self.epoch_ends, self.step = events, steps, [steps], 0

    def restore(self, step: int) -> None:
        self.step = step

    def wait_checked(self) -> None:
        pass

    def __next__(self):
        self.step += 1
        self.events.append(("take", self.step))
        return np.zeros((1, 2), np.int32), None


def test_the_next_batch_is_on_its_way_before_a_step_is_waited_for(folder):
    events, steps = [], 12
    config = TrainConfig(log_every=5, checkpoints=Checkpoints(every=8))

    def step(state, batch):
        number = sum(kind == "dispatch" for kind, _ in events) + 1
        assert isinstance(batch, jax.Array)
        events.append(("dispatch", number))
        return state, StepMetrics(*[Scalar(events, number)] * len(StepMetrics._fields))

    state = TrainState(jnp.int32(0), {"w": jnp.zeros(2)}, optax.EmptyState())
    mesh = make_mesh(Mesh(), jax.devices()[:1])
    progress = train(config, state, step, Taken(events, steps), folder, mesh)
    assert progress.next_step == steps
    at = {event: i for i, event in reversed(list(enumerate(events)))}  # first time of each
    for n in range(1, steps + 1):
        assert at["take", n] < at["dispatch", n]
        for kind in ("wait", "read"):
            if (kind, n) in at and n < steps:
                assert at["dispatch", n] < at["take", n + 1] < at[kind, n]
    # Read at log lines and checkpoints only, and the host is never more than two steps ahead of the device.
    reads = {sum(kind == "dispatch" for kind, _ in events[:i]) for i, (kind, _) in enumerate(events) if kind == "read"}
    assert reads == {5, 8, 10, 12}
    assert at["wait", 1] < at["dispatch", 4] and at["wait", 2] < at["dispatch", 5]


def test_a_checkpoint_counts_steps_not_batches_taken_ahead(problem, folder):
    """Cut off in step 4 and gone on with, a run sees every batch once and in order."""
    p, seen = problem(max_steps=5), []

    def step(state, batch):
        seen.append(int(batch.tokens.sum()))
        return p.step(state, batch)

    def cut_off(state, batch):
        if len(seen) == 3:
            raise RuntimeError("cut off")
        return step(state, batch)

    config = TrainConfig(checkpoints=Checkpoints(every=1))
    initial = jax.tree.map(jnp.copy, p.state)  # the step donates its state
    with pytest.raises(RuntimeError, match="cut off"):
        train(config, p.state, cut_off, p.batches, folder, p.session.mesh)
    train(config, initial, step, p.batches, folder, p.session.mesh)
    p.batches.restore(0)
    assert seen == [int(batch.tokens.sum()) for batch, _ in p.batches]


def test_a_step_takes_the_memory_of_the_state_before_it(problem):
    """Donated: there are never two states on a device."""
    p = problem()
    before = jax.tree.leaves(p.state)
    state, _ = p.step(p.state, jax.device_put(next(p.batches)[0]))
    assert all(leaf.is_deleted() for leaf in before) and not any(leaf.is_deleted() for leaf in jax.tree.leaves(state))

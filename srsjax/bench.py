"""Measures this machine with a config: `python -m srsjax.bench --config ctr.py`.

Prepares the data if it has changed, then times matrix products, the training step, scoring and the assembly of batches
on real batches of the config, without a run folder. The share of peak is the arithmetic that real tokens need
(`srsjax.model.flops`) by second, against the rate of a large matrix product in the same compute type on all devices of
the mesh: padding, attention outside of a pair, dropout and the optimizer count as time, not as work.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from rich.table import Table

from srsjax import cli, distributed
from srsjax.compilation import enable_cache
from srsjax.config import TrainConfig
from srsjax.console import main_console
from srsjax.data.batches.batch import PackedBatch
from srsjax.data.batches.loader import Batches
from srsjax.errors import InputError
from srsjax.jax_version import check_jax
from srsjax.model import flops
from srsjax.model.compute import compute_dtype
from srsjax.runs.evaluation import scoring_batches
from srsjax.runs.sharding import put_batch
from srsjax.training.meter import IN_FLIGHT
from srsjax.training.setup import Training, set_up

SECONDS = 3.0
"""How long each thing is measured, after a first part that is not."""
UNCOUNTED = 8
"""Batches of that first part, in which programs are compiled."""


@dataclass(frozen=True)
class Speed:
    """What was measured, of real (non-padding) tokens and candidates."""

    name: str
    batches: int
    seconds: float
    tokens: int
    candidates: int
    flops: float
    """Floating-point operations that these tokens need; 0 where there are none to speak of."""


def main(argv: list[str] | None = None) -> int:
    """Runs the command; returns its exit code."""
    config, _ = cli.load_config(argv, "bench", __doc__)
    if distributed.launch(os.environ) is not None:  # each would stop by its own clock, and the others wait for it
        raise InputError(
            "bench: found several processes, but it measures one; start one (SRSJAX_NUM_PROCESSES=1 where a launcher "
            "tells of more); the log lines of train have rates and MFU of all"
        )
    check_jax()
    enable_cache()
    console = main_console()
    training = set_up(config, console)
    config = training.config
    dtype = jnp.dtype(jnp.float8_e4m3fn) if config.model.dtype == "float8" else compute_dtype(config.model)
    peak = matmul_rate(dtype) * training.session.mesh.size
    kind = f"{training.session.mesh.size} x {jax.devices()[0].device_kind}"
    console.print(f"{kind}, {dtype.name} products: {peak / 1e12:.2f} Tflop/s")
    scoring = [*measure_scoring(config, training)]  # first: training takes the parameters' memory for its own
    console.print(table([measure_training(config, training), *scoring], peak))
    return 0


def matmul_rate(dtype: jnp.dtype, size: int = 0, seconds: float = 1.0) -> float:
    """Floating-point operations a second of one device in a product of two squares of this type with float32 result.

    The best of many: what else the machine does can only slow one down. `size` 0 is 2048 on CPU and 8192 elsewhere.
    """
    size = size or (2048 if jax.default_backend() == "cpu" else 8192)
    a, b = (jax.random.normal(key, (size, size)).astype(dtype) for key in jax.random.split(jax.random.key(0)))
    product = jax.jit(lambda a, b: jax.lax.dot(a, b, preferred_element_type=jnp.float32))
    product(a, b).block_until_ready()
    best, end = np.inf, time.monotonic() + seconds
    while time.monotonic() < end:
        started = time.monotonic()
        product(a, b).block_until_ready()
        best = min(best, time.monotonic() - started)
    return 2 * size**3 / best


def measure_training(config: TrainConfig, training: Training) -> Speed:
    """Training steps, input included."""
    state, mesh = training.state, training.session.mesh

    def step(batch: PackedBatch) -> jax.Array:
        nonlocal state
        state, metrics = training.step(state, put_batch(mesh, batch, row_axis=1))
        return metrics.loss

    return _measure(config, training, "training", training.batches, step, flops.TRAINING)


def measure_scoring(config: TrainConfig, training: Training) -> Iterator[Speed]:
    """Scoring of the training split, input included, and the assembly of its batches alone."""
    session, shape, params = training.session, training.shape, training.state.all_params
    batches = scoring_batches(training.store.split("train"), training.store.items, shape)

    def step(batch: PackedBatch) -> jax.Array:
        return session.predict_step(params, put_batch(session.mesh, batch, row_axis=0))

    for name, run, work in (("scoring", step, 1), ("input alone", lambda batch: jnp.float32(0), 0)):
        yield _measure(config, training, name, batches, run, work)


def _measure(
    config: TrainConfig,
    training: Training,
    name: str,
    batches: Batches,
    run: Callable[[PackedBatch], jax.Array],
    work: int,
) -> Speed:
    """`run` on batches over and over; `work` forward passes are the arithmetic of one."""
    waiting: list[jax.Array] = []
    counted: list[PackedBatch] = []
    started = time.monotonic()
    for number, batch in enumerate(_again(batches)):
        waiting.append(run(batch))
        if len(waiting) > IN_FLIGHT:
            waiting.pop(0).block_until_ready()
        if number < UNCOUNTED:
            started = time.monotonic()
            continue
        counted.append(batch)
        if time.monotonic() - started > SECONDS:
            break
    jax.block_until_ready(waiting)
    seconds = time.monotonic() - started
    need = sum(flops.forward_flops(training.session.spec, batch) for batch in counted) if work else 0.0
    return Speed(
        name,
        len(counted),
        seconds,
        sum(int((batch.segment > 0).sum()) for batch in counted),
        sum(int((batch.group >= 0).sum()) for batch in counted),
        need * work,
    )


def _again(batches: Batches) -> Iterator[PackedBatch]:
    """The batches over and over."""
    while True:
        batches.restore(0)
        yield from (batch for batch, _ in batches)


def table(speeds: list[Speed], peak: float) -> Table:
    """One line for each speed; `peak` in floating-point operations a second."""
    made = Table("", "ms a batch", "tokens/s", "candidates/s", "Tflop/s", "share of peak")
    for speed in speeds:
        rate = speed.flops / speed.seconds
        made.add_row(
            speed.name,
            f"{1e3 * speed.seconds / speed.batches:.1f}",
            f"{speed.tokens / speed.seconds:,.0f}",
            f"{speed.candidates / speed.seconds:,.0f}",
            f"{rate / 1e12:.3f}" if rate else "",
            f"{rate / peak:.1%}" if rate else "",
        )
    return made


if __name__ == "__main__":
    cli.run(main)

"""Large tables of ids: time of a training step that updates the rows it touches, beside a dense one, and the memory of
a table that no single machine holds.

    python tests/bench/tables.py                                  # 10 million ids of width 16 on this machine
    python tests/bench/tables.py --ids 100000000 --devices 8      # compiled for 8 devices, not run: memory per device
"""

from __future__ import annotations

import argparse
import statistics
import time
from functools import partial

import jax
import numpy as np

from srsjax.config import Batch, Mesh, Model, Optimizer, Schema, Task, TrainConfig
from srsjax.data.batches.batch import PackedBatch
from srsjax.data.inputs import InputSpec
from srsjax.model.bert import BertConfig
from srsjax.model.spec import ModelSpec
from srsjax.runs.session import initial_state, open_session, state_target
from srsjax.runs.sharding import batch_target, put_batch
from srsjax.runs.steps import training_step
from srsjax.runs.tables import optimizer_of

C = 128


def a_batch(rng: np.random.Generator, rows: int, ids: int) -> PackedBatch:
    """A batch [1, R, ...] of candidates with ids and labels drawn at random."""
    slots, tokens = np.tile(np.arange(C, dtype=np.int32), (rows, 1)), np.zeros((rows, C), np.int32)
    batch = PackedBatch(
        tokens=tokens,
        positions=tokens,
        token_types=tokens,
        segment=slots + 1,
        candidate=slots + 1,
        context_readout=slots,
        readout=slots,
        context_of=slots,
        group=slots,
        labels=rng.integers(0, 2, (rows, C, 1)).astype(np.float32),
        weights=np.ones((rows, C, 1), np.float32),
        context_features={},
        candidate_features={"item": rng.integers(1, ids, (rows, C)).astype(np.int32)},
    )
    return jax.tree.map(lambda x: x[None], batch)


def problem(tables: str, devices: int, rows: int, ids: int, width: int):
    """Session, optimizer and step of DCN-V2 over one feature of ids."""
    config = TrainConfig(
        schema=Schema(tasks=(Task(),)),
        model=Model(combine="dcn", combine_layers=(64,)),
        mesh=Mesh(1, -1),
        batch=Batch(rows=rows, tokens=C),
        optimizer=Optimizer(name="adam", learning_rate=1e-3, tables=tables, warmup=0),
    )
    encoder = BertConfig(20, hidden_size=width, num_heads=1, intermediate_size=16, max_positions=8)
    features = (InputSpec("item", "candidate", "categorical", ids),)
    spec = ModelSpec.of(config.model, encoder, features=features, reads_text=False)
    session = open_session(config, spec, jax.devices()[:devices])
    optimizer = optimizer_of(config.optimizer, 1000, list(session.shapes), spec)
    return session, optimizer, training_step(config, session, optimizer)


def timed(tables: str, steps: int, rows: int, ids: int, width: int) -> float:
    """Median seconds of a step."""
    session, optimizer, step = problem(tables, 1, rows, ids, width)
    state, rng, taken = initial_state(session, optimizer, 0), np.random.default_rng(0), []
    for number in range(steps + 2):
        batch = put_batch(session.mesh, a_batch(rng, rows, ids), row_axis=1)
        started = time.perf_counter()
        state, metrics = step(state, batch)
        jax.block_until_ready((state, metrics))
        if number > 1:
            taken.append(time.perf_counter() - started)
    return statistics.median(taken)


def main() -> None:
    """Runs or compiles, and prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ids", type=int, default=10_000_000)
    parser.add_argument("--width", type=int, default=16)
    parser.add_argument("--rows", type=int, default=8, help=f"rows of {C} candidates in a batch")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument(
        "--dense", type=int, default=1_000_000, help="most ids for which Adam over all rows is timed too"
    )
    parser.add_argument("--devices", type=int, default=0, help="compile for so many devices instead of running")
    given = parser.parse_args()
    sizes = (given.rows, given.ids, given.width)
    if given.devices:
        jax.config.update("jax_platforms", "cpu")
        jax.config.update("jax_num_cpu_devices", given.devices)
        session, optimizer, step = problem("rowwise_adagrad", given.devices, *sizes)
        batch = a_batch(np.random.default_rng(0), given.rows, given.ids)
        target = batch_target(session.mesh, batch, row_axis=1, shares=1)
        used = step.lower(state_target(session, optimizer), target).compile().memory_analysis()
        state, temporary, whole = used.argument_size_in_bytes, used.temp_size_in_bytes, 4 * given.ids * given.width
        print(f"{given.ids:,} ids x {given.width} on {given.devices} devices, {whole / 2**20:,.0f} MiB: per device")
        print(f"{state / 2**20:,.0f} MiB of state and batch, {temporary / 2**20:,.1f} MiB of temporary memory")
        return
    measure = partial(timed, steps=given.steps, rows=given.rows, ids=given.ids, width=given.width)
    sparse = measure("rowwise_adagrad")
    count = given.rows * C
    print(f"{given.ids:,} ids x {given.width}, {count:,} candidates a step: row-wise Adagrad {1e3 * sparse:.1f} ms")
    if given.ids <= given.dense:
        dense = measure("dense")
        print(f"Adam over all rows {1e3 * dense:.1f} ms, {dense / sparse:.0f} x")


if __name__ == "__main__":
    main()

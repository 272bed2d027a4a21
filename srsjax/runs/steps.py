"""The step of a run and the batches it takes: what training does and a plan compiles."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial

import jax
import numpy as np
import optax

from srsjax.config import TrainConfig
from srsjax.data.batches.identity import with_identities
from srsjax.data.batches.layout import Layout
from srsjax.data.batches.loader import Batches, rows_for, train_batches
from srsjax.data.batches.teacher import with_teacher
from srsjax.data.kinds import shown_by
from srsjax.data.preparing.sources import Sources
from srsjax.data.store.arrays import Items, Split, Store
from srsjax.errors import InputError
from srsjax.model import ctr
from srsjax.objectives import losses
from srsjax.runs.fairness import with_fairness
from srsjax.runs.session import Session, state_target
from srsjax.runs.sharding import make_mesh, row_divisor
from srsjax.runs.step import jit_train_step, make_train_step


def training_step(config: TrainConfig, session: Session, optimizer: optax.GradientTransformation) -> Callable:
    """The jitted step of a run: (state, batch [A, R / A, ...]) -> (state, StepMetrics)."""
    shardings = jax.tree.map(lambda shape: shape.sharding, state_target(session, optimizer))
    pairs = losses.compares_batch(config.schema.tasks)
    forward = partial(ctr.forward_pairs, session.graphdef) if pairs else session.forward
    step = make_train_step(forward, session.objectives(config), optimizer, config.seed)
    return jit_train_step(step, session.mesh, shardings)


def with_rows(
    config: TrainConfig, store: Store, layout: Layout, devices: Sequence[jax.Device] | None = None
) -> TrainConfig:
    """The config with the rows that `batch.examples` asks for, if it does."""
    if not config.batch.examples:
        return config
    divisor = config.batch.micro_batches * row_divisor(make_mesh(config.mesh, devices))
    split, whole = store.split("train"), losses.needs_whole_impressions(config.schema.tasks)
    rows = rows_for(split, store.items, layout, config.batch, whole_impressions=whole, divisor=divisor)
    return replace(config, batch=replace(config.batch, rows=rows))


def check_rows(config: TrainConfig, mesh: jax.sharding.Mesh) -> None:
    """Raises InputError where the mesh does not divide the rows of a micro-batch."""
    part = config.batch.micro_batches * row_divisor(mesh)
    if config.batch.rows % part:
        raise InputError(
            f"batch.rows: found {config.batch.rows}, expected a multiple of {part} "
            f"(batch.micro_batches x mesh.data x mesh.fsdp)"
        )


def training_batches(
    config: TrainConfig,
    store: Store,
    layout: Layout,
    share: tuple[int, int] = (0, 1),
    teacher: np.ndarray | None = None,
) -> Batches:
    """This host's part of every step's batch; `share` is from `row_share`, `teacher` from `teacher_logits`."""
    split, passes = with_fairness(config, store.split("train"), store.items), (config.epochs, config.max_steps)
    return loss_batches(config, split, store.items, layout, *passes, share, teacher)


def loss_batches(
    config: TrainConfig,
    split: Split,
    items: Items,
    layout: Layout,
    epochs: float = 1.0,
    max_steps: int = 0,
    share: tuple[int, int] = (0, 1),
    teacher: np.ndarray | None = None,
) -> Batches:
    """Batches [A, R / A, ...] of the labelled candidates of a split, with all that the losses of the config's tasks
    read. Arguments and errors as in `training_batches` and `train_batches`."""
    if losses.compares_batch(config.schema.tasks):
        home = Sources(config.schema, config.data).home
        split, items = with_identities(split, items, catalogue=home is not None, ignored=shown_by(config.schema))
    if teacher is not None:
        split = with_teacher(split, teacher)
    return train_batches(
        split,
        items,
        layout,
        config.batch,
        whole_impressions=losses.needs_whole_impressions(config.schema.tasks),
        seed=config.seed,
        epochs=epochs,
        max_steps=max_steps,
        process_index=share[0],
        process_count=share[1],
    )

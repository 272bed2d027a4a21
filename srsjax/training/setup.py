"""What a training run sets up before its first step: data, model, optimizer and fresh state."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import jax
import numpy as np
import optax

from srsjax.compilation import CompiledAhead
from srsjax.config import TrainConfig
from srsjax.console import Console
from srsjax.cpu import keep_freed_memory
from srsjax.data.batches.layout import BatchShape, Layout, check_lengths
from srsjax.data.batches.loader import Batches, rows_for, train_batches
from srsjax.data.preparing.shared import shared_store
from srsjax.data.store.arrays import Store
from srsjax.data.store.tokenizer import load_tokenizer
from srsjax.errors import InputError
from srsjax.objectives import losses
from srsjax.objectives.priors import prior_logits
from srsjax.runs.evaluation import batch_shape, predict_split
from srsjax.runs.precision import Precision, choose_precision
from srsjax.runs.session import Session, initial_state, open_session, state_target
from srsjax.runs.sharding import batch_target, make_mesh, put_same, row_divisor, row_share
from srsjax.runs.spec import layout_of, make_spec
from srsjax.runs.state import TrainState
from srsjax.runs.warm_start import check_source, is_run, load_source
from srsjax.training import optimizers
from srsjax.training.step import jit_train_step, make_train_step

CENTRED_ON = 512
"""Impressions of the sample in `centred`."""


@dataclass(frozen=True)
class Training:
    """A run that has not started."""

    config: TrainConfig
    """With `batch.rows` and `model.dtype` resolved."""
    precision: Precision
    store: Store
    session: Session
    batches: Batches
    shape: BatchShape
    state: TrainState
    step: CompiledAhead
    """Compiled (state, batch [micro-batches, R, ...]) -> (state, metrics); donates the state."""
    learning_rates: np.ndarray
    """[steps] float32."""


def set_up(config: TrainConfig, console: Console, kept: Precision | None = None) -> Training:
    """Prepares the data if it has changed, and builds what a run needs; `kept`: what `model.dtype auto` is already.

    Raises InputError for whatever no run can have; a run folder is neither read nor written.
    """
    store = shared_store(config, log=console.print)
    keep_freed_memory()  # not before the data: its memory would stay
    text = load_tokenizer(str(store.folder / "tokenizer"))
    spec = make_spec(config, text, store.manifest)
    layout = layout_of(spec, text)
    precision = choose_precision(config.model, spec.encoder, kept)
    console.print(precision.said, highlight=False, markup=False, soft_wrap=True)
    config = precision.apply(with_rows(config, store, layout))
    session = open_session(config, spec)
    check_lengths(config, layout, spec.encoder.longest)
    check_rows(config, session.mesh)
    if config.model.pretrained:  # what does not fit is refused now, not after the compilation
        console.print(check_source(config.model.pretrained, spec))
    share = row_share(session.mesh)
    batches = training_batches(config, store, layout, share)
    session = replace(session, spec=replace(spec, candidates=batches.candidates))
    shape = batch_shape(config, session.spec, layout, session.mesh)
    optimizer = optimizers.make_optimizer(config.optimizer, batches.steps, list(session.trained(session.shapes)))
    rates = optimizers.learning_rates(config.optimizer, batches.steps)  # before the device is busy with a fresh state
    jitted = training_step(config, session, optimizer)
    target = (
        state_target(session, optimizer),
        batch_target(session.mesh, batches.first(), row_axis=1, shares=share[1]),
    )
    step = CompiledAhead(jitted, *target)
    weights = {"head/dense/bias": prior_logits(config.schema.tasks, store.split("train"))}
    if config.model.pretrained:
        weights |= load_source(config.model.pretrained, spec, session.shapes)
    state = initial_state(session, optimizer, config.seed, weights)
    params = centred(config, session, store, shape, state.all_params)
    state = state._replace(params=session.trained(params), frozen=session.untrained(params))
    return Training(config, precision, store, session, batches, shape, state, step, rates)


def training_step(config: TrainConfig, session: Session, optimizer: optax.GradientTransformation) -> Callable:
    """The jitted step of a run: (state, batch [A, R / A, ...]) -> (state, StepMetrics)."""
    shardings = jax.tree.map(lambda shape: shape.sharding, state_target(session, optimizer))
    step = make_train_step(session.forward, config.schema.tasks, optimizer, config.seed)
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


def centred(config: TrainConfig, session: Session, store: Store, shape: BatchShape, params: dict) -> dict:
    """Parameters with which the logits start around the prior of the head's bias, where the interaction asks for it:
    their mean over a sample of the training split is taken off."""
    if not session.spec.interaction.centres_logits or is_run(config.model.pretrained):
        return params
    split = store.split("train")
    sample = split.take(np.linspace(0, len(split) - 1, min(len(split), CENTRED_ON), dtype=np.int64))
    logits = predict_split(session.predict_step, params, sample, store.items, shape, session.mesh)
    path, bias = "head/dense/bias", params["head/dense/bias"]
    return params | {path: put_same(2 * np.asarray(bias) - logits.mean(0), bias.sharding)}


def training_batches(config: TrainConfig, store: Store, layout: Layout, share: tuple[int, int] = (0, 1)) -> Batches:
    """This host's part of every step's batch; `share` is from `row_share`."""
    return train_batches(
        store.split("train"),
        store.items,
        layout,
        config.batch,
        whole_impressions=losses.needs_whole_impressions(config.schema.tasks),
        seed=config.seed,
        epochs=config.epochs,
        max_steps=config.max_steps,
        process_index=share[0],
        process_count=share[1],
    )

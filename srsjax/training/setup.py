"""What a training run sets up before its first step: data, model, optimizer and fresh state."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from srsjax.compilation import CompiledAhead
from srsjax.config import TrainConfig
from srsjax.console import Console
from srsjax.cpu import keep_freed_memory
from srsjax.data.batches.layout import BatchShape, check_lengths
from srsjax.data.batches.loader import Batches
from srsjax.data.preparing.shared import shared_store
from srsjax.data.preparing.statistics import Fitted
from srsjax.data.store.arrays import Store
from srsjax.data.store.tokenizer import load_tokenizer
from srsjax.objectives.priors import prior_logits
from srsjax.runs import optimizers
from srsjax.runs.distillation import teacher_logits
from srsjax.runs.evaluation import predict_split
from srsjax.runs.precision import Precision, choose_precision
from srsjax.runs.room import check_room
from srsjax.runs.session import Session, initial_state, open_session, state_target
from srsjax.runs.shapes import batch_shape
from srsjax.runs.sharding import batch_target, put_same, row_share
from srsjax.runs.spec import layout_of, make_spec
from srsjax.runs.state import TrainState
from srsjax.runs.steps import check_rows, training_batches, training_step, with_rows
from srsjax.runs.tables import optimizer_of
from srsjax.runs.warm_start import check_source, is_run, load_source

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
    check_room(config, spec)
    check_room(config, spec, training=False)
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
    teacher = teacher_logits(config, spec, store, console.print)
    batches = training_batches(config, store, layout, share, teacher)
    session = replace(session, spec=replace(spec, candidates=batches.candidates))
    shape = batch_shape(config, session.spec, layout, session.mesh)
    optimizer = optimizer_of(config.optimizer, batches.steps, list(session.trained(session.shapes)), session.spec)
    rates = optimizers.learning_rates(config.optimizer, batches.steps)  # before the device is busy with a fresh state
    jitted = training_step(config, session, optimizer)
    target = (
        state_target(session, optimizer),
        batch_target(session.mesh, batches.first(), row_axis=1, shares=share[1]),
    )
    step = CompiledAhead(jitted, *target)
    goals = session.objectives(config)
    weights = {"head/dense/bias": prior_logits(goals, store.split("train"))}
    if spec.interaction.reads_context and spec.product == "cosine":
        scales = [np.full(own.stop - own.start, made.scale, np.float32) for made, own in goals]
        weights["head/dense/kernel"] = np.tile(np.concatenate(scales), (spec.encoder.hidden_size, 1))
    if config.model.pretrained:
        fitted = Fitted(**store.manifest["fitted"])
        weights |= load_source(config.model.pretrained, spec, session.shapes, fitted)
        fresh = sorted({path.partition("/")[0] for path in session.shapes if path not in weights})
        if fresh and is_run(config.model.pretrained):
            console.print(f"weights: fresh in {', '.join(fresh)}", highlight=False)
    state = initial_state(session, optimizer, config.seed, weights)
    params = centred(config, session, store, shape, state.all_params)
    state = state._replace(params=session.trained(params), frozen=session.untrained(params))
    return Training(config, precision, store, session, batches, shape, state, step, rates)


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

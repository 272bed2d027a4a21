"""Trains a click model: `python -m srsjax.train --config ctr.py`.

Prepares the data if it has changed, trains (or goes on where a run was stopped), evaluates the best checkpoint on the
test split and says how to score with it. The run folder holds everything evaluate, score and export need.
"""

from __future__ import annotations

from dataclasses import asdict, replace
from functools import partial

import jax
import numpy as np
from rich.console import Console

from srsjax import cli
from srsjax.config import TrainConfig
from srsjax.data.assembly import Layout
from srsjax.data.loader import Batches, train_batches
from srsjax.data.prepare import prepare
from srsjax.data.store import Store
from srsjax.data.tokenizer import load_tokenizer
from srsjax.errors import InputError
from srsjax.jax_version import check_jax
from srsjax.metrics import report as metrics
from srsjax.metrics.calibration import sigmoid
from srsjax.metrics.plots import save_curves
from srsjax.model import ctr, hf
from srsjax.training import losses, optimizers, show
from srsjax.training.checkpoints import load_params
from srsjax.training.evaluation import (
    BatchShape,
    batch_shape,
    check_lengths,
    make_layout,
    predict_split,
    split_metrics,
    split_references,
)
from srsjax.training.loop import NonFiniteLoss, Stopped, fit, monitor_mode
from srsjax.training.priors import prior_logits
from srsjax.training.run_folder import RunFolder, write_json
from srsjax.training.session import Session, initial_state, open_session, target
from srsjax.training.sharding import row_divisor
from srsjax.training.step import jit_train_step, make_train_step

STOPPED = 75
"""Exit code: stopped by a signal, saved; the same command goes on (EX_TEMPFAIL of sysexits.h)."""
CENTRED_ON = 512
"""Impressions of the sample in `centred`."""


def main(argv: list[str] | None = None) -> int:
    """Runs the command; returns its exit code."""
    config, name = cli.load_config(argv, "train", __doc__)
    check_jax()
    console = Console()
    config = replace(config, run_dir=config.run_dir or f"runs/{name}")
    folder = RunFolder(config.run_dir)
    check_numbers(config)
    monitor_mode(config)
    folder.check(config)
    if folder.finished and not config.overwrite:
        show.finished(console, folder, config)
        return 0

    store = prepare(config, log=lambda text: console.print(text, markup=False, highlight=False, soft_wrap=True))
    text = load_tokenizer(str(store.folder / "tokenizer"))
    session = open_session(config, ctr.encoder_config(config.model, text.vocab_size))
    layout = make_layout(config, text)
    check_lengths(config, layout, session.bert.longest)
    check_rows(config, session.mesh)
    weights = pretrained(config, session, console)
    batches = training_batches(config, store, layout)
    shape = batch_shape(config, text, batches.candidates, session.mesh)
    optimizer = optimizers.make_optimizer(config.optimizer, batches.steps, list(session.shapes))
    weights["head/dense/bias"] = prior_logits(config.schema.tasks, store.split("train"))
    state = initial_state(session, optimizer, config.seed, weights)
    state = state._replace(params=centred(config, session, store, shape, state.params))
    shardings = jax.tree.map(lambda array: array.sharding, state)
    train_step = make_train_step(session.forward, config.schema.tasks, optimizer, config.seed)
    check_monitor(config, store)
    folder.create(config, store.folder / "tokenizer", store.manifest, asdict(session.bert))
    show.start(console, config, session, batches)
    try:
        progress = fit(
            config,
            state,
            jit_train_step(train_step, session.mesh, shardings),
            batches,
            partial(validate, config, session, store, shape),
            optimizers.schedule(config.optimizer, batches.steps),
            folder,
            session.mesh,
            console,
        )
    except NonFiniteLoss as error:
        cli.complain(str(error))
        return 1
    except Stopped as stopped:
        console.print(f"stopped: {stopped}")
        return STOPPED
    finally:
        batches.close()
    report(config, session, store, shape, folder, progress)
    show.finished(console, folder, config)
    return 0


def pretrained(config: TrainConfig, session: Session, console: Console) -> dict[str, np.ndarray]:
    """The checkpoint's weights by parameter path; none for a fresh encoder."""
    if not config.model.pretrained:
        return {}
    weights, loading = hf.load_weights(config.model.pretrained, session.bert)
    console.print(f"weights: {loading}", highlight=False)
    return weights


def centred(config: TrainConfig, session: Session, store: Store, shape: BatchShape, params: dict) -> dict:
    """`towers` begins with logits around the prior of the head's bias too: pre-trained vectors of any two texts are
    alike, so their scaled cosines are far above 0. Their mean over a sample of the training split is taken off."""
    if config.model.interaction != "towers":
        return params
    split = store.split("train")
    sample = split.take(np.linspace(0, len(split) - 1, min(len(split), CENTRED_ON), dtype=np.int64))
    logits = predict_split(session.predict_step, params, sample, store.items, shape, session.mesh)
    path, bias = "head/dense/bias", params["head/dense/bias"]
    return params | {path: jax.device_put(2 * np.asarray(bias) - logits.mean(0), bias.sharding)}


def training_batches(config: TrainConfig, store: Store, layout: Layout) -> Batches:
    """This host's part of every step's batch."""
    return train_batches(
        store.split("train"),
        store.items,
        layout,
        config.batch,
        whole_impressions=losses.needs_whole_impressions(config.schema.tasks),
        seed=config.seed,
        epochs=config.epochs,
        max_steps=config.max_steps,
        process_index=jax.process_index(),
        process_count=jax.process_count(),
    )


def validate(config: TrainConfig, session: Session, store: Store, shape: BatchShape, params) -> dict[str, float]:
    """Metrics of the valid split, none where it is empty. Raises NonFiniteLoss for logits that are not finite."""
    if not has_split(store, "valid"):
        return {}
    split = store.split("valid")
    logits = predict_split(session.predict_step, params, split, store.items, shape, session.mesh)
    if not np.isfinite(logits).all():
        raise NonFiniteLoss("the logits of the validation split are not finite; lower optimizer.learning_rate")
    return split_metrics(config, split, logits)


def report(config: TrainConfig, session: Session, store: Store, shape: BatchShape, folder: RunFolder, progress) -> None:
    """Evaluates the best checkpoint on valid and test and writes `report.json`, which ends the run."""
    params = load_params(folder.checkpoints, progress.best_step, target(session))
    result = {"best_step": progress.best_step, "best_value": progress.best_value, "steps": progress.next_step}
    result |= {"candidates": shape.candidates}
    for name in ("valid", "test"):
        result[name], result[f"{name}_references"] = {}, {}
        if has_split(store, name):
            split = store.split(name)
            logits = predict_split(session.predict_step, params, split, store.items, shape, session.mesh)
            result[name] = split_metrics(config, split, logits)
            result[f"{name}_references"] = split_references(config, store.split("train"), split, store.items)
            if "auc" in result[name]:
                curves = (sigmoid(logits[:, 0]), split.labels[:, 0], split.weights[:, 0])
                save_curves(folder.path / f"{name}.png", *curves)
    if jax.process_index() == 0:
        write_json(folder.report_file, result)


def check_numbers(config: TrainConfig) -> None:
    """Raises InputError for a number that no run can have."""
    for name, value, least in (
        ("max_steps", config.max_steps, 0),
        ("log_every", config.log_every, 1),
        ("batch.rows", config.batch.rows, 1),
        ("batch.micro_batches", config.batch.micro_batches, 1),
        ("batch.workers", config.batch.workers, 0),
        ("model.num_layers", config.model.num_layers, 1),
        ("model.num_heads", config.model.num_heads, 1),
        ("evaluate.every", config.evaluate.every, 0),
        ("evaluate.ndcg_at", config.evaluate.ndcg_at, 1),
        ("checkpoints.every", config.checkpoints.every, 0),
    ):
        if value < least:
            raise InputError(f"{name}: found {value}, expected at least {least}")
    if not config.epochs > 0:
        raise InputError(f"epochs: found {config.epochs}, expected more than 0")
    if not 0 <= config.model.head_dropout < 1:
        raise InputError(f"model.head_dropout: found {config.model.head_dropout}, expected at least 0 and less than 1")


def check_monitor(config: TrainConfig, store: Store) -> None:
    """Raises InputError for a metric that the valid split cannot define: now, not after an epoch."""
    if has_split(store, "valid"):
        split = store.split("valid")
        metrics.monitored(split_metrics(config, split, np.zeros(split.labels.shape)), config.evaluate.monitor)


def check_rows(config: TrainConfig, mesh: jax.sharding.Mesh) -> None:
    """Raises InputError where the mesh does not divide the rows of a micro-batch."""
    part = config.batch.micro_batches * row_divisor(mesh)
    if config.batch.rows % part:
        raise InputError(
            f"batch.rows: found {config.batch.rows}, expected a multiple of {part} "
            f"(batch.micro_batches x mesh.data x mesh.fsdp)"
        )


def has_split(store: Store, name: str) -> bool:
    """Whether a split holds any impression (its share may have been set to 0)."""
    return len(store.split(name)) > 0


if __name__ == "__main__":
    cli.run(main)

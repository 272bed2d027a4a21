"""Trains a click model: `python -m srsjax.train --config ctr.py`.

Prepares the data if it has changed, trains (or resumes where a run was stopped), evaluates the best checkpoint on the
test split and says how to score with it. The run folder holds everything evaluate, score and export need.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np

from srsjax import cli, distributed
from srsjax.compilation import Compilations, enable_cache
from srsjax.config import TrainConfig
from srsjax.config_io import from_json, to_json
from srsjax.console import Console, main_console, say
from srsjax.data.batches.layout import BatchShape
from srsjax.data.store.arrays import Split, Store
from srsjax.jax_version import check_jax
from srsjax.locks import exclusive
from srsjax.metrics import report as metrics
from srsjax.reporting.final import Final
from srsjax.runs.calibration import check_calibration
from srsjax.runs.checkpoints import load_params
from srsjax.runs.class_shares import check_shared_classes
from srsjax.runs.distillation import record_teacher
from srsjax.runs.evaluation import predict_split, split_metrics
from srsjax.runs.fairness import check_fairness
from srsjax.runs.monitor import resolve_monitor
from srsjax.runs.pinning import pin
from srsjax.runs.precision import kept_precision
from srsjax.runs.run_folder import RunFolder
from srsjax.runs.session import Session, target
from srsjax.runs.slices import Frame, check_slices, slice_scalars
from srsjax.stopping import STOPPED, Stopped, since_asked, stoppable
from srsjax.training import show
from srsjax.training.anomalies import NonFiniteLoss
from srsjax.training.goodput import Goodput
from srsjax.training.loop import fit
from srsjax.training.meter import known_work
from srsjax.training.profile import profiled_steps
from srsjax.training.setup import Training, set_up
from srsjax.training.tracking import TRACKERS, Tracker, Tracking, any_hangs, check_trackers
from srsjax.training.watchdog import Watchdog

PROGRAMS = ("init", "train_step", "predict_step")
"""Programs whose compilation is printed; the many small ones mean nothing to a person."""


def main(argv: list[str] | None = None) -> int:
    """Runs the command; returns its exit code."""
    config, name = cli.load_config(argv, "train", __doc__)
    distributed.initialize()
    check_jax()
    goodput = Goodput()
    cache, compilations = enable_cache(), Compilations(goodput.compiled, PROGRAMS)
    config = replace(config, run_dir=config.run_dir or f"runs/{name}")
    with contextlib.ExitStack() as held:
        held.enter_context(stoppable())
        held.enter_context(Watchdog(config.watchdog, goodput))
        try:
            code = run(config, goodput, cache, compilations, held)
        except Stopped as stopped:
            say(f"stopped: {stopped}{since_asked()}")
            code = STOPPED
    if any_hangs():  # its library may wait for it when the program ends
        if distributed.process_count() > 1:
            jax.distributed.shutdown()
        cli.leave(code)
    return code


def run(
    config: TrainConfig, goodput: Goodput, cache: Path | None, compilations: Compilations, held: contextlib.ExitStack
) -> int:
    """Trains, or shows what was trained; returns the exit code. `held` gets the lock of the run folder.

    Raises Stopped where a signal ended it.
    """
    console = main_console()
    folder = RunFolder(config.run_dir)
    # What the run folder records is the metric itself.
    config = replace(config, evaluate=replace(config.evaluate, monitor=resolve_monitor(config).key))
    check_calibration(config)
    check_slices(config)
    check_fairness(config)
    profiled_steps(config.profile.steps)
    distributed.on_first(partial(check_trackers, config.track))
    config = from_json(distributed.on_first(lambda: to_json(pin(config, folder))))  # processes exchange JSON
    if distributed.on_first(partial(is_done, folder, config)):
        if distributed.is_first():
            show.finished(console, folder, config)
        return 0

    distributed.on_first(lambda: held.enter_context(exclusive(config.run_dir, say)))
    asked, kept = config.model, None if config.overwrite else kept_precision(folder, resuming=True)
    training = set_up(config, console, kept)
    config, store, session = training.config, training.store, training.session
    check_monitor(config, session, store)
    check_shared_classes(config, session.spec.outputs, store.split("valid") if has_split(store, "valid") else None)
    profiled_steps(config.profile.steps, training.batches.steps)
    create = (replace(config, model=asked), store.folder / "tokenizer", store.manifest, session.spec.to_json())
    distributed.on_first(lambda: folder.create(*create, training.precision.record(asked)))
    distributed.on_first(partial(record_teacher, folder, config))
    distributed.wait_until_seen(folder.config_file)
    if distributed.is_first():
        goodput.open(folder.goodput_file)
    show.start(console, config, session, training.batches, training.shape, cache)
    try:
        train(training, folder, console, compilations, goodput)
    except NonFiniteLoss as error:
        cli.complain(str(error))
        return 1
    finally:
        training.batches.close()
        if distributed.is_first():
            console.print(goodput.said())
            goodput.close()
    compilations.tell(console)
    if distributed.is_first():
        show.finished(console, folder, config)
    return 0


def train(
    training: Training, folder: RunFolder, console: Console, compilations: Compilations, goodput: Goodput
) -> None:
    """Trains to the end and writes the report. Raises NonFiniteLoss and Stopped as `fit` does."""
    with goodput.of("log"), tracked(training.config, folder, console) as tracking:
        tracking.summarize(_train(training, folder, console, compilations, goodput, tracking))


def _train(
    training: Training,
    folder: RunFolder,
    console: Console,
    compilations: Compilations,
    goodput: Goodput,
    tracking: Tracking,
) -> dict[str, float]:
    """`train`; returns the numbers of the report that trackers keep."""
    config, store, session, shape = training.config, training.store, training.session, training.shape

    def step(state, batch):
        with goodput.of("compile"):
            training.step.wait()  # returns at once but the first time
        return training.step(state, batch)

    progress = fit(
        config,
        training.state,
        step,
        training.batches,
        partial(validate, config, session, store, shape, goodput),
        training.learning_rates,
        folder,
        session.mesh,
        console,
        compilations,
        goodput,
        known_work(session.spec, session.mesh),
        tracking,
    )
    training.batches.close()
    with goodput.of("evaluation"):
        return summary(report(config, session, store, shape, folder, progress, goodput))


def tracked(config: TrainConfig, folder: RunFolder, console: Console) -> Tracking:
    """The trackers of a run, on the first process."""
    made: dict[str, Tracker] = {name: TRACKERS[name]() for name in config.track if distributed.is_first()}
    return Tracking(made, folder.path.resolve().name, to_json(config), folder.path, console.print)


def summary(result: Mapping[str, Any]) -> dict[str, float]:
    """The numbers of `report.json` by which runs are compared: the model's metrics as `report/test/auc`, and the best
    step."""
    found = {f"report/{name}/{key}": x for name in ("valid", "test") for key, x in result.get(name, {}).items()}
    return found | {f"report/{name}": result[name] for name in ("best_step", "best_value") if result[name] is not None}


def is_done(folder: RunFolder, config: TrainConfig) -> bool:
    """Whether the run has come to its end already. Raises InputError where the folder holds another run."""
    folder.check(config)
    return folder.finished and not config.overwrite


def validate(
    config: TrainConfig, session: Session, store: Store, shape: BatchShape, goodput: Goodput, params
) -> dict[str, float]:
    """Metrics of the valid split, none where it is empty. Raises NonFiniteLoss for logits that are not finite."""
    if not has_split(store, "valid"):
        return {}
    split = store.split("valid")
    logits = predicted(session, params, split, store, shape, goodput)
    if not np.isfinite(logits).all():
        raise NonFiniteLoss("the logits of the validation split are not finite; lower optimizer.learning_rate")
    # Computed once, so that all processes continue from the same numbers, bit for bit.
    return distributed.on_first(lambda: _validated(config, session, store, split, logits))


def _validated(config: TrainConfig, session: Session, store: Store, split: Split, logits) -> dict[str, float]:
    """Metrics of a split, and those of the groups that `evaluate.slices` names."""
    frame = Frame(config, split, store.items, None, store.manifest["fitted"]["vocabularies"])
    of = (session.spec.outputs, logits)
    return split_metrics(config, of[0], split, logits) | slice_scalars(frame, *of)


def predicted(session: Session, params, split: Split, store: Store, shape: BatchShape, goodput: Goodput) -> np.ndarray:
    """`predict_split`, heard of by the watchdog batch by batch; metrics, which follow, have no such parts."""
    of = (params, split, store.items, shape, session.mesh)
    logits = predict_split(session.predict_step, *of, progress=lambda candidates: goodput.beat())
    goodput.enter("evaluation")
    return logits


def report(
    config: TrainConfig,
    session: Session,
    store: Store,
    shape: BatchShape,
    folder: RunFolder,
    progress,
    goodput: Goodput,
) -> dict[str, Any]:
    """Evaluates the best checkpoint on valid and test and writes `report.json`, which ends the run; returns what it
    holds, of which the first process alone has the metrics.

    All processes compute the logits; the first one the metrics and the files.
    """
    run = distributed.on_first(folder.identity)
    params = load_params(folder.checkpoints, progress.best_step, target(session), run)
    result = {"best_step": progress.best_step, "best_value": progress.best_value, "steps": progress.next_step}
    final = Final(config, session, store, shape, folder, params, progress.best_step, result)
    for name in ("valid", "test"):
        if has_split(store, name):
            logits = predicted(session, params, store.split(name), store, shape, goodput)
            if distributed.is_first():
                final.add(name, logits)
    distributed.on_first(final.write)
    return final.result


def check_monitor(config: TrainConfig, session: Session, store: Store) -> None:
    """Raises InputError for a metric that the valid split cannot define: now, not after an epoch."""
    if has_split(store, "valid"):
        split = store.split("valid")
        # Not equal ones, of which a rank correlation is undefined.
        logits = np.random.default_rng(0).normal(size=(len(split.item), session.spec.num_outputs))
        metrics.monitored(split_metrics(config, session.spec.outputs, split, logits), config.evaluate.monitor)


def has_split(store: Store, name: str) -> bool:
    """Whether a split holds any impression (its share may have been set to 0)."""
    return len(store.split(name)) > 0


if __name__ == "__main__":
    cli.run(main)

"""The training loop: steps, logging, validation, checkpoints, early stopping, and stopping by a signal."""

from __future__ import annotations

import math
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from srsjax.compilation import Compilations
from srsjax.config import TrainConfig
from srsjax.console import Console
from srsjax.data.batches.batch import PackedBatch
from srsjax.metrics.table import METRICS
from srsjax.runs.checkpoints import Checkpointer, better
from srsjax.runs.monitor import resolve_monitor
from srsjax.runs.run_folder import RunFolder
from srsjax.runs.sharding import put_batch
from srsjax.runs.state import TrainState
from srsjax.training.goodput import Goodput
from srsjax.training.log import RunLog
from srsjax.training.meter import Meter, Work
from srsjax.training.profile import Profiler, profiled_steps
from srsjax.training.step import StepMetrics


class Stopped(Exception):
    """A signal asked the run to stop; the state is saved."""


@dataclass(frozen=True)
class Progress:
    """What a resumed run needs besides the train state; JSON in every checkpoint."""

    next_step: int = 0
    """The state of the input: batches taken so far."""
    best_step: int | None = None
    best_value: float | None = None
    since_best: int = 0
    """Evaluations since the best one."""

    def after(self, step: int, value: float, mode: str) -> Progress:
        """Progress after an evaluation at `step`. Without any defined value yet, the newest step is the best."""
        if better(value, self.best_value, mode):
            return Progress(step, step, value, 0)
        if self.best_value is None:
            return Progress(step, step, None, 0)
        return Progress(step, self.best_step, self.best_value, self.since_best + 1)


def fit(
    config: TrainConfig,
    state: TrainState,
    train_step: Callable,
    batches,
    evaluate: Callable[[dict], dict[str, float]],
    learning_rates: np.ndarray,
    folder: RunFolder,
    mesh: jax.sharding.Mesh,
    console: Console,
    compilations: Compilations,
    goodput: Goodput,
    work: Work | None = None,
) -> Progress:
    """Trains from the newest checkpoint of the run folder (or from `state`) to the end.

    Args:
      state: fresh state; its shapes and shardings are the target of a restore.
      train_step: from `step.jit_train_step`; donates the state.
      batches: from `loader.train_batches`.
      evaluate: parameters -> validation metrics.
      learning_rates: [steps] of every step, for the log.
      compilations: what was compiled is said after the first step, and whenever there is more.
      goodput: is in its set-up.
      work: for MFU in log lines; None for none.

    Returns the progress at the end; the checkpoint of `best_step` is on disk.
    Raises NonFiniteLoss, and Stopped after a SIGTERM or SIGINT (everything is saved then).
    """
    total = batches.steps
    evaluate_at = set(batches.epoch_ends) if not config.evaluate.every else set(range(0, total, config.evaluate.every))
    evaluate_at = {step for step in evaluate_at if 0 < step < total} | {total}
    monitor = resolve_monitor(config)

    # Leaving the checkpointer waits for what is still being written.
    with goodput.of("checkpoints"), Checkpointer(folder.checkpoints, config.checkpoints.keep) as checkpointer:
        progress = Progress()
        if checkpointer.latest is not None:
            progress = Progress(**checkpointer.progress(checkpointer.latest))
            with goodput.of("set-up"):
                state = checkpointer.restore(checkpointer.latest, _target(state))
            console.print(f"resumed at step {progress.next_step} of {total}")
        batches.restore(progress.next_step)
        traced = profiled_steps(config.profile.steps)
        if traced and traced[-1] <= progress.next_step:
            console.print(f"profile: steps {config.profile.steps} were done before, so nothing is traced")

        with (
            RunLog(folder, progress.next_step, total, console) as log,
            _StopSignal() as stop,
            goodput.of("steps"),
            Profiler(
                traced, folder.tensorboard, meter := Meter(log, learning_rates, total, goodput, work), console
            ) as profiler,
        ):
            goodput.mark(progress.next_step)
            if goodput.goes_on:
                console.print(f"so far: {goodput.said()}")
            ahead = _Ahead(batches, mesh, meter)
            stop_asked = _agreed_stop(stop, mesh)
            for step in range(progress.next_step + 1, total + 1):
                if config.evaluate.patience and progress.since_best >= config.evaluate.patience:
                    console.print(f"stopped early: {monitor.key} not better since step {progress.best_step}")
                    break
                batch, counts = ahead.take()
                profiler.before(step, (state, batch))
                with profiler.step(step):
                    state, metrics = train_step(state, batch)
                    if step < total:
                        ahead.fetch(metrics)  # before anything waits for this step
                profiler.after(step, state)
                meter.add(step, metrics, counts)
                compilations.tell(console)
                progress = replace(progress, next_step=step)

                evaluating = step in evaluate_at
                stopping = stop_asked()  # read once: a signal that comes later is answered after the next step
                saving = evaluating or stopping or (config.checkpoints.every and step % config.checkpoints.every == 0)
                if saving or step % config.log_every == 0:
                    meter.flush()  # raises on a non-finite loss, so that no checkpoint ever holds one
                if evaluating:
                    started = time.monotonic()
                    with meter.aside("evaluation"):
                        values = evaluate(state.all_params)
                    compilations.tell(console)
                    with meter.aside("log"):
                        log.scalars("valid", step, values)
                    value = values.get(monitor.key, math.nan)
                    progress = progress.after(step, value, monitor.mode)
                    _say_evaluation(console, config, step, values, time.monotonic() - started, progress)
                if saving:
                    goodput.mark(step)
                    with goodput.of("checkpoints"):
                        checkpointer.save(step, state, vars(progress), progress.best_step)
                    goodput.mark(step)
                if stopping and step < total:
                    without = " without --overwrite" if config.overwrite else ""
                    raise Stopped(f"saved at step {step} of {total}; run the same command{without} to go on")
        return progress


class _Ahead:
    """Batches on their way to the device: each is put there while the step before it runs.

    It is one batch further than the training; a checkpoint holds the number of steps done, not of batches taken here.
    """

    def __init__(self, batches, mesh: jax.sharding.Mesh, meter: Meter):
        self.batches, self.mesh, self.meter, self.fetched = batches, mesh, meter, None

    def fetch(self, running: StepMetrics | None = None) -> None:
        """Waits for the next batch of the host and begins to put it on the device, while `running` runs there."""
        started = time.monotonic()
        batch = next(self.batches)[0]
        put = put_batch(self.mesh, batch, row_axis=1)
        self.meter.waited_for_input(time.monotonic() - started, running)
        self.fetched = put, self.meter.count(batch)

    def take(self) -> tuple[PackedBatch, tuple[float, int]]:
        """The batch that was fetched and what the meter counted in it; the first time it is fetched here."""
        if self.fetched is None:
            self.fetch()
        taken, self.fetched = self.fetched, None
        return taken


class _StopSignal:
    """Remembers SIGTERM and SIGINT instead of dying of them; the second one is obeyed at once."""

    def __enter__(self) -> _StopSignal:
        self.asked = False
        self._before = {number: signal.signal(number, self._ask) for number in (signal.SIGTERM, signal.SIGINT)}
        return self

    def __exit__(self, *_) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _ask(self, number, frame) -> None:
        del frame
        if self.asked:
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)
        self.asked = True


def _agreed_stop(stop: _StopSignal, mesh: jax.sharding.Mesh) -> Callable[[], bool]:
    """Asked once a step: whether the run is to stop, with the same answer on every process.

    A signal may reach some processes only, and each at another step; one that stopped alone would leave the others
    waiting for it. So each sends along with every step whether it was asked, and reads what all sent with the step
    before, which is over by then: nothing waits, and all stop one step later.
    """
    if jax.process_count() == 1:
        return lambda: stop.asked
    asked_of = NamedSharding(mesh, P(mesh.axis_names))  # one flag a device
    sent = None

    @partial(jax.jit, out_shardings=NamedSharding(mesh, P()))
    def anyone_stops(flags):
        return jnp.any(flags)

    def asked() -> bool:
        nonlocal sent
        mine = np.full((1,), stop.asked)
        flags = jax.make_array_from_callback((mesh.size,), asked_of, lambda _: mine)
        before, sent = sent, anyone_stops(flags)
        return before is not None and bool(jax.device_get(before))

    return asked


def _target(state: TrainState):
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state)


def _say_evaluation(console, config: TrainConfig, step: int, values: dict, seconds: float, progress: Progress) -> None:
    shown = [metric.key(config.evaluate.ndcg_at) for metric in METRICS if metric.headline]
    shown.append(resolve_monitor(config).key)
    text = "  ".join(f"{name} {values[name]:.4f}" for name in dict.fromkeys(shown) if name in values)
    best = "  (best so far)" if progress.best_step == step else ""
    console.print(f"step {step}  valid: {text}  in {seconds:.1f} s{best}")

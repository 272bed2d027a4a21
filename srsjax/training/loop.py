"""The training loop: steps, logging, validation, checkpoints, early stopping, and stopping by a signal."""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from srsjax import distributed
from srsjax.compilation import Compilations
from srsjax.config import TrainConfig
from srsjax.console import Console
from srsjax.data.batches.batch import PackedBatch
from srsjax.data.batches.workers import Interrupted, WorkerLost
from srsjax.metrics.table import METRICS
from srsjax.runs.checkpoints import Checkpointer, better
from srsjax.runs.monitor import resolve_monitor
from srsjax.runs.run_folder import RunFolder
from srsjax.runs.sharding import put_batch
from srsjax.runs.state import TrainState
from srsjax.runs.step import StepMetrics
from srsjax.stopping import Stopped, StopSignal
from srsjax.training.anomalies import Anomalies
from srsjax.training.goodput import Goodput
from srsjax.training.log import RunLog
from srsjax.training.meter import Meter, Work
from srsjax.training.profile import Profiler, profiled_steps
from srsjax.training.tracking import Tracking


@dataclass(frozen=True)
class Progress:
    """What a resumed run needs besides the train state; JSON in every checkpoint."""

    next_step: int = 0
    """The state of the input: batches taken so far."""
    best_step: int | None = None
    best_value: float | None = None
    since_best: int = 0
    """Evaluations since the best one."""
    skipped: int = 0
    """Steps that were skipped so far."""
    skipped_in_a_row: int = 0
    """Steps that were skipped up to now, without one that was not."""

    def after(self, step: int, value: float, mode: str) -> Progress:
        """Progress after an evaluation at `step`. Without any defined value yet, the newest step is the best."""
        if better(value, self.best_value, mode):
            return replace(self, next_step=step, best_step=step, best_value=value, since_best=0)
        if self.best_value is None:
            return replace(self, next_step=step, best_step=step, best_value=None, since_best=0)
        return replace(self, next_step=step, since_best=self.since_best + 1)


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
    tracking: Tracking | None = None,
) -> Progress:
    """Trains from the newest checkpoint of the run folder (or from `state`) to the end.

    `state` is fresh, the target of a restore, and donated to `train_step`; `evaluate` maps parameters to validation
    metrics; `learning_rates` [steps] are for the log; `goodput` is in its set-up; `work` is for MFU, or None;
    `tracking` is started here, and ended by the caller.

    Returns the progress at the end; the checkpoint of `best_step` is on disk. Raises NonFiniteLoss; Stopped after a
    SIGTERM or SIGINT, and WorkerLost (everything is saved then, but for WorkerLost of one process of several).
    """
    total, evaluate_at = batches.steps, _evaluation_steps(config, batches)
    # Leaving the checkpointer waits for what is still being written.
    run = distributed.on_first(folder.identity)
    with goodput.of("checkpoints"), Checkpointer(folder.checkpoints, config.checkpoints.keep, run) as checkpointer:
        state, progress = _restored(checkpointer, state, total, goodput, console)
        batches.restore(progress.next_step)
        anomalies = _anomalies(config, folder, batches, progress, console)
        with (
            RunLog(folder, progress.next_step, total, console, tracking) as log,
            StopSignal() as stop,
            goodput.of("steps"),
            _profiler(
                config, folder, progress, meter := Meter(log, learning_rates, total, goodput, anomalies, work), console
            ) as profiler,
        ):
            goodput.mark(progress.next_step)
            if goodput.resumed:
                console.print(f"so far: {goodput.said()}")
            ahead, stop_asked = _Ahead(batches, mesh, meter, stop), _agreed_stop(stop, mesh)
            validation = _Validation(config, evaluate, log, meter, compilations, console)
            for step in range(progress.next_step + 1, total + 1):
                if validation.gave_up(progress):
                    break
                if (taken := ahead.take()) is None:
                    raise _ended(ahead, step - 1, total, config)
                batch, counts, numbers = taken
                profiler.before(step, (state, batch))
                with profiler.step(step):
                    state, metrics = train_step(state, batch)
                    if step < total:
                        ahead.fetch(metrics)  # before anything waits for this step
                profiler.after(step, state)
                meter.add(step, metrics, counts, numbers)
                compilations.tell(console)
                progress = replace(progress, next_step=step)

                # Read once: a signal that comes later is answered after the next step.
                stopping = stop_asked() or ahead.lost is not None
                saving = step in evaluate_at or stopping or _due(step, config.checkpoints.every)
                if saving or step % config.log_every == 0:
                    meter.flush()
                    progress = replace(progress, skipped=anomalies.total, skipped_in_a_row=anomalies.in_a_row)
                    if anomalies.in_a_row and not all_finite(state.params):
                        raise anomalies.error(step)  # an update that was finite made them so: no checkpoint holds them
                if step in evaluate_at:
                    progress = validation.at(step, state, progress)
                if saving:
                    batches.wait_checked()  # no checkpoint holds what was learned from a damaged file
                    _save(checkpointer, step, state, progress, goodput)
                if stopping and step < total:
                    raise _ended(ahead, step, total, config)
        return progress


@jax.jit
def all_finite(params: dict[str, jax.Array]) -> jax.Array:
    """Whether all parameters are finite, a bool on every device."""
    return jnp.all(jnp.stack([jnp.isfinite(x).all() for x in jax.tree.leaves(params)]))


def _anomalies(config: TrainConfig, folder: RunFolder, batches, progress: Progress, console: Console) -> Anomalies:
    """What is known of skipped steps so far."""
    so_far = progress.skipped, progress.skipped_in_a_row
    return Anomalies(folder.skipped_file, config.optimizer.max_skipped, lambda n: batches.examples(n), console, *so_far)


def _evaluation_steps(config: TrainConfig, batches) -> set[int]:
    """The steps after which validation runs: as the config says, else at the ends of epochs, and at the end."""
    every, total = config.evaluate.every, batches.steps
    steps = set(range(0, total, every)) if every else set(batches.epoch_ends)
    return {step for step in steps if 0 < step < total} | {total}


def _due(step: int, every: int) -> bool:
    return bool(every) and step % every == 0


def _restored(
    checkpointer: Checkpointer, state: TrainState, total: int, goodput: Goodput, console: Console
) -> tuple[TrainState, Progress]:
    """The newest checkpoint of the run that is not damaged; without any, the state that was given."""
    with goodput.of("set-up"):
        found = checkpointer.restore_newest(_target(state), console.print)
    if found is None:
        return state, Progress()
    state, progress = found[0], Progress(**found[1])
    console.print(f"resumed at step {progress.next_step} of {total}")
    return state, progress


def _save(checkpointer: Checkpointer, step: int, state: TrainState, progress: Progress, goodput: Goodput) -> None:
    goodput.mark(step)
    with goodput.of("checkpoints"):
        checkpointer.save(step, state, vars(progress), progress.best_step)
    goodput.mark(step)


def _ended(ahead: _Ahead, step: int, total: int, config: TrainConfig) -> Exception:
    """What to raise where training ends after a step that is saved: the signal comes before the loss of a worker."""
    saved = f"saved at step {step} of {total}" if step else "before the first step"
    said = f"{saved}; run the same command{' without --overwrite' if config.overwrite else ''} to go on"
    return Stopped(said) if ahead.stop.asked or not ahead.lost else WorkerLost(f"{ahead.lost}; {said}")


def _profiler(config: TrainConfig, folder: RunFolder, progress: Progress, meter: Meter, console: Console) -> Profiler:
    traced = profiled_steps(config.profile.steps)
    if traced and traced[-1] <= progress.next_step:
        console.print(f"profile: steps {config.profile.steps} were done before, so nothing is traced")
    return Profiler(traced, folder.tensorboard, meter, console)


class _Validation:
    """Evaluates, logs, and decides on the best checkpoint and on stopping early."""

    def __init__(
        self,
        config: TrainConfig,
        evaluate: Callable[[dict], dict[str, float]],
        log: RunLog,
        meter: Meter,
        compilations: Compilations,
        console: Console,
    ):
        self.config, self.evaluate, self.log, self.meter = config, evaluate, log, meter
        self.compilations, self.console, self.monitor = compilations, console, resolve_monitor(config)

    def at(self, step: int, state: TrainState, progress: Progress) -> Progress:
        """The progress after validation at a step."""
        started = time.monotonic()
        with self.meter.aside("evaluation"):
            values = self.evaluate(state.all_params)
        self.compilations.tell(self.console)
        with self.meter.aside("log"):
            self.log.scalars("valid", step, values)
        progress = progress.after(step, values.get(self.monitor.key, math.nan), self.monitor.mode)
        shown = [*(metric.key(self.config.evaluate.ndcg_at) for metric in METRICS if metric.headline), self.monitor.key]
        shown += [name for name in values if name.startswith("gap by ")]
        _say_evaluation(self.console, shown, step, values, time.monotonic() - started, progress)
        return progress

    def gave_up(self, progress: Progress) -> bool:
        """Whether the run stops early."""
        patience = self.config.evaluate.patience
        if not patience or progress.since_best < patience:
            return False
        self.console.print(f"stopped early: {self.monitor.key} not better since step {progress.best_step}")
        return True


class _Ahead:
    """Batches on their way to the device: each is put there while the step before it runs.

    It is one batch further than the training; a checkpoint holds the number of steps done, not of batches taken here.
    Where there is no next batch, because of a signal or a lost worker, the steps done can be saved; but not with
    several processes: they save together, one step after the signal, for which they all need a batch.
    """

    def __init__(self, batches, mesh: jax.sharding.Mesh, meter: Meter, stop: StopSignal):
        self.batches, self.mesh, self.meter, self.stop = batches, mesh, meter, stop
        self.lost: WorkerLost | None = None
        """Why there is no next batch."""
        self.fetched: deque[tuple[PackedBatch, tuple[float, int], np.ndarray | None]] = deque()
        self._alone = jax.process_count() == 1
        if self._alone:
            batches.interrupted = lambda: stop.asked

    def fetch(self, running: StepMetrics | None = None) -> None:
        """Waits for the next batch of the host and begins to put it on the device, while `running` runs there."""
        started = time.monotonic()
        if made := self._next():
            put = put_batch(self.mesh, made[0], row_axis=1)
        self.meter.waited_for_input(time.monotonic() - started, running)
        if made:
            self.fetched.append((put, self.meter.count(made[0]), made[1]))

    def _next(self) -> tuple[PackedBatch, np.ndarray] | None:
        try:
            return next(self.batches)
        except Interrupted:
            return None
        except WorkerLost as lost:
            if not self._alone:
                raise WorkerLost(f"{lost}; the newest checkpoint is kept: run the same command to go on") from None
            self.lost = lost
            return None

    def take(self) -> tuple[PackedBatch, tuple[float, int], np.ndarray | None] | None:
        """The batch that was fetched, what the meter counted in it, and its candidates; the first time it is fetched
        here. None where there is no next batch."""
        if not self.fetched:
            self.fetch()
        return self.fetched.popleft() if self.fetched else None


def _agreed_stop(stop: StopSignal, mesh: jax.sharding.Mesh) -> Callable[[], bool]:
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


def _say_evaluation(console, shown: list[str], step: int, values: dict, seconds: float, progress: Progress) -> None:
    text = "  ".join(f"{name} {values[name]:.4f}" for name in dict.fromkeys(shown) if name in values)
    best = "  (best so far)" if progress.best_step == step else ""
    console.print(f"step {step}  valid: {text}  in {seconds:.1f} s{best}")

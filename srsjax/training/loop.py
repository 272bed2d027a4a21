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
from rich.console import Console

from srsjax.compilation import Compilations
from srsjax.config import TrainConfig
from srsjax.data.batch import PackedBatch
from srsjax.metrics import report
from srsjax.training.checkpoints import Checkpointer, better
from srsjax.training.log import RunLog
from srsjax.training.run_folder import RunFolder
from srsjax.training.sharding import put_batch
from srsjax.training.step import StepMetrics, TrainState

IN_FLIGHT = 1
"""Steps dispatched ahead of the one that runs: enough to hide the host, few enough that a signal is answered at once.
On CPU a step takes its temporary memory when it is dispatched, so that another one would cost as much again."""


class NonFiniteLoss(Exception):
    """The loss or its gradient became infinite or not a number; the message names the steps."""


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
) -> Progress:
    """Trains from the newest checkpoint of the run folder (or from `state`) to the end.

    Args:
      state: fresh state; its shapes and shardings are the target of a restore.
      train_step: from `step.jit_train_step`; donates the state.
      batches: from `loader.train_batches`.
      evaluate: parameters -> validation metrics.
      learning_rates: [steps] of every step, for the log.
      compilations: what was compiled is said after the first step, and whenever there is more.

    Returns the progress at the end; the checkpoint of `best_step` is on disk.
    Raises NonFiniteLoss, and Stopped after a SIGTERM or SIGINT (everything is saved then).
    """
    total = batches.steps
    evaluate_at = set(batches.epoch_ends) if not config.evaluate.every else set(range(0, total, config.evaluate.every))
    evaluate_at = {step for step in evaluate_at if 0 < step < total} | {total}
    mode = monitor_mode(config)

    with Checkpointer(folder.checkpoints, config.checkpoints.keep) as checkpointer:
        progress = Progress()
        if checkpointer.latest is not None:
            progress = Progress(**checkpointer.progress(checkpointer.latest))
            state = checkpointer.restore(checkpointer.latest, _target(state))
            console.print(f"resumed at step {progress.next_step} of {total}", highlight=False)
        batches.restore(progress.next_step)

        with RunLog(folder, progress.next_step, total, console) as log, _StopSignal() as stop:
            meter = _Meter(log, learning_rates, total)
            ahead = _Ahead(batches, mesh, meter)
            stop_asked = _agreed_stop(stop, mesh)
            for step in range(progress.next_step + 1, total + 1):
                if config.evaluate.patience and progress.since_best >= config.evaluate.patience:
                    console.print(
                        f"stopped early: {config.evaluate.monitor} not better since step {progress.best_step}"
                    )
                    break
                state, metrics = train_step(state, ahead.take())
                if step < total:
                    ahead.fetch()  # before anything waits for this step
                meter.add(step, metrics)
                compilations.tell(console)
                progress = replace(progress, next_step=step)

                evaluating = step in evaluate_at
                stopping = stop_asked()  # read once: a signal that comes later is answered after the next step
                saving = evaluating or stopping or (config.checkpoints.every and step % config.checkpoints.every == 0)
                if saving or step % config.log_every == 0:
                    meter.flush()  # raises on a non-finite loss, so that no checkpoint ever holds one
                if evaluating:
                    started = time.monotonic()
                    values = evaluate(state.params)
                    compilations.tell(console)
                    log.scalars("valid", step, values)
                    value = values.get(config.evaluate.monitor, math.nan)
                    progress = progress.after(step, value, mode)
                    _say_evaluation(console, config, step, values, time.monotonic() - started, progress)
                    meter.restart()
                if saving:
                    checkpointer.save(step, state, vars(progress), progress.best_step)
                if stopping and step < total:
                    without = " without --overwrite" if config.overwrite else ""
                    raise Stopped(f"saved at step {step} of {total}; run the same command{without} to go on")
        return progress


def monitor_mode(config: TrainConfig) -> str:
    """`max` or `min`: which way the monitored metric is better. Raises InputError for an unknown metric."""
    known = report.mode(config.evaluate.monitor, config.evaluate.ndcg_at)
    return known if config.evaluate.mode == "auto" else config.evaluate.mode


class _Ahead:
    """Batches on their way to the device: each is put there while the step before it runs.

    It is one batch further than the training; a checkpoint holds the number of steps done, not of batches taken here.
    """

    def __init__(self, batches, mesh: jax.sharding.Mesh, meter: _Meter):
        self.batches, self.mesh, self.meter, self.batch = batches, mesh, meter, None

    def fetch(self) -> None:
        """Waits for the next batch of the host and begins to put it on the device."""
        with self.meter.waiting():
            self.batch = put_batch(self.mesh, next(self.batches)[0], row_axis=1)

    def take(self) -> PackedBatch:
        """The batch that was fetched; the first time it is fetched here."""
        if self.batch is None:
            self.fetch()
        taken, self.batch = self.batch, None
        return taken


class _Meter:
    """Collects step metrics on device and turns them into log lines; the host waits for the device only in `flush`."""

    def __init__(self, log: RunLog, learning_rates: np.ndarray, total: int):
        self.log, self.learning_rates, self.total = log, learning_rates, total
        self.recent: list[tuple[int, StepMetrics]] = []
        self.restart()

    def restart(self) -> None:
        """Starts the clock anew (after an evaluation, which is not training time)."""
        self.started, self.waited = time.monotonic(), 0.0

    def waiting(self) -> _Stopwatch:
        """Times the wait for input."""
        return _Stopwatch(self)

    def add(self, step: int, metrics: StepMetrics) -> None:
        self.recent.append((step, metrics))
        if len(self.recent) > IN_FLIGHT:
            jax.block_until_ready(self.recent[-1 - IN_FLIGHT][1].loss)
        self.log.advance(step)

    def flush(self) -> None:
        """Reads the collected metrics; raises NonFiniteLoss naming the steps."""
        if not self.recent:
            return
        steps = [step for step, _ in self.recent]
        values = jax.device_get([metrics for _, metrics in self.recent])
        seconds = max(time.monotonic() - self.started, 1e-9)
        # A gradient that is not finite spoils the parameters though the loss, taken before the update, is finite.
        wrong = [
            step
            for step, value in zip(steps, values, strict=True)
            if not (np.isfinite(value.loss) and np.isfinite(value.grad_norm))
        ]
        line = {
            "loss": float(np.mean([value.loss for value in values])),
            "grad_norm": float(np.mean([value.grad_norm for value in values])),
            "learning_rate": float(self.learning_rates[steps[-1] - 1]),
            "examples_per_second": sum(int(value.candidates) for value in values) / seconds,
            "tokens_per_second": sum(int(value.tokens) for value in values) / seconds,
            "input_wait": self.waited / seconds,
        }
        self.log.scalars("train", steps[-1], line)
        if wrong:
            named = ", ".join(map(str, wrong[:10])) + (" ..." if len(wrong) > 10 else "")
            raise NonFiniteLoss(
                f"the loss or its gradient is not finite at step {named}; lower optimizer.learning_rate, keep "
                f"optimizer.clip_norm above 0, or look at the labels and weights"
            )
        self.log.said(steps[-1], self.total, line)
        self.recent.clear()
        self.restart()


class _Stopwatch:
    def __init__(self, meter: _Meter):
        self.meter = meter

    def __enter__(self) -> None:
        self.started = time.monotonic()

    def __exit__(self, *_) -> None:
        self.meter.waited += time.monotonic() - self.started


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
    shown = ("auc", "gauc", "log_loss", "ece", f"ndcg@{config.evaluate.ndcg_at}", config.evaluate.monitor)
    text = "  ".join(f"{name} {values[name]:.4f}" for name in dict.fromkeys(shown) if name in values)
    best = "  (best so far)" if progress.best_step == step else ""
    console.print(f"step {step}  valid: {text}  in {seconds:.1f} s{best}", highlight=False, soft_wrap=True)

"""What the loop measures: losses and rates between two log lines, and the share of the devices' peak."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import jax
import numpy as np

from srsjax.data.batches.batch import PackedBatch
from srsjax.hardware import chip, utilisation
from srsjax.model.flops import TRAINING, forward_flops
from srsjax.model.spec import ModelSpec
from srsjax.runs.step import StepMetrics
from srsjax.training.anomalies import Anomalies
from srsjax.training.goodput import Goodput
from srsjax.training.log import RunLog

IN_FLIGHT = 1
"""Steps dispatched ahead of the one that runs: enough to hide the host, few enough that a signal is answered at once.
On CPU a step takes its temporary memory when it is dispatched, so that another one would cost as much again."""


@dataclass(frozen=True)
class Work:
    """The two sides of `hardware.utilisation` (MFU)."""

    flops: Callable[[PackedBatch], float]
    """Floating-point operations that the model needs for a training step on a batch on the host."""
    peak: float
    """Floating-point operations a second of all devices of the mesh."""


def known_work(spec: ModelSpec, mesh: jax.sharding.Mesh) -> Work | None:
    """None where the peak of the devices is unknown, as for a CPU (`srsjax.bench` measures it there), or no encoder is
    there whose arithmetic could be counted."""
    device = chip(mesh.devices.flat[0].device_kind)
    if device is None or not spec.reads_text:
        return None
    return Work(lambda batch: TRAINING * forward_flops(spec, batch), device.flops * mesh.size)


class Meter:
    """Collects step metrics on device and turns them into log lines; the host waits for the device only in `flush`."""

    def __init__(
        self,
        log: RunLog,
        learning_rates: np.ndarray,
        total: int,
        goodput: Goodput,
        anomalies: Anomalies,
        work: Work | None = None,
    ):
        self.log, self.learning_rates, self.total, self.goodput, self.work = log, learning_rates, total, goodput, work
        self.anomalies = anomalies
        self.recent: list[tuple[int, StepMetrics, np.ndarray | None]] = []
        self._restart()

    def _restart(self) -> None:
        self.started, self.waited, self.flops, self.counted = time.monotonic(), 0.0, 0.0, 0

    @contextmanager
    def aside(self, part: str) -> Iterator[None]:
        """For what is not training time: a part of goodput that the rates leave out."""
        started = time.monotonic()
        with self.goodput.of(part):
            yield
        self.started += time.monotonic() - started

    def waited_for_input(self, seconds: float, running: StepMetrics | None) -> None:
        """The host waited for a batch while the step of these metrics ran (None: none was dispatched): time that is
        lost if the device has nothing to do at its end."""
        if running is None or running.loss.is_ready():  # type: ignore[attr-defined]  # JAX documents it, its types lack it
            self.waited += seconds
            self.goodput.move(seconds, "data")

    def count(self, batch: PackedBatch) -> tuple[float, int]:
        """The arithmetic and the real tokens of a batch on the host, for `add`; zeros where no peak is known."""
        return (self.work.flops(batch), int((batch.segment > 0).sum())) if self.work else (0.0, 0)

    def add(
        self, step: int, metrics: StepMetrics, counts: tuple[float, int], numbers: np.ndarray | None = None
    ) -> None:
        """Takes the metrics of a dispatched step, and the numbers of this process's candidates (-1 in empty slots);
        waits until at most IN_FLIGHT steps are under way."""
        self.recent.append((step, metrics, numbers))
        self.flops, self.counted = self.flops + counts[0], self.counted + counts[1]
        if len(self.recent) > IN_FLIGHT:
            jax.block_until_ready(self.recent[-1 - IN_FLIGHT][1].loss)
        self.log.advance(step)
        self.goodput.tick(step)

    def flush(self) -> None:
        """Reads the collected metrics; raises NonFiniteLoss as `Anomalies.see`."""
        if not self.recent:
            return
        steps, recent, numbers = zip(*self.recent, strict=True)
        values = jax.device_get(list(recent))
        seconds = max(time.monotonic() - self.started, 1e-9)
        with self.goodput.of("log"):
            skipped = self.anomalies.see(steps, values, numbers)
        applied = [value for value in values if value.applied] or values
        tokens = sum(int(value.tokens) for value in values)
        line = {
            "loss": float(np.mean([value.loss for value in applied])),
            "grad_norm": float(np.mean([value.grad_norm for value in applied])),
            "learning_rate": float(self.learning_rates[steps[-1] - 1]),
            "examples_per_second": sum(int(value.candidates) for value in values) / seconds,
            "tokens_per_second": tokens / seconds,
            "input_wait": self.waited / seconds,
        }
        if skipped:
            line["skipped"] = skipped
        if self.work and self.counted:  # of several hosts each counts its own rows, and all have about the same mix
            line["mfu"] = utilisation(self.flops * tokens / self.counted, seconds, self.work.peak)
        with self.goodput.of("log"):
            self.log.scalars("train", steps[-1], line)
            self.log.said(steps[-1], self.total, line)
        self.recent.clear()
        self._restart()

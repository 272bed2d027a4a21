"""Steps that were not as the others: skipped ones, whose loss or gradient is not finite, and spikes of the loss.

A skipped step changes nothing but the step's number (`srsjax.runs.step`); the device decides that, and the host learns
of it when it reads the metrics. `skipped.jsonl` of the run folder has a line for each: step, loss, gradient norm, and
`rows`, the numbers of its candidates in the log (`row` of a file of scores counts the same way).
"""

from __future__ import annotations

import json
import math
import statistics
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path

import jax
import numpy as np

from srsjax import distributed
from srsjax.console import Console
from srsjax.runs.step import StepMetrics

WINDOW = 100
"""Steps that a loss is compared with."""
LEAST = 20
"""Steps that must be known before a loss can be a spike."""
DEVIATIONS = 10.0
"""Median absolute deviations, as standard deviations of a normal distribution, above which a loss is a spike."""
MAD = 1.4826
"""Standard deviation of a normal distribution in median absolute deviations."""


class NonFiniteLoss(Exception):
    """The loss or its gradient became infinite or not a number; the message names the steps."""


class Anomalies:
    """Counts and records skipped steps, and says where the loss jumps."""

    def __init__(
        self,
        path: Path,
        most: int,
        examples: Callable[[np.ndarray], np.ndarray],
        console: Console,
        total: int = 0,
        in_a_row: int = 0,
    ):
        """
        Args:
          path: of `skipped.jsonl`.
          most: steps in a row that may be skipped; one more ends the training.
          examples: numbers of candidates in the split -> their numbers in the log.
          total, in_a_row: steps skipped so far, in all and up to now.
        """
        self.path, self.most, self.examples, self.console = path, most, examples, console
        self.total, self.in_a_row = total, in_a_row
        self._first = 0
        self._losses: deque[float] = deque(maxlen=WINDOW)

    def see(self, steps: Sequence[int], values: Sequence[StepMetrics], numbers: Sequence[np.ndarray | None]) -> int:
        """Takes the metrics of steps on the host, with this process's candidate numbers; returns how many of the steps
        were skipped. Every process calls it with the same metrics.

        Raises NonFiniteLoss where more steps in a row were skipped than may be.
        """
        skipped = 0
        for step, value, number in zip(steps, values, numbers, strict=True):
            if value.applied:
                self.in_a_row = 0
                self._watch(step, float(value.loss))
                continue
            self.total, self.in_a_row, skipped = self.total + 1, self.in_a_row + 1, skipped + 1
            self._first = step if self.in_a_row == 1 else self._first
            self._record(step, value, number)
            if self.in_a_row > self.most:
                raise self.error(step)
        return skipped

    def error(self, step: int) -> NonFiniteLoss:
        """What to raise at a step."""
        since = f"steps {self._first} to {step}" if 0 < self._first < step else f"step {step}"
        return NonFiniteLoss(
            f"the loss or its gradient is not finite at {since}; lower optimizer.learning_rate, keep "
            f"optimizer.clip_norm above 0, or look at the labels and weights of the rows in {self.path}"
        )

    def _watch(self, step: int, loss: float) -> None:
        """Says where a loss is far above those before."""
        if len(self._losses) >= LEAST:
            middle = statistics.median(self._losses)
            spread = MAD * statistics.median(abs(each - middle) for each in self._losses)
            if loss > middle + DEVIATIONS * max(spread, 0.01 * abs(middle)):
                self.console.print(
                    f"step {step}: loss {loss:.4f}, a spike: the median of {len(self._losses)} steps before is "
                    f"{middle:.4f}"
                )
        self._losses.append(loss)

    def _record(self, step: int, value: StepMetrics, numbers: np.ndarray | None) -> None:
        own = [] if numbers is None else np.unique(self.examples(numbers[numbers >= 0])).tolist()
        rows = sorted({row for part in distributed.gather(own) for row in part})
        line = {"step": step, "loss": _plain(value.loss), "grad_norm": _plain(value.grad_norm), "rows": rows}
        what = f"loss {line['loss']} and gradient norm {line['grad_norm']}"
        self.console.print(f"step {step}: skipped, {what}; {self.path.name} has its rows")
        if distributed.is_first():
            with open(self.path, "a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")


def _plain(value: np.ndarray | jax.Array) -> float | str:
    """A number as JSON has it: NaN and infinity as text."""
    number = float(value)
    return number if math.isfinite(number) else str(number)

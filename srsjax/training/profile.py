"""Traces of chosen training steps, written by `jax.profiler` for TensorBoard's profile tab (XProf) and Perfetto."""

from __future__ import annotations

import re
from pathlib import Path

import jax

from srsjax.console import Console
from srsjax.errors import InputError
from srsjax.training.meter import Meter


def profiled_steps(text: str, total: int | None = None) -> range:
    """The steps that `profile.steps` means: `10:15` is 10 to 15, both included, as log lines count them (from 1).

    Raises InputError for any other text, and where the run has only `total` steps.
    """
    if not text:
        return range(0)
    found = re.fullmatch(r"(\d+):(\d+)", text, re.ASCII)
    if not found or not 1 <= int(found[1]) <= int(found[2]):
        raise InputError(f"profile.steps: found {text!r}, expected FIRST:LAST with 1 <= FIRST <= LAST, such as 10:15")
    if total is not None and int(found[2]) > total:
        raise InputError(f"profile.steps: found {text!r}, expected steps up to {total}, the last one of this run")
    return range(int(found[1]), int(found[2]) + 1)


class Profiler:
    """Traces `steps` into `folder`; a context manager that ends a trace that an error or a signal left open.

    The trace begins when all earlier work is done, and ends when the last step's state is there. What the loop does
    between the steps (an evaluation, a checkpoint) is in it too. A run resumed among the steps traces the rest.
    """

    def __init__(self, steps: range, folder: Path, meter: Meter, console: Console):
        self.steps, self.folder, self.meter, self.console = steps, folder, meter, console
        self._first: int | None = None
        self._last: int | None = None

    def __enter__(self) -> Profiler:
        return self

    def __exit__(self, *_) -> None:
        if self._first is not None:
            self._stop()

    def before(self, step: int, pending) -> None:
        """Begins the trace where this step is the first of it, after everything in the pytree `pending` is there."""
        if step in self.steps and self._first is None:
            with self.meter.aside("profile"):
                jax.block_until_ready(pending)
                options = jax.profiler.ProfileOptions()
                options.python_tracer_level = 0  # calls of Python functions would be most of the trace, and slow it
                options.session_id = f"steps-{step}-{self.steps[-1]}"  # the same on all hosts, so that they are joined
                # Perfetto's file takes a folder with one host.
                alone = jax.process_count() == 1
                jax.profiler.start_trace(self.folder, create_perfetto_trace=alone, profiler_options=options)
            self._first = step

    def step(self, step: int) -> jax.profiler.StepTraceAnnotation:
        """Names what is dispatched inside as that step; two microseconds."""
        return jax.profiler.StepTraceAnnotation("train", step_num=step)

    def after(self, step: int, state) -> None:
        """Ends the trace where this step is its last, when the step's result is there."""
        if self._first is None:
            return
        self._last = step
        if step == self.steps[-1]:
            jax.block_until_ready(state)
            self._stop()

    def _stop(self) -> None:
        first, self._first = self._first, None
        with self.meter.aside("profile"):
            jax.profiler.stop_trace()
        if jax.process_index() == 0:
            where = self.folder / "plugins/profile" / f"steps-{first}-{self.steps[-1]}"
            self.console.print(
                f"profile: steps {first} to {self._last} in {where}; open it with `tensorboard --logdir {self.folder}` "
                f"(pip install xprof tensorboard), or its perfetto_trace.json.gz at ui.perfetto.dev"
            )

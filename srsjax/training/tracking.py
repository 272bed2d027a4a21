"""Where the numbers of a run go besides its folder: experiment trackers, which may fail or hang and stop nothing.

Each tracker works in a thread of its own, fed by a queue: a step never waits for it. At its first failure, or when it
falls too far behind, one line says so and it is dropped. A resumed run continues what it began: the id that a tracker
knows it by is kept in the run folder, below `tracking/`.

Libraries are imported where they are used only. They are told by their own environment variables where to send
things; without any, MLflow and trackio write below `tracking/`, and wandb goes where its login says
(`WANDB_MODE=offline`: below `tracking/` too).
"""

from __future__ import annotations

import importlib.util
import math
import queue
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from srsjax.errors import InputError
from srsjax.training.trackers import MlflowTracker, TensorBoardTracker, TrackioTracker, WandbTracker

MOST_WAITING = 1000
"""Calls that wait for a tracker, above which it is taken to hang."""
PATIENCE_SECONDS = 15.0
"""How long the end of a run waits for all trackers together to send what they have."""
STOP_SECONDS = 5.0
"""The same where a run stops before its end: whoever asked for it may soon be less patient."""

THREAD = "srsjax-track-"


class Tracker(Protocol):
    """What a tracker does. All calls come from one thread, in this order; any may raise, which ends them."""

    def start(self, name: str, config: Mapping[str, Any], folder: Path, step: int) -> None:
        """Begins, or continues, the tracked run of a run folder.

        Args:
          name: of the run, for people.
          config: the resolved config as JSON data.
          folder: the run folder; what a tracker keeps is in `tracking/` there, and found again by a resumed run.
          step: steps that are done already; what was logged of later ones will be logged again.
        """
        ...

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Finite numbers of a step, as `train/loss`; several calls may have the same step."""
        ...

    def finish(self, summary: Mapping[str, float] | None) -> None:
        """Ends the tracked run: with the numbers of its report, or None where it stopped before its end."""
        ...


TRACKERS: dict[str, Callable[[], Tracker]] = {
    "tensorboard": TensorBoardTracker,
    "wandb": WandbTracker,
    "mlflow": MlflowTracker,
    "trackio": TrackioTracker,
}
"""By the names that `track` takes; all but TensorBoard are extras of the same name."""


def check_trackers(names: Sequence[str]) -> None:
    """Raises InputError where the library of a tracker is not installed."""
    for name in names:
        if name != "tensorboard" and importlib.util.find_spec(name) is None:
            raise InputError(f"--track {name}: needs {name}; pip install 'srsjax[{name}]'")


def any_hangs() -> bool:
    """Whether a tracker of a run that has ended has still not returned."""
    return any(thread.name.startswith(THREAD) for thread in threading.enumerate())


class Tracking:
    """The trackers of a run; a context manager, which ends them.

    Args:
      trackers: by name.
      name: of the run, for people.
      config: the resolved config as JSON data.
      folder: the run folder.
      say: is told the one line about a tracker that is dropped.
      patience: seconds that the end of the run waits for all of them.
    """

    def __init__(
        self,
        trackers: Mapping[str, Tracker],
        name: str,
        config: Mapping[str, Any],
        folder: Path,
        say: Callable[[str], None],
        patience: float = PATIENCE_SECONDS,
    ):
        self._name, self._config, self._folder, self._patience = name, config, folder, patience
        self._workers = [_Worker(key, tracker, say) for key, tracker in trackers.items()]
        self._started = False
        self._summary: dict[str, float] | None = None

    def __enter__(self) -> Tracking:
        return self

    def __exit__(self, *_) -> None:
        end = time.monotonic() + (self._patience if self._summary is not None else min(self._patience, STOP_SECONDS))
        if self._started:
            for worker in self._workers:
                worker.call("finish", self._summary)
            for worker in self._workers:
                worker.wait(end)

    def start(self, step: int) -> None:
        """Begins to track after so many steps."""
        self._started = True
        for worker in self._workers:
            worker.call("start", self._name, self._config, self._folder, step)

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Numbers of a step; those that are not finite are left out."""
        finite = {key: float(x) for key, x in values.items() if isinstance(x, (int, float)) and math.isfinite(x)}
        for worker in self._workers:
            worker.call("log", step, finite)

    def summarize(self, summary: Mapping[str, float]) -> None:
        """Keeps the numbers of the report, with which the tracked run ends as one that came to its end."""
        self._summary = dict(summary)


class _Worker:
    """A tracker and the thread that calls it."""

    def __init__(self, name: str, tracker: Tracker, say: Callable[[str], None]):
        self._name, self._tracker, self._say = name, tracker, say
        self._calls: queue.Queue[tuple[str, tuple]] = queue.Queue(MOST_WAITING)
        self._dropped = threading.Lock()
        """Held from the moment it is dropped."""
        self._doing = "start"
        self._thread = threading.Thread(target=self._work, name=f"{THREAD}{name}", daemon=True)

    def call(self, method: str, *arguments: Any) -> None:
        """Leaves a call for the thread; returns at once."""
        if self._dropped.locked():
            return
        try:
            if method == "start":
                self._thread.start()
            self._calls.put_nowait((method, arguments))
        except RuntimeError as error:  # no more threads
            self._drop(str(error))
        except queue.Full:
            self._drop(f"{MOST_WAITING:,} calls wait for its {self._doing}")

    def wait(self, end: float) -> None:
        """Waits until all calls are done, at most to this moment (`time.monotonic`)."""
        if self._thread.ident is not None:
            self._thread.join(max(end - time.monotonic(), 0.0))
        if self._thread.is_alive():
            self._drop(f"its {self._doing} did not return in time")

    def _work(self) -> None:
        method = ""
        while method != "finish" and not self._dropped.locked():
            method, arguments = self._calls.get()
            self._doing = method
            try:
                getattr(self._tracker, method)(*arguments)
            except BaseException as error:  # whatever it is: SystemExit of a library would end the thread unsaid
                self._drop(f"{method} failed: {type(error).__name__}: {error}")

    def _drop(self, why: str) -> None:
        """Says once that the tracker is dropped; it is called no more."""
        if self._dropped.acquire(blocking=False):
            self._say(f"tracking: {self._name} is dropped, the run goes on: {' '.join(why.split())[:300]}")

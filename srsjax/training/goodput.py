"""Goodput: where the wall time of a run went, over all its starts.

The run folder's `goodput.jsonl` has a line `{"start", "seconds"}` for each start (Unix time, and what was used until
the folder was there) and then lines `{"step", "seconds"}`: steps done, and the seconds of each part since that start.
They are written around every checkpoint and otherwise about once a second, later once in a thousandth of the time, so
that a kill at any moment leaves the truth behind: only what came after the last line is lost, and counts as stopped.
"""

from __future__ import annotations

import json
import math
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

PARTS = ("steps", "compile", "data", "evaluation", "checkpoints", "log", "profile", "set-up", "repeated", "stopped")
"""What wall time is spent on; each moment is in one part.

steps        training steps whose result the run kept
compile      waiting for programs to be compiled or loaded
data         waiting for a batch while the device was idle (the whole wait counts if it was idle when the wait ended)
evaluation   validation, and the report at the end
checkpoints  what the loop waits for: copies to the host, and at the end that all is written
log          writing log lines; the first one loads what writes them
profile      starting and writing traces
set-up       from the beginning of `main` to the first step: data, model, weights, restoring a checkpoint
repeated     everything done after the checkpoint that a later start resumed from, but for compile and set-up
stopped      between the last line of one start and the beginning of the next
"""
NOT_LOST = ("compile", "set-up")
"""Parts that a later start does not make `repeated`: they keep their own names even if their work was lost."""

RECENT = 11
"""Steps whose times are kept."""


class Goodput:
    """Adds up the parts of one start of a run; the thread that creates it is timed.

    Args:
      clock: seconds that never go back.
      now: Unix time of the beginning.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic, now: float | None = None):
        self._clock, self._began = clock, time.time() if now is None else now
        self._thread = threading.get_ident()
        self._seconds = dict.fromkeys(PARTS, 0.0)
        self._part, self._since = "set-up", clock()
        self._first = self._since
        self._step: int | None = None
        self._next_line = -math.inf
        self._path: Path | None = None
        self._file: TextIO | None = None
        self.resumed = False
        """Whether the run was started before."""
        self.beats = 0
        """Signs of progress so far, for the watchdog."""
        self.untold = True
        """Whether the evaluation does what has no units that `beat` could count."""
        self.recent: deque[tuple[int, float]] = deque(maxlen=RECENT)
        """The last steps, each with the clock when it was done."""

    @property
    def part(self) -> str:
        """The one of PARTS that time is spent on."""
        return self._part

    def beat(self) -> None:
        """A small unit of work is done: a batch of an evaluation."""
        self.beats, self.untold = self.beats + 1, False

    def enter(self, part: str) -> None:
        """From now on time is spent on `part`."""
        now = self._clock()
        self._seconds[self._part] += now - self._since
        self._part, self._since = part, now
        self.beats, self.untold = self.beats + 1, part == "evaluation"

    @contextmanager
    def of(self, part: str) -> Iterator[None]:
        """`part` inside, what it was before afterwards."""
        before = self._part
        self.enter(part)
        try:
            yield
        finally:
            self.enter(before)

    def move(self, seconds: float, part: str) -> None:
        """The last `seconds` were spent on `part`, as is known only now."""
        self.enter(self._part)
        seconds = min(seconds, self._seconds[self._part])
        self._seconds[self._part] -= seconds
        self._seconds[part] += seconds

    def compiled(self, seconds: float) -> None:
        """For `Compilations`: a program was compiled or loaded. Other threads than the timed one do not hold up
        the run and do not count."""
        if threading.get_ident() == self._thread:
            self.move(seconds, "compile")

    def open(self, path: Path) -> None:
        """Appends to a run's file, or creates it; without this nothing is written."""
        before = path.read_bytes() if path.exists() else b""
        self.resumed = bool(before)
        file = open(path, "a", buffering=1)  # noqa: SIM115 (closed in `close`)
        if before and not before.endswith(b"\n"):  # killed while a line was written
            file.write("\n")
        self._path, self._file = path, file
        self._write({"start": self._began})

    def mark(self, step: int) -> None:
        """`step` steps are done, and time until now is written down."""
        self._step = step
        self._write({"step": step})

    def tick(self, step: int) -> None:
        """As `mark`, but only where the last line is old enough. Costs under a microsecond otherwise."""
        self._step, now = step, self._clock()
        self.recent.append((step, now))
        self.beats += 1
        if now >= self._next_line:
            self.mark(step)

    def total(self) -> dict[str, float]:
        """Seconds of each of PARTS since the first start; their sum is the wall time. Needs `open`."""
        assert self._path is not None, "not opened"
        self._write({} if self._step is None else {"step": self._step})
        return account(read(self._path))

    def said(self) -> str:
        """One line about the run until now. Needs `open`."""
        return said(self.total())

    def close(self) -> None:
        """Writes what is left, and nothing from now on."""
        if self._file is not None:
            self._write({} if self._step is None else {"step": self._step})
            self._file.close()
            self._file = None

    def _write(self, line: dict) -> None:
        if self._file is None:
            return
        self.enter(self._part)
        used = {part: round(seconds, 6) for part, seconds in self._seconds.items() if seconds}
        self._file.write(json.dumps(line | {"seconds": used}) + "\n")
        self._next_line = self._since + max(1.0, (self._since - self._first) / 1000)


def read(path: Path) -> list[dict]:
    """The lines of a run's file; what was cut off while it was written, or is damaged, is left out."""
    found: list[dict] = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            read = json.loads(line)
        except ValueError:
            continue
        if _is_line(read) and (found or "start" in read):
            found.append(read)
    return found


def _is_line(read: Any) -> bool:
    if not isinstance(read, dict) or not isinstance(used := read.get("seconds"), dict):
        return False
    numbers = [read.get("start", 0), read.get("step", 0), *used.values()]
    return used.keys() <= {*PARTS} and all(isinstance(number, int | float) for number in numbers)


def account(lines: list[dict]) -> dict[str, float]:
    """Seconds of each of PARTS from the lines of all starts of a run."""
    starts: list[list[dict]] = []
    for line in lines:
        if "start" in line:
            starts.append([])
        starts[-1].append(line)
    total, kept_steps, following = dict.fromkeys(PARTS, 0.0), math.inf, None
    for start in reversed(starts):
        used = start[-1]["seconds"]
        kept = [line for line in start if line.get("step", -1) <= kept_steps][-1]["seconds"]
        for part, seconds in used.items():
            lost = 0.0 if part in NOT_LOST else seconds - kept.get(part, 0.0)
            total[part] += seconds - lost
            total["repeated"] += lost
        if following is not None:  # a clock that was put back makes nothing negative
            total["stopped"] += max(0.0, following - start[0]["start"] - sum(used.values()))
        following = start[0]["start"]
        kept_steps = min([kept_steps, *(line["step"] for line in start if "step" in line)])
    return total


def said(total: dict[str, float]) -> str:
    """One line about `Goodput.total`.

    Goodput is the share of `steps` in all wall time since the first start, time in which the run did not exist
    included, as in Google Cloud's ML Goodput; the share of the time in which it ran is printed beside it.
    """
    wall, ran = sum(total.values()), sum(total.values()) - total["stopped"]
    digits = 0 if wall >= 100 else 1
    parts = ", ".join(f"{part} {s:,.{digits}f} s" for part, s in total.items() if s or part != "profile")
    beside = f", {_share(total['steps'], ran)} of the time it ran" if total["stopped"] else ""
    return f"goodput {_share(total['steps'], wall)} of {wall:,.{digits}f} s{beside}: {parts}"


def _share(part: float, whole: float) -> str:
    return f"{100 * part / max(whole, 1e-9):.0f} %"

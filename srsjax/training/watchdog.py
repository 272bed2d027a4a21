"""The watchdog: a training that makes no progress ends, and shows where it hung.

Progress is what `Goodput` hears of: a finished step, a batch of an evaluation, the beginning or end of a part of the
run. What has no such small units (set-up, compilation, checkpoints, logs, metrics of an evaluation) is also at work
while the process uses its CPUs or reads or writes files; an endless loop there is not noticed. During steps and the
batches of an evaluation that does not count: a process that waits for a device or for other processes may do so in a
loop.
"""

from __future__ import annotations

import contextlib
import faulthandler
import itertools
import os
import resource
import threading
import time
from pathlib import Path

from srsjax import distributed, waits
from srsjax.data.batches import workers
from srsjax.stopping import HUNG
from srsjax.training.goodput import Goodput

LENIENT = ("set-up", "compile", "checkpoints", "log", "profile")
"""Parts of `Goodput` in which a process that works makes progress."""
BUSY = 0.05
"""CPU seconds a second from which on a process works."""
BYTES = 1 << 16
"""Bytes a second, read or written, from which on it does."""
SAYING_SECONDS = 10.0
"""How long the last words may take: standard error may be what hangs."""


class Watchdog:
    """Ends the process with exit code HUNG after `seconds` without progress; 0 never does. Use as a context manager.

    Standard error then has the stack of every thread and the times of the last steps. Worker processes are killed; the
    newest checkpoint stays as it is. It is a thread, so that code that never releases Python's lock escapes it; what
    JAX and Python wait for releases it. Time in which the process was stopped (SIGSTOP) is not counted.
    """

    def __init__(self, seconds: float, goodput: Goodput):
        self._seconds, self._goodput = seconds, goodput
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="watchdog", daemon=True)

    def __enter__(self) -> Watchdog:
        if self._seconds:
            self._thread.start()
        return self

    def __exit__(self, *_) -> None:
        self._ended.set()

    def _run(self) -> None:
        tick = min(1.0, self._seconds / 10)
        idle, at, beats, work = 0.0, time.monotonic(), self._goodput.beats, _Work()
        while not self._ended.wait(tick):
            now, seen = time.monotonic(), self._goodput.beats
            # A tick that took longer was one in which this process was stopped, or hardly ran.
            idle += min(now - at, 2 * tick)
            working = work.since(now - at) and (self._goodput.part in LENIENT or self._goodput.untold)
            if seen != beats or working or waits.is_elsewhere():
                idle = 0.0
            at, beats = now, seen
            if idle >= self._seconds and not self._ended.is_set():
                self._end()

    def _end(self) -> None:
        try:
            saying = threading.Thread(target=self._say, daemon=True)
            saying.start()
            saying.join(SAYING_SECONDS)
            workers.end(HUNG)
        finally:
            os._exit(HUNG)

    def _say(self) -> None:
        # Not by sys.stderr: the thread that hangs may hold its lock.
        os.write(2, f"{self._message()}\n".encode())
        faulthandler.dump_traceback(file=2, all_threads=True)

    def _message(self) -> str:
        steps = list(self._goodput.recent)
        took = [f"{step}: {at - before:.2f} s" for (_, before), (step, at) in itertools.pairwise(steps)]
        count = distributed.process_count()
        where = f"process {distributed.process_index()} of {count}: " if count > 1 else ""
        after = f", after step {steps[-1][0]}, {time.monotonic() - steps[-1][1]:.1f} s ago" if steps else ""
        return (
            f"{where}error: no progress for {self._seconds:g} s (--watchdog) in {self._goodput.part}{after}; the "
            f"newest checkpoint is kept: run the same command to go on\n"
            f"last steps: {', '.join(took) or 'none'}\n"
            f"the stack of every thread:"
        )


class _Work:
    """Whether this process works: by the time of its CPUs, its files, and the pages it reads of mapped ones."""

    def __init__(self) -> None:
        self._used = _used()

    def since(self, seconds: float) -> bool:
        """Whether it worked since the last call, `seconds` ago."""
        before, self._used = self._used, _used()
        cpu, data, pages = (now - old for now, old in zip(self._used, before, strict=True))
        return cpu > BUSY * seconds or data > BYTES * seconds or pages > 0


def _used() -> tuple[float, int, int]:
    """CPU seconds, bytes read and written (Linux), and page faults that went to a disk, until now."""
    data = 0
    with contextlib.suppress(OSError, ValueError):
        lines = dict(line.split(": ") for line in Path("/proc/self/io").read_text().splitlines())
        data = int(lines["rchar"]) + int(lines["wchar"])
    return sum(os.times()[:4]), data, resource.getrusage(resource.RUSAGE_SELF).ru_majflt

"""The worker processes that assemble batches: waiting for them without end is what this module is there to prevent.

Grain reads each worker's batches from a pipe. A worker that is killed (the kernel does so where memory runs out) or
stopped in the middle of a batch leaves the reader waiting for the rest, for ever: nothing of Grain may be called by the
main thread then, not even `close`. So batches are fetched by a thread, and another one looks after the processes.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import queue
import re
import signal
import sys
import threading
import time
from collections.abc import Callable
from multiprocessing import connection, util
from multiprocessing.process import BaseProcess
from multiprocessing.synchronize import SemLock
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

if TYPE_CHECKING:  # every command imports this module
    import grain

TICK = 0.5
"""Seconds between two looks at the processes."""
DEAD_TICKS = 3
"""Looks that find a process dead before it counts as lost: a signal to all processes of a job kills the workers, and
the run that got it too has time to answer it."""
NAMED_SECONDS, STOPPED_SECONDS = 3.0, 20.0
"""A process is named once it was stopped this long, and counts as lost after that."""
CLOSE_SECONDS = 10.0
"""How long Grain may take to end its processes; a worker ends after the batch at hand."""
START_SECONDS = 50.0
"""How much later than the first one a process may start: all are started at once."""
NAME = "srsjax-data-"
"""What a worker calls itself, with its number from 1 on (Linux; `ps` and `top` show it)."""

_left_behind: list[Any] = []
"""Iterators whose processes were ended by force: they would close themselves where they are deleted, and wait."""


class WorkerLost(Exception):
    """A worker process was killed, or stopped and not continued; the message names it."""


class Interrupted(Exception):
    """A batch is not waited for any longer, as `take` was told; it is still on its way."""


def left_behind() -> bool:
    """Whether there is what would wait for lost workers at the exit of Python: this process has to end by `end`."""
    return bool(_left_behind)


def end(code: int) -> NoReturn:
    """Kills all worker processes and ends this one, without anything that Python does at its exit."""
    for process in multiprocessing.active_children():
        process.kill()
    for finalizer in list(util._finalizer_registry.values()):  # type: ignore[attr-defined]
        if finalizer._callback is SemLock._cleanup:  # type: ignore[attr-defined]
            finalizer()  # else a process of Python's complains of semaphores that are left
    os._exit(code)


def begin(index: int, count: int) -> None:
    """The first thing in worker `index` of `count`: its name, and its end with the process that started it. Ctrl-C is
    for that process alone, which ends the workers."""
    del count
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    with contextlib.suppress(OSError):  # not Linux
        Path("/proc/self/comm").write_text(f"{NAME}{index + 1}")


def _end_with_parent() -> None:
    if parent := multiprocessing.parent_process():
        connection.wait([parent.sentinel])
        os._exit(1)


class Feed:
    """The elements of a Grain dataset that so many worker processes make."""

    def __init__(self, elements: grain.IterDataset, workers: int):
        self._watch = _Watch(workers)
        self._iterator = iter(elements)
        self._made = queue.SimpleQueue[tuple[Any, BaseException | None]]()
        self._fetching = False

    def check(self) -> None:
        """Raises WorkerLost where one is; the others are then ended."""
        if self._watch.lost:
            self.close()
            raise WorkerLost(self._watch.lost)

    def take(self, interrupted: Callable[[], bool]) -> Any:
        """The next element. Raises WorkerLost, and Interrupted as soon as `interrupted()`; what the iterator raises."""
        if not self._fetching:
            threading.Thread(target=self._fetch, name="fetch", daemon=True).start()
            self._fetching = True
        while True:
            try:
                made, error = self._made.get(timeout=TICK / 5)
                break
            except queue.Empty:
                self._give_up(interrupted)
        self._fetching = False
        self._watch.meet()
        if error is None:
            return made
        if not isinstance(error, StopIteration):  # perhaps what Grain noticed of a worker's end
            deadline = time.monotonic() + 2 * DEAD_TICKS * TICK
            while self._watch.is_hurt() and time.monotonic() < deadline:
                self._give_up(interrupted)
                time.sleep(TICK / 5)
        raise error

    def _give_up(self, interrupted: Callable[[], bool]) -> None:
        if interrupted():
            raise Interrupted
        self.check()

    def _fetch(self) -> None:
        try:
            self._made.put((next(self._iterator), None))
        except BaseException as error:
            self._made.put((None, error))

    def close(self) -> None:
        """Ends the processes: as Grain does it, or by force where one of them cannot answer."""
        closed = False
        try:
            closed = self._close()
        finally:  # a signal may have raised Stopped
            self._watch.end()
            if not closed:
                _left_behind.append(self._iterator)
                self._watch.kill()

    def _close(self) -> bool:
        """Whether Grain ended the processes."""
        if self._watch.is_hurt():
            return False
        closing = threading.Thread(target=self._iterator.close, name="close", daemon=True)
        closing.start()
        deadline = time.monotonic() + CLOSE_SECONDS
        while closing.is_alive():
            closing.join(TICK / 5)
            if time.monotonic() > deadline or self._watch.is_hurt():
                return False
        return True


class _Watch:
    """Looks after the worker processes of a Grain iterator: those that this process starts from now on."""

    def __init__(self, count: int):
        self.lost: str | None = None
        """What happened to a worker, in words."""
        self._count = count
        self._others = {process.pid for process in _grain_processes()}
        self._known: dict[int, BaseProcess] = {}  # Python forgets one that it finds dead
        self._missing = 0  # looks that found some of the processes, and not all
        self._numbers: dict[int, str] = {}
        self._ticks: dict[int, int] = {}  # looks in a row that found it dead or stopped
        self._named: set[int] = set()
        self._ended = threading.Event()
        threading.Thread(target=self._run, name="watch workers", daemon=True).start()

    def _run(self) -> None:
        while not self._ended.wait(TICK) and not self.lost:
            self._look()
        if self.lost and not self._ended.wait(NAMED_SECONDS):  # who asks for batches does something else for long
            _say(f"{self.lost}; training ends before its next step")

    def end(self) -> None:
        """Stops looking."""
        self._ended.set()

    def meet(self) -> None:
        """Gets to know the processes that are there, until each has its number: fast ones are killed before this looks
        for the first time, or between their start and the name that they give themselves."""
        if sum(map(bool, self._numbers.values())) < self._count:
            self._processes()

    def is_hurt(self) -> bool:
        """Whether a process ended that nobody asked to, or is stopped now."""
        return any(process.exitcode or _is_stopped(pid) for pid, process in self._processes().items())

    def kill(self) -> None:
        """Kills all processes, those too that Grain's threads are starting, and waits for their end."""
        for _ in range(2):
            for process in self._processes().values():
                with contextlib.suppress(OSError, ValueError):
                    process.kill()
                    process.join(5)

    def _processes(self) -> dict[int, BaseProcess]:
        for process in _grain_processes():
            if process.pid is not None and process.pid not in self._others:
                self._known[process.pid] = process
                self._numbers[process.pid] = self._numbers.get(process.pid) or _number(process.pid)
        return dict(self._known)

    def _look(self) -> None:
        processes = self._processes()
        self._missing += 0 < len(processes) < self._count
        if self._missing * TICK >= START_SECONDS:
            self.lost = f"a data worker (of {self._count}) ended as it started"
        for pid, process in processes.items():
            if code := process.exitcode:
                if self._found(pid) >= DEAD_TICKS:
                    self.lost = f"{self._name(pid)} {_end(code)}"
            elif _is_stopped(pid):
                self._stopped(pid)
            else:
                self._ticks.pop(pid, None)
                self._named.discard(pid)

    def _stopped(self, pid: int) -> None:
        # Counted by looks and not by a clock, which goes on while this process is stopped with its workers.
        seconds = self._found(pid) * TICK
        if seconds >= NAMED_SECONDS and pid not in self._named:
            self._named.add(pid)
            left = STOPPED_SECONDS - seconds
            _say(f"{self._name(pid)} is stopped by SIGSTOP; kill -CONT {pid} within {left:.0f} s lets it go on")
        if seconds >= STOPPED_SECONDS:
            self.lost = f"{self._name(pid)} was stopped by SIGSTOP, and not continued for {STOPPED_SECONDS:.0f} s"

    def _found(self, pid: int) -> int:
        self._ticks[pid] = self._ticks.get(pid, 0) + 1
        return self._ticks[pid]

    def _name(self, pid: int) -> str:
        number = self._numbers.get(pid)
        return f"data worker {number} of {self._count} (pid {pid})" if number else f"a data worker (pid {pid})"


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _grain_processes() -> list[BaseProcess]:
    return [process for process in multiprocessing.active_children() if process.name.startswith("grain-")]


def _number(pid: int) -> str:
    """The number of a worker that has begun; empty where it is not known."""
    with contextlib.suppress(OSError):
        if found := re.fullmatch(NAME + r"(\d+)\n", Path(f"/proc/{pid}/comm").read_text()):
            return found[1]
    return ""


def _is_stopped(pid: int) -> bool:
    """Whether a process is stopped by a signal or a debugger (Linux; elsewhere nobody says)."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] in "Tt"
    except (OSError, IndexError):
        return False


def _end(code: int) -> str:
    """How a process ended, from its exit code."""
    if code > 0:
        return f"ended with exit code {code}"
    known = [each.name for each in signal.Signals if each == -code]
    why = " (out of memory, if nobody sent it)" if -code == signal.SIGKILL else ""
    return f"was killed by {known[0] if known else f'signal {-code}'}{why}"

"""Stopping by a signal: work is brought to a point from which the same command goes on; exit codes of early ends."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager

STOPPED = 75
"""Exit code: stopped by a signal, saved; the same command resumes (EX_TEMPFAIL of sysexits.h)."""
HUNG = 70
"""Exit code: training made no progress and was ended by its watchdog (EX_SOFTWARE)."""
WORKER_LOST = 71
"""Exit code: a worker process that assembles batches was killed or stopped (EX_OSERR)."""
SIGNALS = (signal.SIGTERM, signal.SIGINT)

_asked_at: float | None = None
"""When the first signal came."""


class Stopped(Exception):
    """A signal asked the command to stop; what is done is saved."""


def since_asked() -> str:
    """How long ago the first signal came, in words; empty where none did."""
    return "" if _asked_at is None else f", {time.monotonic() - _asked_at:.1f} s after the signal"


@contextmanager
def stoppable() -> Iterator[None]:
    """Outside of work that a `StopSignal` brings to a good point: the first SIGTERM or SIGINT raises Stopped wherever
    the main thread is, as soon as Python runs there again (a compilation ends first). The second one is obeyed at once.
    """

    def raise_stopped(number, frame):
        del frame
        _note(number)
        raise Stopped("before anything had to be saved; run the same command to go on")

    before = {number: signal.signal(number, raise_stopped) for number in SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class StopSignal:
    """Remembers SIGTERM and SIGINT instead of dying of them; the second one is obeyed at once."""

    def __enter__(self) -> StopSignal:
        self.asked = False
        self._before = {number: signal.signal(number, self._ask) for number in SIGNALS}
        return self

    def __exit__(self, *_) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _ask(self, number, frame) -> None:
        del frame
        _note(number)
        self.asked = True


def _note(number: int) -> None:
    """Keeps the time of the first signal; dies of the second."""
    global _asked_at
    if _asked_at is not None:
        signal.signal(number, signal.SIG_DFL)
        signal.raise_signal(number)
    _asked_at = time.monotonic()

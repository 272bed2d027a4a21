"""Stopping by a signal: work is brought to a point from which the same command goes on."""

from __future__ import annotations

import signal

STOPPED = 75
"""Exit code: stopped by a signal, saved; the same command resumes (EX_TEMPFAIL of sysexits.h)."""


class Stopped(Exception):
    """A signal asked the command to stop; what is done is saved."""


class StopSignal:
    """Remembers SIGTERM and SIGINT instead of dying of them; the second one is obeyed at once."""

    def __enter__(self) -> StopSignal:
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

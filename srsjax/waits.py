"""Waits for somebody else that may take as long as they take: another process of the run, a cluster.

The watchdog of training (`srsjax.training.watchdog`) leaves them out: whoever is waited for has a watchdog of its own.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

_lock = threading.Lock()
_waits = 0


@contextmanager
def elsewhere() -> Iterator[None]:
    """Inside, the work is done by somebody else."""
    _add(1)
    try:
        yield
    finally:
        _add(-1)


def is_elsewhere() -> bool:
    """Whether any thread of this process is inside of `elsewhere` now."""
    return _waits > 0


def _add(number: int) -> None:
    global _waits
    with _lock:
        _waits += number

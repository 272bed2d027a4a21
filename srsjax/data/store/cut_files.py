"""Ends the process with one line where a file that it has mapped was cut meanwhile.

Reading a mapped file past its end is not an exception but the signal SIGBUS, which ends a process without a word. It
comes in the thread that reads, at the instruction that does so, where Python's own handlers cannot run: they would wait
for that instruction to be over. So a C handler calls back at once, looks for what was cut, and ends the process.
"""

from __future__ import annotations

import ctypes
import functools
import os
import signal
import sys
from collections.abc import Callable

_Handler = ctypes.CFUNCTYPE(None, ctypes.c_int)


@functools.cache
def watch(cut: Callable[[], Exception | None]) -> None:
    """From now on a SIGBUS for which `cut` finds a file ends the process with its message and exit code 2; another one
    as it would without this."""
    if sys.platform == "win32":
        return
    library = ctypes.CDLL(None, use_errno=True)
    library.signal.restype = ctypes.c_void_p
    library.signal.argtypes = (ctypes.c_int, ctypes.c_void_p)

    @_Handler
    def handler(number: int) -> None:
        library.signal(number, None)  # the default: if what follows fails alike, and for another cause
        if error := cut():
            os.write(2, f"error: {error}\n".encode())
            os._exit(2)

    _kept.append(handler)  # C holds an address only
    library.signal(signal.SIGBUS, ctypes.cast(handler, ctypes.c_void_p))


_kept: list[object] = []

"""One command at a time for a folder: the lock that a command holds while it writes there.

The lock of NAME is the file `.NAME.lock` beside it, so that the folder may be replaced as a whole. It is held with
`flock`, which the kernel releases however the process ends: what a killed process left behind holds nothing. On a
network file system the lock is as good as its server: NFS passes it on to all hosts (releasing that of a lost host may
take its lease, a minute or two), Lustre does so if mounted with `flock`.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from srsjax.errors import InputError

TRIES = 100
"""How often a lock file may vanish between opening and locking it before that counts as an error."""


@contextmanager
def exclusive(folder: str | Path, said: Callable[[str], None] = print) -> Iterator[None]:
    """Holds the lock of a folder, which need not exist; a link is followed.

    Folders above it are made, and removed again where nothing came into them.

    `said` is given a line where the file system has no locks; the block is then run without one.

    Raises InputError, naming the holder, where another process holds it, and where a file is in the way.
    """
    folder = Path(folder).resolve()
    made = [parent for parent in folder.parents if not parent.exists()]
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
    except FileExistsError:
        raise InputError(f"{folder}: a folder above it is a file; choose another place") from None
    path = folder.with_name(f".{folder.name}.lock")
    lock = _acquire(folder, path, said)
    try:
        lock.truncate(0)
        lock.write(json.dumps(_self()))
        lock.flush()
        yield
    finally:
        if _is(lock, path):
            path.unlink(missing_ok=True)  # before it is released: who waits for the file sees that it is gone
        lock.close()
        with contextlib.suppress(OSError):  # not empty
            for parent in made:
                parent.rmdir()


def _acquire(folder: Path, path: Path, said: Callable[[str], None]) -> IO[str]:
    """The lock file, open and locked."""
    for _ in range(TRIES):
        lock = open(path, "a+", encoding="utf-8")  # noqa: SIM115 (closed by the caller)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
                lock.seek(0)
                holder = _shown(lock.read())
                lock.close()
                raise InputError(
                    f"{folder}: in use by {holder}, expected one command at a time; wait until it has ended, or stop it"
                ) from None
            said(f"{folder}: cannot be locked ({error.strerror}); make sure that no other command writes there")
            return lock
        if _is(lock, path):
            return lock
        lock.close()  # its holder ended, and removed it, between the two calls
    raise OSError(f"{path}: removed again and again while it was being locked")


def _is(lock: IO[str], path: Path) -> bool:
    """Whether `path` is still the file that is open."""
    try:
        return os.path.samestat(os.fstat(lock.fileno()), os.stat(path))
    except FileNotFoundError:
        return False


def _self() -> dict[str, str | int]:
    """What the lock file says of its holder."""
    return {"pid": os.getpid(), "host": socket.gethostname(), "since": time.strftime("%Y-%m-%d %H:%M:%S %z")}


def _shown(text: str) -> str:
    """A holder in words; it may not have written its name yet."""
    try:
        holder = json.loads(text)
        return f"process {holder['pid']} on {holder['host']} since {holder['since']}"
    except (ValueError, KeyError, TypeError):
        return "another process"

"""Folders that appear atomically: written under a temporary name, renamed when complete."""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

SUFFIX = ".partial"
# A partial folder without a lock is either younger than this (its process is about to lock it) or left over.
GRACE_SECONDS = 60


@contextmanager
def building(folder: Path) -> Iterator[Path]:
    """A new empty folder that becomes `folder` if the block succeeds, and is removed if it fails.

    Several processes may build the same folder at once: each has its own partial folder, the first to finish becomes
    `folder`, and the others are removed. Partial folders left in the parent by killed processes are removed too: a
    live process holds a lock on its folder.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    remove_leftovers(folder.parent)
    partial = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", suffix=SUFFIX, dir=folder.parent))
    lock = open(_lock(partial), "w")  # noqa: SIM115 (held until the folder is complete)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield partial
        _lock(partial).unlink()
        _flush(partial)
        try:
            os.rename(partial, folder)
        except OSError:
            if not folder.exists():
                raise
        else:
            os.chmod(folder, 0o777 & ~_umask())  # mkdtemp makes private folders
    finally:
        lock.close()
        shutil.rmtree(partial, ignore_errors=True)


def remove_leftovers(parent: Path) -> None:
    """Removes the partial folders in `parent` that no live process is building."""
    for partial in parent.glob(f".*{SUFFIX}"):
        if not _is_alive(partial):
            shutil.rmtree(partial, ignore_errors=True)


def _is_alive(partial: Path) -> bool:
    try:
        with open(_lock(partial)) as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return False
    except BlockingIOError:
        return True
    except OSError:
        try:
            return time.time() - os.stat(partial).st_mtime < GRACE_SECONDS
        except OSError:
            return False


def _lock(partial: Path) -> Path:
    return partial / "building.lock"


def _flush(folder: Path) -> None:
    """Syncs every file to disk, so that a power failure after the rename leaves them complete."""
    for path in folder.rglob("*"):
        if path.is_file():
            with open(path, "rb") as file:
                os.fsync(file.fileno())


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask

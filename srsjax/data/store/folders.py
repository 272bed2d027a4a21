"""Folders that are there whole or not at all: written under a temporary name, renamed when done."""

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
# A folder without its lock is either this young (its process is about to lock it) or left over.
GRACE_SECONDS = 60


@contextmanager
def building(folder: Path) -> Iterator[Path]:
    """A new empty folder that becomes `folder` when the block ends well, and is removed when it does not.

    Several processes may build the same folder at once: each has its own, the first to end gives `folder`, and the
    others' are removed. What processes that were killed left behind in the parent folder is removed too: a living
    one holds a lock on its folder.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    remove_leftovers(folder.parent)
    partial = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", suffix=SUFFIX, dir=folder.parent))
    lock = open(_lock(partial), "w")  # noqa: SIM115 (held until the folder is whole)
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
    """Removes the partial folders in `parent` that no living process is building."""
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
    """Asks the disk to keep every file, so that a power cut after the rename finds them whole."""
    for path in folder.rglob("*"):
        if path.is_file():
            with open(path, "rb") as file:
                os.fsync(file.fileno())


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask

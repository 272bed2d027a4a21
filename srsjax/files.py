"""Files and folders that appear whole or not at all: written under a temporary name, renamed when complete.

The temporary name begins with a dot, ends in `.partial`, and is new for each writer, so that two processes never write
to the same one. Modes are those of the umask, and a link is followed: what it points to is replaced, the link stays.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import glob
import json
import os
import re
import secrets
import shutil
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

SUFFIX = ".partial"
LOCK = "building.lock"
GRACE_SECONDS = 60
"""Where folders cannot be locked, a partial one without a lock is younger than this, or was left behind."""


@contextmanager
def atomic_file(path: str | Path) -> Iterator[Path]:
    """A new empty file to write to, by its name; it replaces `path` if the block succeeds, and is removed if it fails.

    It lies in the folder of `path`, which exists. It is on disk before it is renamed.
    """
    path = Path(path).resolve()
    partial = _partial(path)
    os.close(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666))
    mode = stat.S_IMODE(partial.stat().st_mode)  # by umask; some writers put a private file of their own here
    try:
        yield partial
        partial.chmod(mode)
        _flush(partial)
        partial.replace(path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def write_text(path: str | Path, text: str) -> None:
    """Writes an `atomic_file` of text in UTF-8."""
    with atomic_file(path) as partial:
        partial.write_text(text, encoding="utf-8")


def write_json(path: str | Path, data: Any) -> None:
    """Writes an `atomic_file` of JSON, indented."""
    write_text(path, json_text(data))


def json_text(data: Any) -> str:
    """What `write_json` writes."""
    return json.dumps(data, indent=1, ensure_ascii=False) + "\n"


@contextmanager
def atomic_folder(path: str | Path, exists: Literal["error", "keep", "replace"] = "error") -> Iterator[Path]:
    """A new folder to fill, empty but for a lock; it becomes `path` if the block succeeds, and is removed if it fails.

    Folders above `path` are made. Partial folders of `path` that killed processes left behind are removed: a live one
    holds a lock on its own. Its files are on disk before it is renamed.

    Args:
      exists: what to do where `path` holds files when the block ends: raise OSError; keep them and remove the new
        folder (several processes may then build the same folder at once, and the first to finish wins); or replace
        them.
    """
    path = Path(path).resolve()
    path.parent.mkdir(parents=True, exist_ok=True)
    remove_leftovers(path.parent, path.name)
    partial = _partial(path)
    with _alone(path.parent):
        partial.mkdir()
        lock = open(partial / LOCK, "w")  # noqa: SIM115 (held until the folder is complete)
        fcntl.flock(lock, fcntl.LOCK_EX)
    try:
        yield partial
        for file in partial.rglob("*"):
            if file.is_file():
                _flush(file)
        if exists == "replace":
            remove_folder(path)
        with _alone(path.parent):
            (partial / LOCK).unlink()
            try:
                partial.rename(path)
            except OSError:
                if exists != "keep" or not path.exists():
                    raise
    finally:
        lock.close()
        shutil.rmtree(partial, ignore_errors=True)


def remove_folder(path: str | Path) -> None:
    """Deletes a folder, if it is there, moved away first: a kill leaves no half of it under its name."""
    path = Path(path).resolve()
    if path.exists():
        shutil.rmtree(path.rename(_partial(path)), ignore_errors=True)  # what is left is like a partial folder


def remove_leftovers(parent: Path, name: str = "") -> None:
    """Removes the partial folders in `parent` (those of `name`, or all) that no live process is filling."""
    with _alone(parent) as alone:
        found = parent.glob(f".{glob.escape(name) or '*'}.*{SUFFIX}")
        dead = [partial for partial in found if partial.is_dir() and not _is_alive(partial, alone)]
    for partial in dead:
        shutil.rmtree(partial, ignore_errors=True)


@contextmanager
def _alone(folder: Path) -> Iterator[bool]:
    """Holds a lock on a folder; whether there is such a lock (NFS has none for folders).

    Partial folders in it lack a lock of their own only while somebody holds this one: who holds it and finds one
    without knows that its process is dead.
    """
    try:
        opened = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    except OSError:  # a folder that may be written to, and not be read
        yield False
        return
    try:
        try:
            fcntl.flock(opened, fcntl.LOCK_EX)
        except OSError:
            yield False
        else:
            yield True
    finally:
        os.close(opened)


def is_partial(path: Path) -> bool:
    """Whether a file or folder is one that was not completed."""
    return path.name.startswith(".") and path.name.endswith(SUFFIX)


def remove_partial_files(folder: Path) -> None:
    """Removes the partial files in a folder, left behind by killed processes. Nothing is writing to the folder."""
    for partial in folder.glob(f".*{SUFFIX}"):
        if partial.is_file():
            partial.unlink(missing_ok=True)


def remove_old_partials(path: str | Path) -> None:
    """Removes the partial files of `path` that killed processes left behind: nothing was written to them for some time.

    For files that are written at once; of others (`atomic_file` for as long as its block takes) a live one may be old.
    """
    path = Path(path).resolve()
    for partial in path.parent.glob(f".{glob.escape(path.name)}.*{SUFFIX}"):
        if partial.is_file() and time.time() - partial.stat().st_mtime > GRACE_SECONDS:
            partial.unlink(missing_ok=True)


def make_way(path: str | Path) -> None:
    """Makes the folders above a file that is to be written later, and removes what killed processes left of it.

    Raises OSError where no file can be: before the work that is to be written there.
    """
    path = Path(path)
    if path.is_dir():
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    path.parent.mkdir(parents=True, exist_ok=True)
    remove_old_partials(path)


TROUBLE = (
    *(errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM),
    *(errno.ENAMETOOLONG, errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.EMFILE, errno.ENFILE),
)
"""What a disk, a path or a limit is to blame for, and no program."""


def trouble(error: BaseException | None) -> str | None:
    """What is wrong with the disk, in one line, where an exception came of that; libraries that write files raise their
    own, with the reason in their words."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in TROUBLE:
            return f"{error.filename or 'a file'}: {error.strerror}"
        for number in TROUBLE:
            if os.strerror(number) in str(error) and "/" in str(error):
                path = re.search(r"/[^\s'\"\]:]+", str(error))
                return f"{path[0] if path else 'a file'}: {os.strerror(number)}"
        error = error.__cause__ or error.__context__
    return None


def swap_folders(one: str | Path, other: str | Path) -> None:
    """Exchanges the names of two folders of one file system.

    Linux does so in one step. Elsewhere, and on file systems that cannot (NFS), `one` is away for a moment: a kill at
    that point leaves `other`, and `one` as a partial folder.
    """
    one, other = Path(one).resolve(), Path(other).resolve()
    if _exchange(one, other):
        return
    with _alone(one.parent):
        away = one.rename(_partial(one))
        try:
            other.rename(one)
        except OSError:
            away.rename(one)
            raise
        away.rename(other)


def _exchange(one: Path, other: Path) -> bool:
    """`renameat2` with RENAME_EXCHANGE; whether there is such a thing."""
    try:
        renameat2 = ctypes.CDLL(None, use_errno=True).renameat2
    except AttributeError:
        return False
    at_fdcwd, rename_exchange = -100, 2
    if renameat2(at_fdcwd, os.fsencode(one), at_fdcwd, os.fsencode(other), rename_exchange) == 0:
        return True
    code = ctypes.get_errno()
    if code in (errno.EINVAL, errno.ENOSYS, errno.ENOTSUP):
        return False
    raise OSError(code, os.strerror(code), str(one), None, str(other))


def _partial(path: Path) -> Path:
    return path.with_name(f".{path.name}.{secrets.token_hex(6)}{SUFFIX}")


def _is_alive(partial: Path, alone: bool) -> bool:
    try:
        with open(partial / LOCK) as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return False
    except FileNotFoundError:
        if alone:
            return False
        try:
            return time.time() - os.stat(partial).st_mtime < GRACE_SECONDS
        except OSError:
            return False
    except OSError:  # locked, or on a file system that cannot tell
        return True


def _flush(file: Path) -> None:
    """Waits until a file is on disk, so that a power failure after the rename leaves it complete."""
    with open(file, "rb") as opened:
        os.fsync(opened.fileno())

"""The files of a table: what paths and globs name, and their bytes, decompressed."""

from __future__ import annotations

import glob
import io
import os
import re
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa

from srsjax.errors import InputError

COMPRESSIONS = {".gz": "gzip", ".zst": "zstd"}

# Bytes read at a time. A row of CSV must fit in a block; Arrow reads up to 32 blocks of CSV ahead.
BLOCK_BYTES = 2 << 20


def expand(files: str | tuple[str, ...]) -> list[Path]:
    """The files that paths and globs name, sorted, each once; `${NAME}` and `~` are replaced.

    A file that is named twice, or by links too, is read once. `**` stands for folders at any depth, but for hidden ones
    and links, which may lead back.

    Raises InputError for a path that does not exist, a glob that matches nothing, an unset variable.
    """
    patterns = (files,) if isinstance(files, str) else tuple(files)
    if not any(patterns):
        raise InputError("a table names no files; set its `files` to a path or a glob")
    found = sorted({path for pattern in patterns for path in _match(pattern)}, reverse=True)
    return sorted({os.path.realpath(path): path for path in found}.values())  # of several names the first


def with_variables(pattern: str) -> str:
    """A path or glob with `${NAME}` and `~` replaced. Raises InputError for a variable that is not set."""
    return os.path.expanduser(re.sub(r"\$\{(\w+)\}", lambda match: _variable(match[1], pattern), pattern))


def _match(pattern: str) -> list[Path]:
    name = with_variables(pattern)
    if os.path.isdir(name):
        raise InputError(f"{name}: a folder, expected files; name them, as in {os.path.join(name, '*.parquet')}")
    if os.path.exists(name):
        return [Path(name)]
    found = [Path(path) for path in _glob(name) if os.path.isfile(path)]
    if not found:
        reason = "no file matches" if glob.has_magic(name) else "no such file"
        raise InputError(f"{name}: {reason}; the working folder is {os.getcwd()}")
    return found


def _glob(pattern: str) -> Iterator[str]:
    """`glob.glob`, whose `**` follows no links: round a loop of them it would find a file again and again."""
    parts = pattern.split(os.sep)
    if "**" not in parts:
        yield from glob.iglob(pattern)
        return
    at = parts.index("**")
    rest = os.sep.join(parts[at + 1 :]) or "*"
    for top in glob.glob(os.sep.join([*parts[:at], ""])) if at else [""]:
        for folder, folders, _ in os.walk(top or os.curdir):
            folders[:] = [name for name in folders if not name.startswith(".")]
            yield from _glob(os.path.join(glob.escape(folder), rest))


def _variable(name: str, pattern: str) -> str:
    if name not in os.environ:
        raise InputError(f"{pattern}: the environment variable {name} is not set")
    return os.environ[name]


def open_bytes(path: Path) -> io.BufferedReader:
    """The bytes of a file, decompressed according to its suffix."""
    return io.BufferedReader(stream(path))


def stream(path: Path) -> pa.NativeFile:
    """The same for Arrow."""
    return pa.input_stream(str(path), compression=COMPRESSIONS.get(path.suffix))

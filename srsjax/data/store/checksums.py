"""Checksums of files and of JSON data, so that a damaged or swapped one is refused by name.

A file's is its size and its CRC-32 (`zlib`, some GB/s a core, without the GIL). It finds every error of up to 32 bits
in a row, and any other but one of 2^32. It guards against accidents, not against somebody who forges a file.
"""

from __future__ import annotations

import hashlib
import json
import os
import threading
import time
import weakref
import zlib
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from srsjax.data.store.cut_files import watch
from srsjax.errors import InputError

SEAL = "checksum"
"""Key of the checksum of JSON data among them."""
LARGE = 4 << 20
"""Bytes above which a file is read in the background, while it is used; smaller ones are read before."""
BLOCK = 1 << 20
"""Bytes read at a time. A read gives fewer on no local file system but at the end of the file."""
SIZES_EVERY = 1.0
"""Seconds after which `Checks.tell` looks at the sizes again."""


def of_bytes(data: bytes) -> dict[str, Any]:
    """`of_file` of a file with these contents."""
    head = {"head": _hexadecimal(zlib.crc32(data[:BLOCK]))} if len(data) > LARGE else {}
    return {"bytes": len(data), "crc32": _hexadecimal(zlib.crc32(data))} | head


def of_file(path: Path) -> dict[str, Any]:
    """Size in bytes, and CRC-32 in hexadecimal digits, of a file; of one that is `LARGE` also that of its first `BLOCK`
    as `head`."""
    size, crc, head = 0, 0, 0
    with open(path, "rb", buffering=0) as file:
        while block := file.read(BLOCK):
            head = zlib.crc32(block) if not size else head
            size, crc = size + len(block), zlib.crc32(block, crc)
    return {"bytes": size, "crc32": _hexadecimal(crc)} | ({"head": _hexadecimal(head)} if size > LARGE else {})


def _hexadecimal(crc: int) -> str:
    return f"{crc:08x}"


def are_checksums(files: Any) -> bool:
    """Whether data are what `of_file` gave, by the name of each file."""
    return isinstance(files, Mapping) and all(
        isinstance(of, Mapping) and type(of.get("bytes")) is int and isinstance(of.get("crc32"), str)
        for of in files.values()
    )


def check_size(path: Path, expected: Mapping[str, Any], advice: str = "") -> None:
    """Raises InputError where a file is missing or has another size than `expected`, of `of_file`."""
    try:
        size = os.stat(path).st_size
    except OSError as error:
        raise InputError(f"{path}: missing or not readable ({error.strerror}){advice}") from None
    if size != expected["bytes"]:
        raise InputError(f"{path}: found {size:,} bytes, expected {expected['bytes']:,}{advice}")


def check_file(path: Path, expected: Mapping[str, Any], advice: str = "") -> None:
    """Raises InputError where a file is not the one that `expected`, of `of_file`, was made of."""
    check_size(path, expected, advice)
    try:
        found = of_file(path)
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}){advice}") from None
    if found != expected:
        raise InputError(f"{path}: damaged: found CRC-32 {found['crc32']}, expected {expected['crc32']}{advice}")


def check_head(path: Path, expected: Mapping[str, Any], advice: str = "") -> None:
    """Raises InputError where the first `BLOCK` of a large file, with what says how it is to be read, is damaged."""
    with open(path, "rb", buffering=0) as file:
        found = _hexadecimal(zlib.crc32(file.read(BLOCK)))
    if found != expected["head"]:
        raise InputError(f"{path}: damaged: found CRC-32 {found} of its head, expected {expected['head']}{advice}")


def sealed(data: Mapping[str, Any]) -> dict[str, Any]:
    """JSON data with their SHA-256, of the values and not of how they are laid out, under `SEAL`."""
    return {**data, SEAL: _digest(data)}


def is_sealed(data: Any) -> bool:
    """Whether data are as `sealed` gave them."""
    return isinstance(data, Mapping) and data.get(SEAL) == _digest(data)


def _digest(data: Mapping[str, Any]) -> str:
    rest = {key: value for key, value in data.items() if key != SEAL}
    return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()


_opened: weakref.WeakSet[Checks] = weakref.WeakSet()


def damage() -> InputError | None:
    """What is wrong with any file that this program has mapped: what an exception of any kind may have come of."""
    return _first_error(Checks.wait)


def cut() -> InputError | None:
    """Which of the mapped files is not as long as it was; None if none is. Reads no file."""
    return _first_error(Checks.look)


def _first_error(look: Callable[[Checks], None]) -> InputError | None:
    for checks in list(_opened):
        try:
            look(checks)
        except InputError as error:
            return error
    return None


class Checks:
    """The files of a folder, checked when they are first used: sizes and small files at once, others in a thread."""

    def __init__(self, folder: Path, files: Mapping[str, Mapping[str, Any]], advice: str = ""):
        """`files`: of each file, by its path in the folder, what `of_file` gave; `advice` ends every message."""
        self.folder, self.files, self._advice = folder, files, advice
        self._begun: set[str] = set()
        self._threads: list[threading.Thread] = []
        self._failed: InputError | None = None
        self._looked = time.monotonic()
        _opened.add(self)

    def __reduce__(self):
        return Checks, (self.folder, {})  # worker processes read what this one checks

    def begin(self, names: Iterable[str]) -> None:
        """Checks files that are about to be mapped. Raises InputError as `check_file`; for large files `tell` and
        `wait` do, once they are read."""
        watch(cut)
        names = [name for name in names if name not in self._begun]
        for name in names:
            check_size(self.folder / name, self.files[name], self._advice)
        large = [name for name in names if "head" in self.files[name]]
        for name in names:
            (check_head if name in large else check_file)(self.folder / name, self.files[name], self._advice)
        self._begun.update(names)
        if large:
            self._threads.append(threading.Thread(target=self._read, args=(large,), name="checksums", daemon=True))
            self._threads[-1].start()

    def tell(self) -> None:
        """Raises InputError where a file was found damaged meanwhile, or became shorter; returns at once."""
        if self._failed:
            raise self._failed
        if time.monotonic() - self._looked > SIZES_EVERY:
            self._looked = time.monotonic()
            self.look()

    def look(self) -> None:
        """Raises InputError where a file has another size than it had."""
        for name in self._begun:
            check_size(self.folder / name, self.files[name], self._advice)

    def wait(self) -> None:
        """Returns once all files that were begun are read. Raises InputError as `tell`."""
        for thread in self._threads:
            thread.join()
        self._threads.clear()
        self.tell()

    def everything(self) -> int:
        """Reads every file, whatever was read before; returns the bytes. Raises InputError as `check_file`."""
        for name, expected in self.files.items():
            check_file(self.folder / name, expected, self._advice)
        return sum(expected["bytes"] for expected in self.files.values())

    def _read(self, names: list[str]) -> None:
        try:
            for name in names:
                check_file(self.folder / name, self.files[name], self._advice)
        except InputError as error:
            self._failed = error

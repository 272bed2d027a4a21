"""What is not to be shown, and what is to be kept under another name: private columns and ids of users."""

from __future__ import annotations

import os
from collections.abc import Mapping

import pyarrow as pa

from srsjax.config import Catalogue, columns
from srsjax.data.reading import hashing
from srsjax.errors import InputError

Place = tuple[str, str]
"""A table (a catalogue's name, or empty for the log) and a column of it."""

LEAST_SECRET = 16
"""Characters of a secret: fewer could be tried out."""


def secret(variable: str) -> bytes:
    """What an environment variable holds; empty where none is named.

    Raises InputError where it is not there or too short.
    """
    if not variable:
        return b""
    found = os.environ.get(variable, "").encode()
    if len(found) < LEAST_SECRET:
        raise InputError(
            f"data.hash_key_env: found {len(found)} characters in the environment variable {variable}, expected a "
            f"secret of at least {LEAST_SECRET}"
        )
    return found


def fingerprint(secret: bytes) -> str:
    """What tells whether a secret is the same, and not what it is; empty without one."""
    return hashing.pseudonyms(pa.array(["srsjax"]), secret)[0].as_py() if secret else ""


def joined_with(place: Place, catalogues: Mapping[str, Catalogue]) -> set[Place]:
    """A column, and those that are joined by it: the keys of catalogues and what names them in the log."""
    same = []
    for name, spec in catalogues.items():
        keys = columns(spec.key)
        same += [{("", on), (name, key)} for on, key in zip(columns(spec.on) or keys, keys, strict=False)]
    found = {place}
    for _ in same:  # what is joined by what is joined, too
        for pair in same:
            found |= pair if pair & found else set()
    return found

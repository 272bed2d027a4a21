"""One matcher for everything that is decided per parameter: sharding, weight decay, learning rate.

Parameters are a flat dict from path ("bert/layers/0/attention/qkv/kernel") to array. A table is an ordered list of
(regular expression, value); the first row whose expression is found in the path decides, and a path that no row
covers is an error, so that a new parameter can never be decided by accident.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from srsjax.errors import InputError


def found_by(patterns: Sequence[str], paths: Iterable[str], field: str) -> frozenset[str]:
    """The paths in which some pattern is found.

    Raises InputError naming `field` for a pattern that is no regular expression, or is found in no path.
    """
    paths, found = list(paths), set()
    for pattern in patterns:
        try:
            own = [path for path in paths if re.search(pattern, path)]
        except re.error as error:
            raise InputError(f"{field}: found {pattern!r}, expected a regular expression ({error})") from None
        if not own:
            parts = ", ".join(dict.fromkeys(re.sub(r"([^/]+(/layers/|/[^/]+)?).*", r"\1", path) for path in paths))
            raise InputError(f"{field}: {pattern!r} is found in no parameter's path; they begin with {parts}")
        found.update(own)
    return frozenset(found)


def match[T](rules: Sequence[tuple[str, T]], paths: Iterable[str], purpose: str) -> dict[str, T]:
    """The value of the first rule found in each path. Raises ValueError naming every path without one."""
    found, missing = {}, []
    for path in paths:
        for pattern, value in rules:
            if re.search(pattern, path):
                found[path] = value
                break
        else:
            missing.append(path)
    if missing:
        raise ValueError(f"no {purpose} rule covers {', '.join(missing)}; add a row to its table")
    return found

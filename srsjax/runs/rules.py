"""One matcher for everything that is decided per parameter: sharding, weight decay, learning rate.

Parameters are a flat dict from path ("bert/layers/0/attention/qkv/kernel") to array. A table is an ordered list of
(regular expression, value); the first row whose expression is found in the path decides, and a path that no row
covers is an error, so that a new parameter can never be decided by accident.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence


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

"""The one exception for what the user can mend, and the hint that names what was probably meant."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

NEAR = 0.7
"""Similarity of two names (`difflib`, 0 to 1) from which on one is taken for the other, misspelt."""


class InputError(Exception):
    """Wrong input or arguments, said in one line: what was found, where, what was expected, what to do.

    Every command turns it into that line on standard error and exit code 2 (`srsjax.cli.run`). Raise it
    only for what the user can mend; a bug in srsjax stays an ordinary exception with its traceback.
    """

    def __init__(self, message: str):
        super().__init__(" ".join(str(message).split()))


def nearest(name: str, names: Iterable[str]) -> str | None:
    """The name that `name` is probably meant to be; None where none is near.

    The last part of a dotted name counts like a whole name (`learning_rat` is near `optimizer.learning_rate`); so does
    a beginning, and so do the initials of a name (`lr`).
    """
    best = max(names, key=lambda other: _alike(name, other), default=None)
    return best if best is not None and _alike(name, best) >= NEAR else None


def did_you_mean(name: str, names: Iterable[str]) -> str:
    """`; did you mean 'x'?` for the end of a message; empty where no name is near."""
    found = nearest(name, names)
    return f"; did you mean {found!r}?" if found else ""


def near(name: str, names: Iterable[str], prefix: str = "") -> str:
    """`, nearest: x` for the end of a message; empty where no name is near."""
    found = nearest(name, names)
    return f", nearest: {prefix}{found}" if found else ""


def _alike(name: str, other: str) -> float:
    own, last = name.rpartition(".")[2], other.rpartition(".")[2]
    ratios = [difflib.SequenceMatcher(None, *pair).ratio() for pair in ((name, other), (own, last))]
    initials = "".join(word[:1] for word in last.split("_"))
    begins = len(own) > 2 and last.startswith(own)
    same = len(own) > 1 and own == initials
    return max(*ratios, NEAR if begins or same else 0.0) + 0.1 * min(ratios)

"""The one exception for what the user can mend, and the hint that names what was probably meant."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

NEAR = 0.7
"""Similarity of two names (`difflib`, 0 to 1) from which on one is taken for the other, misspelt."""
BEGINS = 0.85
"""Similarity of two names of which one begins with the other."""


class InputError(Exception):
    """Wrong input or arguments, said in one line: what was found, where, what was expected, what to do.

    Every command turns it into that line on standard error and exit code 2 (`srsjax.cli.run`). Raise it
    only for what the user can mend; a bug in srsjax stays an ordinary exception with its traceback.
    """

    def __init__(self, message: str):
        super().__init__(" ".join(str(message).split()))


def nearest(name: str, names: Iterable[str]) -> str | None:
    """The name that `name` is probably meant to be; None where none is near.

    The last part of a dotted name counts like a whole name (`learning_rat` is near `optimizer.learning_rate`); so do
    its first words (`warmup_steps` is near `optimizer.warmup`, `epoch` near `epochs`) and its initials (`lr`).
    """
    alike = {other: _alike(name, other) for other in names}
    close = [other for other, (most, _) in alike.items() if most >= NEAR]
    return max(close, key=lambda other: alike[other][0] + 0.1 * alike[other][1], default=None)


def did_you_mean(name: str, names: Iterable[str]) -> str:
    """`; did you mean 'x'?` for the end of a message; empty where no name is near."""
    found = nearest(name, names)
    return f"; did you mean {found!r}?" if found else ""


def near(name: str, names: Iterable[str], prefix: str = "") -> str:
    """`, nearest: x` for the end of a message; empty where no name is near."""
    found = nearest(name, names)
    return f", nearest: {prefix}{found}" if found else ""


def _alike(name: str, other: str) -> tuple[float, float]:
    """How similar two names are, 0 to 1: by the best of the ways to compare them, and as text by the worst."""
    own, last = name.rpartition(".")[2], other.rpartition(".")[2]
    ratios = [difflib.SequenceMatcher(None, *pair).ratio() for pair in ((name, other), (own, last))]
    begins = (len(own) > 2 and last.startswith(own)) or own.startswith(f"{last}_")
    initials = len(own) > 1 and own == "".join(word[:1] for word in last.split("_"))
    return max(*ratios, BEGINS if begins else 0.0, NEAR if initials else 0.0), min(ratios)

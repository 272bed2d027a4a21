"""Which parameters of a model may be 8-bit, in which groups, and which are: chosen by what each does to the logits.

Quantised are what an encoder's time and size are: the products with its weights, its token embeddings, and the
embeddings of categories. Everything else stays float32.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from srsjax.model.int8 import Quantized, quantize

QUANTIZABLE = (
    (r"^(bert/layers/\d+/(attention|mlp))/(qkv|out|up|down)/kernel$", 0),
    (r"^(bert/embeddings/token)/embedding$", -1),
    (r"^(features/[^/]+/[^/]+/table)/embedding$", -1),
)
"""Paths of parameters, the group in brackets, and the axis that shares a scale: what a product sums over, or the width
of a table, whose rows are looked up."""


def group_of(path: str) -> str | None:
    """The group of a parameter that may be quantised; None for another."""
    found = (re.search(pattern, path) for pattern, _ in QUANTIZABLE)
    return next((match[1] for match in found if match), None)


def groups(paths: Iterable[str]) -> tuple[str, ...]:
    """The groups of these parameters, in their order: attention and feed-forward network of each layer, and tables."""
    return tuple(dict.fromkeys(group for group in map(group_of, paths) if group))


def quantized(params: Mapping[str, Any], kept: Collection[str] = ()) -> dict[str, Any]:
    """Parameters to score with, on the host: all groups but those `kept` in 8 bits, the others as they are."""
    made = {}
    for path, value in params.items():
        group = group_of(path)
        if group and group not in kept and not isinstance(value, Quantized):
            axis = next(axis for pattern, axis in QUANTIZABLE if re.search(pattern, path))
            made[path] = quantize(np.asarray(value), (axis % np.ndim(value),))
        else:
            made[path] = value
    return made


def size(params: Mapping[str, Any]) -> int:
    """Bytes of all parameters."""
    return sum(value.nbytes for value in params.values())


@dataclass(frozen=True)
class Choice:
    """Which groups are 8-bit, and what that does to the logits of a sample."""

    bound: float
    """Largest `error` that was allowed."""
    errors: dict[str, float]
    """By group, the error where it alone is 8-bit."""
    whole: float
    """The error where all are."""
    kept: tuple[str, ...]
    """Groups that stay float32, the worst first."""
    error: float
    """The error with these."""


def error(logits: np.ndarray, exact: np.ndarray) -> float:
    """Root mean square of the change of logits [M, K], in standard deviations of the exact ones; of K outputs the
    largest. 0 where nothing changed; infinite where an output that was constant did."""
    change = np.sqrt(np.mean((logits.astype(np.float64) - exact) ** 2, axis=0))
    spread = np.std(exact.astype(np.float64), axis=0)
    return float(np.max(np.where(change == 0, 0.0, change / np.where(spread > 0, spread, 1e-300))))


def choose(
    names: tuple[str, ...], bound: float, logits: Callable[[tuple[str, ...]], np.ndarray], exact: np.ndarray
) -> Choice:
    """Keeps the groups that hurt most in float32, one after the other, until the error is within the bound.

    Args:
      names: all groups.
      bound: largest error.
      logits: of a sample [M, K] where these groups are kept.
      exact: of the sample where all are.
    """
    errors = {name: error(logits(tuple(each for each in names if each != name)), exact) for name in names}
    worst = sorted(names, key=lambda name: -errors[name])
    found = whole = error(logits(()), exact)
    count = 0
    while found > bound and count < len(worst):
        count += 1
        found = error(logits(tuple(worst[:count])), exact)
    return Choice(bound, errors, whole, tuple(worst[:count]), found)

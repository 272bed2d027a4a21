"""Other impressions of the same candidates: equal contexts joined, to be computed once, or one candidate each."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from srsjax.data.store.arrays import Items, Split
from srsjax.data.store.ragged import Ragged


def join_equal_contexts(split: Split) -> Split:
    """Joins neighbouring impressions whose context texts and features are equal; candidates keep their order.

    Rows of a log to be scored are impressions of one candidate each, though many of them have one context. Only what
    makes batches is kept as it should be: `user` is that of the first impression of each.
    """
    if len(split) < 2:
        return split
    lengths = np.diff(split.context.offsets)
    new = np.ones(len(split), bool)
    new[1:] = lengths[1:] != lengths[:-1]
    for values in split.context_features.values():
        new[1:] |= np.any(values[1:] != values[:-1], axis=tuple(range(1, values.ndim)))
    alike = np.flatnonzero(~new)
    first, second = split.context.take(alike - 1), split.context.take(alike)
    differ = np.concatenate([[0], np.cumsum(first.values != second.values)])
    new[alike[np.diff(differ[first.offsets]) > 0]] = True
    kept = np.flatnonzero(new)
    return replace(
        split,
        context=split.context.take(kept),
        candidates=np.append(np.asarray(split.candidates)[kept], split.candidates[-1]),
        user=np.asarray(split.user)[kept],
        context_features={name: np.asarray(values)[kept] for name, values in split.context_features.items()},
    )


def pairs_alone(split: Split, candidates: np.ndarray) -> Split:
    """Some candidates [m] in this order, each with its context as an impression of its own, in memory."""
    candidates = np.asarray(candidates, np.int64)
    impression = np.searchsorted(split.candidates, candidates, side="right") - 1
    return replace(
        split,
        context=split.context.take(impression),
        candidates=np.arange(len(candidates) + 1),
        item=np.asarray(split.item)[candidates],
        labels=np.asarray(split.labels)[candidates],
        weights=np.asarray(split.weights)[candidates],
        example=np.asarray(split.example)[candidates],
        user=np.asarray(split.user)[impression],
        oracle=None if split.oracle is None else np.asarray(split.oracle)[candidates],
        context_features={name: np.asarray(values)[impression] for name, values in split.context_features.items()},
        candidate_features={name: np.asarray(values)[candidates] for name, values in split.candidate_features.items()},
    )


def items_alone(items: Items) -> Split:
    """Every item once, as a candidate without a context and without a label; packed with `Layout.alone`."""
    count = len(items.tokens)
    return Split(
        context=Ragged.from_lengths(np.zeros(0, np.int32), np.zeros(count, np.int64)),
        candidates=np.arange(count + 1),
        item=np.arange(count),
        labels=np.zeros((count, 1), np.float32),
        weights=np.zeros((count, 1), np.float32),
        example=np.arange(count),
        user=np.zeros(count, np.int64),
    )

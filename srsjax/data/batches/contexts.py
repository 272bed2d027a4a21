"""Impressions whose contexts are equal, joined, so that a shared context is computed once for more candidates."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from srsjax.data.store.arrays import Split


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

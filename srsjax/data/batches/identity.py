"""Which candidates are the same item, and how common each is: for losses over the other candidates of a batch."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace

import numpy as np

from srsjax.data.reading import hashing
from srsjax.data.store.arrays import Items, Split

# No feature of a schema has a name with a slash.
ITEM, LOG_SHARE = "in_batch/item", "in_batch/log_share"
"""Names in `PackedBatch.candidate_features`: [R, C] int32, equal for equal items; [R, C] float32, the logarithm of the
item's share of the training candidates."""


def with_identities(
    split: Split, items: Items, *, catalogue: bool, ignored: Collection[str] = ()
) -> tuple[Split, Items]:
    """A training split and its items, whose batches say of every candidate which item it is.

    `catalogue`: whether the rows of `items` are those of a catalogue; else candidates are the same that read the same,
    features that are `ignored` aside.
    """
    trained = (split.weights > 0).any(axis=1)
    number, count = split.item, len(items.tokens)
    if not catalogue:
        distinct, number = np.unique(candidate_hashes(split, items, ignored), return_inverse=True)
        count = len(distinct)
    counts = np.maximum(np.bincount(number, trained, count), 1)
    log_share = np.log(counts / counts.sum()).astype(np.float32)
    if catalogue:
        added = {ITEM: np.arange(count, dtype=np.int32), LOG_SHARE: log_share}
        return split, replace(items, features=items.features | added)
    added = {ITEM: number.astype(np.int32), LOG_SHARE: log_share[number]}
    return replace(split, candidate_features=split.candidate_features | added), items


def candidate_hashes(split: Split, items: Items, ignored: Collection[str] = ()) -> np.ndarray:
    """[M] uint64, equal for candidates whose text is, or, where none has text, whose categories are: but for those of
    features that are `ignored`, and for what losses put beside them."""
    if len(items.tokens.values):
        return hashing.hash_lists(items.tokens.values, items.tokens.offsets)[split.item]
    told = {name: x for name, x in split.candidate_features.items() if "/" not in name and name not in ignored}
    ids = [values for _, values in sorted(told.items()) if values.dtype == np.int32]
    several = [np.asarray(values).reshape(len(split.item), -1).astype(np.uint64) for values in ids]
    parts = [column for values in several for column in values.T] or [np.zeros(len(split.item), np.uint64)]
    return hashing.combine(parts)

"""States of items after the lower layers of `split`, kept in a folder: memory-mapped, and only computed where new.

states.json   fingerprint of the model, dtype      states.npy    [S, D], the tokens of one item after the other
hashes.npy    [V, 16] of the items' contents       offsets.npy   [V + 1], first token of each item
scales.npy    [S] float32, of int8 states: state = scale * integer, scale = largest magnitude of the token / 127
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import ml_dtypes
import numpy as np

from srsjax.data.store.arrays import Items
from srsjax.data.store.ragged import spans
from srsjax.files import atomic_folder, write_json
from srsjax.inference.fingerprint import HASH_BYTES, find_hashes, item_hashes, take_items
from srsjax.inference.item_vectors import as_plain, check_replaceable, read_manifest

MANIFEST = "states.json"
DTYPES = {"float32": np.dtype(np.float32), "bfloat16": np.dtype(ml_dtypes.bfloat16), "int8": np.dtype(np.int8)}


@dataclass(frozen=True)
class ItemStates:
    """The stored states of the items of a catalogue, in its order."""

    states: np.ndarray
    """[S, D] float32, bfloat16 or int8; memory-mapped where they were read from a folder."""
    scales: np.ndarray
    """[S] float32 of int8 states, else [0]."""
    offsets: np.ndarray
    """[V + 1] int64, first token of each item."""
    hashes: np.ndarray
    """[V, 16] uint8, of the contents of each item; [0, 16] where none are kept."""
    fingerprint: str
    """Of the model that computed them; empty where none are kept."""
    computed: int = 0
    """How many items had to be computed; the others were in the folder."""

    def decoded(self, dtype: np.dtype) -> np.ndarray:
        """The states [S, D] as numbers of the model's dtype of computation."""
        if self.states.dtype == np.int8:
            return (self.states * self.scales[:, None]).astype(dtype)
        return np.asarray(self.states).astype(dtype)

    def save(self, folder: str | Path) -> None:
        """Writes the folder whole, in the place of an earlier one of this kind."""
        folder = Path(folder)
        check_replaceable(folder / MANIFEST, "item states")
        with atomic_folder(folder, exists="replace") as partial:
            np.save(partial / "states.npy", as_plain(self.states))
            for name in ("scales", "offsets", "hashes"):
                np.save(partial / f"{name}.npy", getattr(self, name))
            write_json(partial / MANIFEST, {"fingerprint": self.fingerprint, "dtype": str(self.states.dtype)})

    @classmethod
    def load(cls, folder: str | Path, fingerprint: str) -> ItemStates:
        """Opens a folder memory-mapped.

        Raises InputError where it is not one that `save` wrote, or its states are those of another model.
        """
        folder = Path(folder)
        about = read_manifest(folder / MANIFEST, "item states", fingerprint)
        names = ("states", "scales", "offsets", "hashes")
        states, scales, offsets, hashes = (np.load(folder / f"{name}.npy", mmap_mode="r") for name in names)
        return cls(states.view(DTYPES[about["dtype"]]), scales, offsets, hashes, fingerprint)


def in_memory(items: Items, special: int, dtype: np.dtype, compute: Callable[[Items], np.ndarray]) -> ItemStates:
    """The states of all items, for no folder; arguments as in `update`."""
    offsets = np.concatenate([[0], np.cumsum(items.tokens.lengths + special, dtype=np.int64)])
    none = np.zeros((0, HASH_BYTES), np.uint8)
    return ItemStates(*encode(compute(items), dtype), offsets, none, "", len(items.tokens))


def update(
    known: ItemStates | None,
    items: Items,
    special: int,
    dtype: np.dtype,
    fingerprint: str,
    compute: Callable[[Items], np.ndarray],
) -> ItemStates:
    """The states of all items, computed where `known` has none of the same contents and dtype.

    Args:
      special: special tokens of an item.
      compute: items -> their states [S, D] in the dtype of computation.
    """
    hashes = item_hashes(items)
    if known is None or known.states.dtype != dtype:
        known = ItemStates(np.zeros((0, 0), dtype), np.zeros(0, np.float32), np.zeros(1, np.int64), hashes[:0], "")
    if np.array_equal(hashes, known.hashes):
        return known
    row = find_hashes(hashes, known.hashes)
    lengths = np.asarray(items.tokens.lengths) + special
    offsets = np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)])
    new, old = np.flatnonzero(row < 0), np.flatnonzero(row >= 0)
    made, made_scales = encode(compute(take_items(items, new)), dtype) if len(new) else (known.states, known.scales)
    width = made.shape[1]
    states = np.empty((offsets[-1], width), dtype)
    scales = np.empty(offsets[-1] if dtype == np.int8 else 0, np.float32)
    for rows, starts, source, source_scales in (
        (new, np.cumsum(lengths[new]) - lengths[new], made, made_scales),
        (old, known.offsets[row[old]], known.states, known.scales),
    ):
        if not len(rows):
            continue
        at, of = spans(offsets[rows], lengths[rows]), spans(starts, lengths[rows])
        states[at] = source[of]
        if dtype == np.int8:
            scales[at] = source_scales[of]
    return ItemStates(states, scales, offsets, hashes, fingerprint, len(new))


def encode(states: np.ndarray, dtype: np.dtype) -> tuple[np.ndarray, np.ndarray]:
    """States [S, D] as they are stored, and their scales [S] (int8) or [0]."""
    if dtype != np.int8:
        return states.astype(dtype), np.zeros(0, np.float32)
    states = states.astype(np.float32)
    scales = np.maximum(np.abs(states).max(axis=1), 1e-30) / 127
    return np.rint(states / scales[:, None]).astype(np.int8), scales.astype(np.float32)

"""What stored item states and vectors depend on: the parameters that computed them, and the contents of each item."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from srsjax.data.batches.layout import Layout
from srsjax.data.store.arrays import Items
from srsjax.data.store.ragged import spans
from srsjax.errors import InputError
from srsjax.model import ctr
from srsjax.model.int8 import flat
from srsjax.runs.session import Session

HASH_BYTES = 16
"""Two of a billion different items have the same hash with a probability of 2e-21."""
BLOCK_ITEMS = 1 << 14
"""Items whose contents are put side by side at a time: a few MiB."""


def model_fingerprint(session: Session, params: Mapping[str, Any], layout: Layout) -> str:
    """SHA-256 of all that decides what the model computes of an item: every parameter, what the model is, the special
    tokens around texts, and the dtype of computation.

    Equal fingerprints give equal states and vectors, to float tolerance between kinds of devices. `params` are arrays
    and `Quantized` weights by path: 8-bit weights and those that they were made of are two models.

    Raises InputError where several processes hold a part of the parameters each.
    """
    arrays = flat(params)
    apart = [path for path, array in arrays.items() if not (array.is_fully_addressable or array.is_fully_replicated)]
    if apart:
        raise InputError(
            f"mesh: {len(apart)} parameters are divided over processes ({apart[0]}, ...), expected all on each, "
            "to tell by whose parameters a folder was computed; score with mesh.fsdp 1, or name no folder"
        )
    digest = hashlib.sha256()
    dtype = ctr.merge(session.graphdef, dict(params)).bert.embeddings.dtype if session.spec.reads_text else np.float32
    about = [session.spec.to_json(), repr(layout), str(np.dtype(dtype))]
    digest.update(json.dumps(about, sort_keys=True, default=str).encode())
    for path in sorted(arrays):
        array = np.ascontiguousarray(arrays[path])
        digest.update(f"{path} {array.dtype} {array.shape}".encode())
        digest.update(array.view(np.uint8).data)
    return digest.hexdigest()


def item_hashes(items: Items) -> np.ndarray:
    """BLAKE2b of the token ids and features of each item, [V, 16] uint8: equal for items of equal contents."""
    blocks = range(0, len(items.tokens), BLOCK_ITEMS)
    digests = b"".join(_digests(items, first, min(first + BLOCK_ITEMS, len(items.tokens))) for first in blocks)
    return np.frombuffer(digests, np.uint8).reshape(-1, HASH_BYTES)


def _digests(items: Items, first: int, last: int) -> bytes:
    """The hashes of items `first` to `last` - 1, one after another.

    What is hashed of each is put side by side by numpy first: only the hash itself is a call an item.
    """
    offsets = np.asarray(items.tokens.offsets[first : last + 1], np.int64)
    lengths, four = np.diff(offsets), np.dtype(np.int32).itemsize
    parts = [lengths.astype("<i8").view(np.uint8).reshape(len(lengths), -1)]
    features = [np.ascontiguousarray(items.features[name][first:last]) for name in sorted(items.features)]
    after = [array.reshape(len(lengths), -1).view(np.uint8) for array in features]
    widths = [parts[0].shape[1], *(array.shape[1] for array in after)]
    sizes = sum(widths) + four * lengths
    ends = np.cumsum(sizes)
    data = np.empty(int(ends[-1]), np.uint8)
    _put(data, ends - sizes, parts[0])
    tokens = np.ascontiguousarray(items.tokens.values[offsets[0] : offsets[-1]], np.int32).view(np.uint8)
    data[spans(ends - sizes + widths[0], four * lengths)] = tokens
    place = ends - sum(widths[1:])
    for array in after:
        _put(data, place, array)
        place = place + array.shape[1]
    view, hashed = memoryview(data), hashlib.blake2b
    of = zip((ends - sizes).tolist(), ends.tolist(), strict=True)
    return b"".join([hashed(view[start:end], digest_size=HASH_BYTES).digest() for start, end in of])


def _put(data: np.ndarray, places: np.ndarray, rows: np.ndarray) -> None:
    """Writes rows [n, width] of bytes at places [n]."""
    data[places[:, None] + np.arange(rows.shape[1])] = rows


def find_hashes(hashes: np.ndarray, known: np.ndarray) -> np.ndarray:
    """A row of `known` [W, 16] that has each of `hashes` [V, 16], [V] int64; -1 where none has."""
    rows = pc.index_in(_as_arrow(hashes), value_set=_as_arrow(known))
    return np.asarray(rows.fill_null(-1)).astype(np.int64)


def _as_arrow(hashes: np.ndarray) -> pa.Array:
    """Hashes [V, 16] uint8 as a column of 16 bytes a row, without a copy where they are in memory."""
    buffer = pa.py_buffer(np.ascontiguousarray(hashes).data)
    return pa.Array.from_buffers(pa.binary(HASH_BYTES), len(hashes), [None, buffer])


def take_items(items: Items, rows: np.ndarray) -> Items:
    """Some items, in this order, in memory."""
    return replace(
        items,
        tokens=items.tokens.take(rows),
        features={name: np.asarray(values)[rows] for name, values in items.features.items()},
    )

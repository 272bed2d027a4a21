"""What stored item states and vectors depend on: the parameters that computed them, and the contents of each item."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace

import jax
import numpy as np

from srsjax.data.batches.layout import Layout
from srsjax.data.store.arrays import Items
from srsjax.errors import InputError
from srsjax.model import ctr
from srsjax.runs.session import Session

HASH_BYTES = 16
"""Two of a billion different items have the same hash with a probability of 2e-21."""


def model_fingerprint(session: Session, params: dict[str, jax.Array], layout: Layout) -> str:
    """SHA-256 of all that decides what the model computes of an item: every parameter, what the model is, the special
    tokens around texts, and the dtype of computation.

    Equal fingerprints give equal states and vectors, to float tolerance between kinds of devices.

    Raises InputError where several processes hold a part of the parameters each.
    """
    apart = [path for path, array in params.items() if not (array.is_fully_addressable or array.is_fully_replicated)]
    if apart:
        raise InputError(
            f"mesh: {len(apart)} parameters are divided over processes ({apart[0]}, ...), expected all on each, "
            "to tell by whose parameters a folder was computed; score with mesh.fsdp 1, or name no folder"
        )
    digest = hashlib.sha256()
    dtype = ctr.merge(session.graphdef, params).bert.embeddings.dtype if session.spec.reads_text else np.float32
    about = [session.spec.to_json(), repr(layout), str(np.dtype(dtype))]
    digest.update(json.dumps(about, sort_keys=True, default=str).encode())
    for path in sorted(params):
        array = np.ascontiguousarray(params[path])
        digest.update(f"{path} {array.dtype} {array.shape}".encode())
        digest.update(array.view(np.uint8).data)
    return digest.hexdigest()


def item_hashes(items: Items) -> np.ndarray:
    """BLAKE2b of the token ids and features of each item, [V, 16] uint8: equal for items of equal contents."""
    features = [np.ascontiguousarray(items.features[name]) for name in sorted(items.features)]
    hashes = np.empty((len(items.tokens), HASH_BYTES), np.uint8)
    for row in range(len(hashes)):
        tokens = np.ascontiguousarray(items.tokens[row], np.int32)
        digest = hashlib.blake2b(len(tokens).to_bytes(8, "little"), digest_size=HASH_BYTES)
        digest.update(tokens.tobytes())
        for values in features:
            digest.update(values[row].tobytes())
        hashes[row] = np.frombuffer(digest.digest(), np.uint8)
    return hashes


def find_hashes(hashes: np.ndarray, known: np.ndarray) -> np.ndarray:
    """The row of `known` [W, 16] that has each of `hashes` [V, 16], [V] int64; -1 where none has."""
    if not len(known):
        return np.full(len(hashes), -1, np.int64)
    wanted, have = (np.ascontiguousarray(each).view(f"V{HASH_BYTES}")[:, 0] for each in (hashes, known))
    rows = {each.tobytes(): row for row, each in enumerate(have)}
    return np.fromiter((rows.get(each.tobytes(), -1) for each in wanted), np.int64, len(wanted))


def take_items(items: Items, rows: np.ndarray) -> Items:
    """Some items, in this order, in memory."""
    return replace(
        items,
        tokens=items.tokens.take(rows),
        features={name: np.asarray(values)[rows] for name, values in items.features.items()},
    )

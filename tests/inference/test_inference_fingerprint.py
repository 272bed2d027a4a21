"""Hashes of items and of models: against hashlib item by item, and a dict."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from srsjax.data.store.arrays import Items
from srsjax.data.store.ragged import Ragged
from srsjax.inference import fingerprint
from srsjax.inference.fingerprint import find_hashes, item_hashes, take_items

ROWS = st.lists(st.lists(st.integers(0, 30), max_size=4), max_size=9)


def items_of(rows: list[list[int]], width: int) -> Items:
    """Items with a number and a vector each; rows of equal tokens have equal features."""
    first = np.array([sum(row) for row in rows], np.int32)
    features = {"price": first, "vector": np.tile(first[:, None], (1, width)).astype(np.float32)}
    return Items(Ragged.from_rows(rows, np.int32), features if width else {})


def reference(items: Items) -> np.ndarray:
    """The hashes that folders of stored items have on disk: they must never change."""
    found = []
    for row in range(len(items.tokens)):
        tokens = np.asarray(items.tokens[row], np.int32)
        data = len(tokens).to_bytes(8, "little") + tokens.tobytes()
        data += b"".join(items.features[name][row].tobytes() for name in sorted(items.features))
        found.append(list(hashlib.blake2b(data, digest_size=16).digest()))
    return np.array(found, np.uint8).reshape(-1, 16)


@given(ROWS, st.integers(0, 3))
def test_hashes_are_those_of_each_item(rows, width):
    items = items_of(rows, width)
    found = item_hashes(items)
    assert found.dtype == np.uint8
    np.testing.assert_array_equal(found, reference(items))


def test_hashes_do_not_depend_on_where_items_are_cut(monkeypatch):
    items = items_of([[n] * (n % 5) for n in range(30)], 2)
    monkeypatch.setattr(fingerprint, "BLOCK_ITEMS", 7)
    part = take_items(items, np.arange(3, 20))
    np.testing.assert_array_equal(item_hashes(items), reference(items))
    np.testing.assert_array_equal(item_hashes(part), reference(items)[3:20])
    # A part of a larger array, whose offsets do not begin at 0.
    view = Items(Ragged(items.tokens.values, items.tokens.offsets[10:]), {})
    np.testing.assert_array_equal(item_hashes(view), reference(view))


@given(ROWS, st.data())
def test_known_hashes_are_found(rows, data):
    hashes = item_hashes(items_of(rows, 1))
    known = hashes[data.draw(st.lists(st.integers(0, max(len(rows) - 1, 0)), max_size=12 if rows else 0))]
    found = find_hashes(hashes, known)
    assert found.dtype == np.int64 and found.shape == (len(hashes),)
    have = {each.tobytes() for each in known}
    for hashed, row in zip(hashes, found, strict=True):
        assert (hashed.tobytes() in have) == (row >= 0)
        assert row < 0 or known[row].tobytes() == hashed.tobytes()


@pytest.mark.parametrize("count", [0, 3])
def test_nothing_is_found_among_nothing(count):
    np.testing.assert_array_equal(
        find_hashes(np.zeros((count, 16), np.uint8), np.zeros((0, 16), np.uint8)), [-1] * count
    )

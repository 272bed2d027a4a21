"""Duplicates, impressions and splits found out of memory are those that plain Python finds."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from srsjax.data.preparing import order
from srsjax.data.reading import hashing

BLOCKS = (3, 7, 1000)


def spill(folder, columns: dict[str, list], block: int) -> order.Spill:
    kinds = order.Spill.KINDS | {"example": np.int64}
    rows = len(columns["impression"])
    arrays = {name: np.array(values, kinds[name]) for name, values in columns.items()} | {"example": np.arange(rows)}
    table = pa.table(arrays)
    return order.Spill(folder, iter(table.to_batches(max_chunksize=5)), block)


def settled(columns, group, unique) -> tuple[list[int], list[int]]:
    """Position of the first row of each kept row's impression, and the positions of the kept rows."""
    kept, first, seen = [], {}, set()
    for row in range(len(columns[group])):
        if unique and columns["unique"][row] in seen:
            continue
        seen.add(columns["unique"][row] if unique else row)
        kept.append(row)
        first.setdefault(columns[group][row], row)
    return [first[columns[group][row]] for row in kept], kept


@given(
    rows=st.lists(st.tuples(st.integers(0, 5), st.integers(0, 12), st.integers(0, 2)), min_size=1, max_size=60),
    unique=st.booleans(),
    block=st.sampled_from(BLOCKS),
)
def test_groups_and_duplicates(tmp_path_factory, rows, unique, block):
    columns = {
        "impression": list(range(len(rows))),
        "group": [row[0] for row in rows],
        "split": [row[2] for row in rows],
    }
    columns |= {"unique": [row[1] for row in rows]} if unique else {}
    folder = tmp_path_factory.mktemp("spill")
    spilled = spill(folder / "spill", columns, block)
    found = order.settle(spilled, 0.1, 0.1)
    first, kept = settled(columns, "group", unique)
    assert found.duplicates == len(rows) - len(kept)

    out = pa.Table.from_batches(list(order.in_impressions(spilled, found)))
    expected = sorted(zip(first, kept, strict=True))
    assert out["impression"].to_pylist() == [at for at, _ in expected]
    assert out["example"].to_pylist() == [row for _, row in expected]
    assert out["split"].to_pylist() == [columns["split"][at] for at, _ in expected]
    assert found.moved == sum(columns["split"][at] != columns["split"][row] for at, row in expected)


@given(
    rows=st.lists(st.tuples(st.integers(0, 8), st.integers(-4, 4)), min_size=1, max_size=60),
    shares=st.tuples(st.sampled_from([0.0, 0.2, 0.3]), st.sampled_from([0.0, 0.1, 0.3])),
    block=st.sampled_from(BLOCKS),
)
def test_time_split_keeps_order_and_groups(tmp_path_factory, rows, shares, block):
    columns = {
        "impression": list(range(len(rows))),
        "group": [row[0] for row in rows],
        "time": [row[1] for row in rows],
    }
    spilled = spill(tmp_path_factory.mktemp("spill") / "spill", columns, block)
    found = order.settle(spilled, *shares)
    group, time, split = np.array(columns["group"]), np.array(columns["time"]), np.asarray(found.split)
    earliest = np.array([time[group == one].min() for one in group])
    # By definition: each held-out part begins at the time of rank K (1 - share) among the rows' earliest times.
    ranked = np.sort(earliest)
    bounds = [round(len(rows) * (1 - share)) for share in (sum(shares), shares[1])]
    bounds = [ranked[rank] if rank < len(rows) else np.inf for rank in bounds]
    np.testing.assert_array_equal(split, (earliest >= bounds[0]).astype(int) + (earliest >= bounds[1]))


def test_exploded_impressions_stay_as_they_come(tmp_path):
    columns = {"impression": [0, 0, 2, 2, 2, 5, 6], "split": [0, 1, 2, 2, 2, 1, 0]}
    table = pa.table({"impression": columns["impression"], "split": np.array(columns["split"], np.int8)})
    spilled = order.Spill(tmp_path / "spill", iter(table.to_batches()), 4)
    out = pa.Table.from_batches(list(order.in_impressions(spilled, order.settle(spilled, 0, 0))))
    assert out["impression"].to_pylist() == [0, 0, 2, 2, 2, 5, 6]
    assert out["split"].to_pylist() == [0, 0, 2, 2, 2, 1, 0]


@given(st.lists(st.floats(allow_nan=False), min_size=1, max_size=50), st.data())
def test_kth_smallest_is_exact(values, data):
    k = data.draw(st.integers(0, len(values) - 1))
    blocks = np.array_split(np.array(values), 3)
    assert order.kth_smallest(lambda: iter(blocks), k) == np.sort(values)[k]


@given(st.lists(st.one_of(st.none(), st.text(max_size=6)), max_size=40))
def test_hashes_tell_texts_apart(texts):
    hashes = hashing.hash_texts(pa.array(texts, pa.string()))
    assert len({*texts}) == len({*hashes.tolist()})
    for text, found in zip(texts, hashes, strict=True):
        assert hashing.hash_texts(pa.array([text], pa.string()))[0] == found
    # A slice has an offset into its parent's buffers.
    np.testing.assert_array_equal(hashing.hash_texts(pa.array(texts, pa.string()).slice(1)), hashes[1:])


def test_hashes_depend_on_order_and_borders():
    lists = pa.array([["ab", "c"], ["a", "bc"], ["c", "ab"], ["abc"], [], ["ab", "c"]])
    hashes = hashing.hash_column(lists).tolist()
    assert hashes[0] == hashes[5]
    assert len(set(hashes)) == 5
    one, two = hashing.hash_texts(pa.array(["x", "y"])), hashing.hash_texts(pa.array(["y", "x"]))
    assert hashing.combine([one, two])[0] != hashing.combine([two, one])[0]


@pytest.mark.parametrize("seed", [0, 1])
def test_uniform_numbers_are_uniform(seed):
    share = hashing.uniform(hashing.hash_texts(pa.array([str(i) for i in range(20_000)])), seed)
    counts, _ = np.histogram(share, 20, (0, 1))
    # 1,000 are expected in each of 20 bins, with a deviation of 31; the hash is fixed, so this never varies.
    assert abs(counts - 1000).max() < 5 * 31

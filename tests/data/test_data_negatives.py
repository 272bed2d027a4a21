"""Items drawn as negatives: which, with what label, and the same however the log is read."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from srsjax.config import Catalogue, Categorical, Data, Schema, Split, Table, Task, Text, Tokenizer, TrainConfig
from srsjax.data.preparing import clean
from srsjax.data.preparing.prepare import prepare
from srsjax.errors import InputError

ITEMS, ROWS = 12, 600


def a_config(folder, **data) -> TrainConfig:
    return TrainConfig(
        schema=Schema(
            context=(Categorical("user"),),
            candidate=(Text("title", column="items.title"), Categorical("brand", column="items.brand")),
            tasks=(Task("bought", positive="*"),),
        ),
        data=Data(
            log=Table(str(folder / "log-*.parquet")),
            catalogues=(Catalogue(str(folder / "items.parquet")),),
            split=Split(by="hash", column="user", valid=0.2, test=0.2),
            **({"negatives": 3, "store": str(folder / "stores")} | data),
        ),
        tokenizer=Tokenizer(vocab_size=100),
    )


@pytest.fixture
def folder(tmp_path):
    rng = np.random.default_rng(0)
    names = [f"thing {chr(97 + n)}" for n in range(ITEMS)]
    pq.write_table(pa.table({"item_id": range(ITEMS), "title": names, "brand": names}), tmp_path / "items.parquet")
    for number in range(2):
        log = {
            "user": [f"u{n}" for n in rng.integers(0, 40, ROWS // 4) for _ in range(2)],
            "item_id": rng.integers(0, ITEMS, ROWS // 2),
            "basket": np.arange(ROWS // 2) // 2 + 1000 * number,
        }
        pq.write_table(pa.table(log), tmp_path / f"log-{number}.parquet")
    return tmp_path


def test_each_row_is_a_positive_and_draws_other_items_all_alike(folder):
    store = prepare(a_config(folder), log=lambda _: None)
    drawn: Counter[int] = Counter()
    for name in ("train", "valid", "test"):
        split = store.split(name)
        item, labels = split.item.reshape(-1, 4), split.labels.reshape(-1, 4)
        assert (np.diff(split.candidates) == 4).all()
        np.testing.assert_array_equal(labels, np.tile([1, 0, 0, 0], (len(item), 1)))
        assert (item[:, 1:] != item[:, :1]).all()  # never the row's own
        drawn.update(item[:, 1:].ravel().tolist())
    assert sum(drawn.values()) == 3 * ROWS
    # Binomial counts of mean 150; five standard deviations.
    assert all(abs(drawn[item] - 3 * ROWS / ITEMS) < 60 for item in range(ITEMS))


def test_the_same_items_are_drawn_however_the_log_is_read(folder, monkeypatch):
    first = prepare(a_config(folder), log=lambda _: None)
    monkeypatch.setattr(clean, "BATCH_ROWS", 17)
    second = prepare(a_config(folder, store=str(folder / "other"), workers=1), log=lambda _: None)
    for name in ("train", "test"):
        np.testing.assert_array_equal(first.split(name).item, second.split(name).item)
        np.testing.assert_array_equal(first.split(name).labels, second.split(name).labels)


def test_rows_of_one_impression_keep_their_negatives_together_and_duplicates_go_with_theirs(folder):
    store = prepare(a_config(folder, group_by="basket", unique=("user", "item_id")), log=lambda _: None)
    whole = [store.split(name) for name in ("train", "valid", "test")]
    rows = pq.ParquetDataset(sorted(folder.glob("log-*.parquet"))).read().to_pylist()
    distinct = len({(row["user"], row["item_id"]) for row in rows})
    assert sum(len(split.item) for split in whole) == 4 * distinct
    assert sum(int(split.labels.sum()) for split in whole) == distinct


@pytest.mark.parametrize(
    "change, message",
    [
        (
            {"candidate": (Text("title", column="items.title"), Categorical("user2", column="user"))},
            "feature 'user2' is",
        ),
        ({"candidate": (Text("name", column="user"),)}, "feature 'name' is not read from the catalogue"),
        (
            {"candidate": (Categorical("brand", column="items.brand"), Categorical("user2", column="user"))},
            "feature 'user2' is not read from the catalogue",
        ),
        ({"tasks": (Task("brand", kind="multiclass"),)}, "has no label 0 that a drawn item could have"),
    ],
)
def test_what_a_drawn_item_cannot_have_is_refused(folder, change, message):
    config = a_config(folder)
    with pytest.raises(InputError, match=message):
        prepare(replace(config, schema=replace(config.schema, **change)), log=lambda _: None)


def test_items_are_drawn_as_often_as_their_catalogue_says(folder):
    """Item 0 never, the last one most: shares of the mass that is left without the row's own item."""
    items = pq.read_table(folder / "items.parquet").append_column("sold", pa.array(np.arange(ITEMS)))
    pq.write_table(items, folder / "items.parquet")
    store = prepare(a_config(folder, negatives=9, negatives_by="sold"), log=lambda _: None)
    wanted, found, mass = np.zeros(ITEMS), np.zeros(ITEMS), np.arange(ITEMS, dtype=float)
    for name in ("train", "valid", "test"):
        item = store.split(name).item.reshape(-1, 10)
        assert (item[:, 1:] != item[:, :1]).all()
        found += np.bincount(item[:, 1:].ravel(), minlength=ITEMS)
        for own in item[:, 0]:
            left = np.where(np.arange(ITEMS) == own, 0, mass)
            wanted += 9 * left / left.sum()
    assert found[0] == 0 and found.sum() == 9 * ROWS
    assert (np.abs(found - wanted) < 5 * np.sqrt(wanted + 1)).all()


@given(st.integers(2, 30), st.integers(0, 1000))
def test_a_draw_is_one_by_its_cumulative_mass(count, seed):
    rng = np.random.default_rng(seed)
    mass = np.where(rng.random(count) < 0.3, 0, rng.integers(1, 5, count)).astype(float)
    mass[:2] = 1
    own, place = rng.integers(-1, count, 50), rng.random(50)
    for item, at, number in zip(own, place, clean.draw_by(np.cumsum(mass), place, own), strict=True):
        left = mass.copy()
        if item >= 0:
            left[item] = 0
        assert left[number] > 0
        below = np.cumsum(left) / left.sum()
        assert (below[number - 1] if number else 0) - 1e-9 <= at <= below[number] + 1e-9


def test_a_column_that_no_item_can_be_drawn_by_is_refused(folder):
    items = pq.read_table(folder / "items.parquet")
    for sold, message in (([-1] + [1] * (ITEMS - 1), "found -1"), ([1] + [0] * (ITEMS - 1), "found 1 rows above 0")):
        pq.write_table(items.append_column("sold", pa.array(sold)), folder / "items.parquet")
        with pytest.raises(InputError, match=rf"data\.negatives_by: {message} in column 'sold'"):
            prepare(a_config(folder, negatives_by="sold"), log=lambda _: None)
    with pytest.raises(InputError, match=r"negatives_by: found data\.negatives 0"):
        prepare(a_config(folder, negatives=0, negatives_by="sold"), log=lambda _: None)

"""Times as recency and hour of the day, and lists of items as lists of what their catalogue says of them."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from srsjax.config import Catalogue, Categorical, Data, Numeric, Schema, Split, Table, Task, Tokenizer, TrainConfig
from srsjax.data.inputs import input_specs
from srsjax.data.preparing.encode import load_encoder
from srsjax.data.preparing.prepare import prepare
from srsjax.errors import InputError

START = datetime(2026, 3, 1, 12, tzinfo=UTC)
ROWS = 12
BOUGHT = [["i0", "i2"], ["i1"], [], None, ["i9", "i2"], ["i2", "i1", "i0"]]


@pytest.fixture
def folder(tmp_path):
    """Row n is at hour n of a day; item 1 was listed a day before, item 2 at an unknown time."""
    items = {"item": ["i0", "i1", "i2"], "brand": ["acme", "bolt", None], "kind": ["a", "a", "b"]}
    listed = [START - timedelta(days=2), START - timedelta(days=1), None]
    pq.write_table(pa.table(items | {"listed": pa.array(listed, pa.timestamp("us"))}), tmp_path / "items.parquet")
    users = {"user": ["u0", "u1", "u2"], "liked": [["i1", "i0"], [], ["i2"]]}
    pq.write_table(pa.table(users), tmp_path / "users.parquet")
    log = {
        "time": [(START + timedelta(hours=n)).isoformat() for n in range(ROWS)],
        "last": [(START + timedelta(hours=n) - timedelta(seconds=10 * n)).timestamp() for n in range(ROWS)],
        "item": [f"i{n % 3}" for n in range(ROWS)],
        "user": [f"u{n % 3}" for n in range(ROWS)],
        "bought": [BOUGHT[n % len(BOUGHT)] for n in range(ROWS)],
        "click": [n % 2 for n in range(ROWS)],
        "part": ["train"] * (ROWS - 2) + ["valid", "test"],
    }
    pq.write_table(pa.table(log), tmp_path / "log.parquet")
    return tmp_path


def a_config(folder, *features, context=()) -> TrainConfig:
    return TrainConfig(
        schema=Schema(context=context, candidate=features, tasks=(Task("click"),)),
        data=Data(
            log=Table(str(folder / "log.parquet")),
            catalogues=(
                Catalogue(str(folder / "items.parquet"), key="item", unknown="drop"),
                Catalogue(str(folder / "users.parquet"), name="users", key="user", side="context"),
            ),
            split=Split(by="column", column="part"),
            store=str(folder / "stores"),
        ),
        tokenizer=Tokenizer(vocab_size=100),
    )


def test_recency_is_seconds_since_a_time_of_the_log_or_the_catalogue(folder):
    config = a_config(
        folder,
        Numeric("age", column="time", since="items.listed", missing="indicator", scale="log"),
        Numeric("away", column="time", since="last"),
        Categorical("kind", column="items.kind"),
    )
    store = prepare(config, log=lambda _: None)
    split = store.split("train")
    hours = np.arange(ROWS - 2)
    age = np.select([hours % 3 == 0, hours % 3 == 1], [48 + hours, 24 + hours], np.nan) * 3600
    np.testing.assert_allclose(split.candidate_features["age"], age)
    np.testing.assert_allclose(split.candidate_features["away"], 10 * hours, atol=0.01)
    [spec] = [spec for spec in input_specs(config.schema, store.manifest) if spec.name == "age"]
    assert spec.mean == pytest.approx(np.log1p(age[~np.isnan(age)]).mean(), rel=1e-6)
    # Values instead of files: item 1, listed at 12:00 the day before, asked for an hour later.
    given = {"item": "i1", "time": START + timedelta(hours=-23), "last": START + timedelta(hours=-23)}
    encoded = load_encoder(config, store.folder).encode_values([{}], [[given]])
    np.testing.assert_allclose(encoded.split.candidate_features["age"], [3600])
    with pytest.raises(InputError, match="no column 'last'"):
        load_encoder(config, store.folder).encode_values([{}], [[{"item": "i1", "time": START}]])


def test_an_hour_of_the_day_is_kept_to_the_second(folder):
    config = a_config(folder, Numeric("hour", column="time", scale="cyclic"))
    store = prepare(config, log=lambda _: None)
    found = store.split("train").candidate_features["hour"]
    np.testing.assert_array_equal(found, (12 + np.arange(ROWS - 2)) % 24 * 3600)
    [spec] = input_specs(config.schema, store.manifest)
    assert (spec.scale, spec.period) == ("cyclic", 86400)


def test_what_a_catalogue_says_of_listed_items_takes_their_place(folder):
    """Of keys in the log and in a catalogue; an item without a brand is unknown, one that is not there left out."""
    config = a_config(
        folder,
        Categorical("brand", column="items.brand"),
        context=(
            Categorical("brands", column="bought", of="items.brand", max_values=3, like="brand"),
            Categorical("kinds", column="users.liked", of="items.kind", max_values=2),
        ),
    )
    store = prepare(config, log=lambda _: None)
    split, vocabulary = store.split("train"), store.manifest["fitted"]["vocabularies"]
    ids = {name: 1 + n for n, name in enumerate(vocabulary["brand"])} | {None: 0}
    brands = {"i0": "acme", "i1": "bolt", "i2": None}
    for n, row in enumerate(split.context_features["brands"]):
        wanted = [ids[brands[item]] for item in (BOUGHT[n % len(BOUGHT)] or []) if item in brands]
        assert row.tolist() == [*wanted, 0, 0, 0][:3]
    kinds = {name: 1 + n for n, name in enumerate(vocabulary["kinds"])}
    assert vocabulary["kinds"] == ["a", "b"]
    for n, row in enumerate(split.context_features["kinds"]):
        assert row.tolist() == [[kinds["a"], kinds["a"]], [0, 0], [kinds["b"], 0]][n % 3]
    # Values instead of files, by the key of the user and with a list of one's own.
    encoder = load_encoder(config, store.folder)
    given = encoder.encode_values([{"user": "u0", "bought": ["i1"]}], [[{"item": "i0"}]])
    assert given.split.context_features["brands"].tolist() == [[ids["bolt"], 0, 0]]
    assert given.split.context_features["kinds"].tolist() == [[kinds["a"], kinds["a"]]]
    own = encoder.encode_values([{"liked": ["i2", "i0"], "bought": []}], [[{"item": "i0"}]])
    assert own.split.context_features["kinds"].tolist() == [[kinds["b"], kinds["a"]]]


@pytest.mark.parametrize(
    ("feature", "message"),
    [
        (Categorical("x", column="bought", of="items.brand"), "found max_values=1, expected more"),
        (Categorical("x", column="bought", of="shops.brand", max_values=2), "no catalogue 'shops'"),
        (Categorical("x", column="bought", of="items.mark", max_values=2), "mark"),
        (Categorical("x", column="bought", pooling="transformer"), "found max_values=1"),
        (Numeric("x", column="items.listed", since="time"), "found since in a column of a catalogue"),
    ],
)
def test_what_cannot_be_looked_up_is_refused(folder, feature, message):
    with pytest.raises(InputError, match=message):
        prepare(a_config(folder, feature), log=lambda _: None)


def test_a_longer_period_is_a_week(folder):
    config = a_config(folder, Numeric("day", column="time", scale="cyclic", period=604800.0))
    day = prepare(config, log=lambda _: None).split("train").candidate_features["day"][0]
    assert day == (START - datetime(1970, 1, 1, tzinfo=UTC)).total_seconds() % 604800
    assert replace(config.schema.candidate[0], period=1.0).period == 1.0

"""What the store holds for a row is what plain Python makes of the tables, value for value."""

from __future__ import annotations

import copy
import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from srsjax.config import (
    Catalogue,
    Categorical,
    Data,
    History,
    Numeric,
    Schema,
    Split,
    Table,
    Task,
    Text,
    TrainConfig,
    Vector,
)
from srsjax.data.preparing.convert import history_items, read_history, tokenize
from srsjax.data.preparing.encode import load_encoder
from srsjax.data.preparing.prepare import labelled_store, prepare
from srsjax.data.store.ragged import Ragged
from srsjax.errors import InputError

ITEMS = {
    "item_id": [10, 20, 30, 40],
    "title": ["red coat", "blue hat", None, "green scarf of fine wool"],
    "price": [1.5, None, 3.0, 4.0],
    "brand": ["Lumo", "Tarn", None, "Lumo"],
    "vector": [[0.0, 1.0], [1.0, 0.0], None, [1.0, 1.0]],
}
USERS = {"user_id": ["a", "b", "c"], "city": ["Oslo", "Bern", None], "liked": [[40, 10], [], [20]]}
LOG = {
    "user": ["a", "b", "c", "a", "b"],
    "item_id": ["10", "20", "30", "40", "10"],
    "query": ["coat", "a hat", None, "scarf", "coat"],
    "hour": [1, 2, 3, None, 5],
    "click": [1, 0, None, 1, 0],
    "split": ["train", "train", "train", "valid", "test"],
}
SCHEMA = Schema(
    context=(
        Text("query", max_tokens=3),
        History("liked", column="users.liked", fields=("title",), max_items=2, item_tokens=3, max_tokens=5),
        Categorical("city", column="users.city"),
        Numeric("hour", missing="mean"),
    ),
    candidate=(
        Text("title", column="items.title", max_tokens=3, fill="nothing"),
        Numeric("price", column="items.price", missing="median"),
        Categorical("brand", column="items.brand", missing="most_frequent"),
        Vector("vector", column="items.vector", size=2, missing="constant", fill=9.0),
    ),
    tasks=(Task("click"),),
)


def write_tables(folder, items=ITEMS, users=USERS, log=LOG) -> None:
    for name, table in {"items": items, "users": users, "log": log}.items():
        pq.write_table(pa.table(table), folder / f"{name}.parquet")


def make_config(folder, schema=SCHEMA, **data) -> TrainConfig:
    items = Catalogue(str(folder / "items.parquet"), name="items", key="item_id")
    users = Catalogue(str(folder / "users.parquet"), name="users", key="user_id", on="user", side="context")
    settings = {
        "log": Table(str(folder / "log.parquet")),
        "catalogues": (items, users),
        "split": Split(by="column", column="split"),
        "store": str(folder / "stores"),
    }
    return TrainConfig(schema=schema, data=Data(**settings | data))


def quiet(_: str) -> None:
    pass


@pytest.fixture(scope="module")
def tables(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tables")
    write_tables(folder)
    config = make_config(folder)
    return config, prepare(config, log=quiet)


@pytest.fixture(scope="module")
def encoder(tables):
    config, store = tables
    return load_encoder(config, store.folder)


def words(encoder, *texts: str, separator: bool = True) -> list[int]:
    """Ids of texts, a separator between those that are not empty."""
    ids: list[int] = []
    for text in texts:
        own = encoder.text.encode([text], 10**6)[0][0].tolist()
        ids += [encoder.text.template.separator] if ids and own and separator else []
        ids += own
    return ids


def cut(encoder, text: str, tokens: int) -> list[int]:
    return words(encoder, text)[:tokens]


def test_text_is_joined_and_cut(tables, encoder):
    _, store = tables
    separator = encoder.text.template.separator
    titles = ["red coat", "blue hat", "nothing", "green scarf of fine wool"]
    for row, title in enumerate(titles):
        assert store.items.tokens[row].tolist() == cut(encoder, title, 3)
    valid = store.split("valid")  # user a: query "scarf", liked 40 then 10
    liked = ([*cut(encoder, titles[3], 3), separator, *cut(encoder, titles[0], 3)])[:5]
    assert valid.context[0].tolist() == [*cut(encoder, "scarf", 3), separator, *liked]
    train = store.split("train")  # user b likes nothing; user c has no query
    assert train.context[1].tolist() == cut(encoder, "a hat", 3)
    assert train.context[2].tolist() == cut(encoder, "blue hat", 3)
    assert store.manifest["missing"]["query"] == {"rows": 1, "became": "the constant ''"}


def test_a_manifest_with_categories_that_are_no_texts_is_refused(tables, tmp_path):
    config, store = tables
    manifest = copy.deepcopy(store.manifest)
    manifest["fitted"]["vocabularies"]["brand"][1] = []
    (tmp_path / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(InputError, match=r"not the manifest of a store \(brand: found list among its categories"):
        load_encoder(config, tmp_path)


def test_fills_are_those_of_the_training_rows(tables):
    _, store = tables
    features = store.items.features
    # Training rows are joined with items 10, 20 and 30: prices 1.5 and 3.0, brands Lumo and Tarn, once each.
    np.testing.assert_array_equal(features["price"], np.float32([1.5, 2.25, 3.0, 4.0]))
    assert store.manifest["fitted"]["fills"] == {"price": 2.25, "brand": "Lumo", "hour": 2.0}
    assert store.manifest["fitted"]["numbers"]["hour"] == {
        "mean": 2.0,
        "std": pytest.approx((2 / 3) ** 0.5),
        "count": 3,
    }
    vocabulary = store.manifest["fitted"]["vocabularies"]
    assert vocabulary == {"brand": ["Lumo", "Tarn"], "city": ["Bern", "Oslo"]}
    np.testing.assert_array_equal(features["brand"], [1, 2, 1, 1])
    np.testing.assert_array_equal(features["vector"], np.float32([[0, 1], [1, 0], [9, 9], [1, 1]]))
    np.testing.assert_array_equal(store.split("train").context_features["city"], [2, 1, 0])
    np.testing.assert_array_equal(store.split("valid").context_features["hour"], np.float32([2.0]))


def test_labels_and_joins(tables):
    _, store = tables
    train = store.split("train")
    np.testing.assert_array_equal(train.item, [0, 1, 2])
    np.testing.assert_array_equal(train.labels, np.float32([[1], [0], [0]]))
    np.testing.assert_array_equal(train.weights, np.float32([[1], [1], [0]]))  # the third label is missing
    np.testing.assert_array_equal(train.example, [0, 1, 2])
    np.testing.assert_array_equal(store.split("test").example, [4])


def test_new_files_are_encoded_like_the_store(tables, encoder):
    config, store = tables
    for labels in (True, False):
        (chunk,) = encoder.encode_files(config.data.log, labels=labels)
        # Every column that no text and no vector is read from.
        assert chunk.keys.to_pydict() == {name: LOG[name] for name in LOG if name != "query"}
        np.testing.assert_array_equal(chunk.split.example, np.arange(5))
        np.testing.assert_array_equal(chunk.split.weights[:, 0], [1, 1, 0, 1, 1] if labels else [0] * 5)
        for name in ("train", "valid", "test"):
            split = store.split(name)
            for row, example in enumerate(split.example):
                assert chunk.split.context[example].tolist() == split.context[row].tolist()
                assert chunk.split.item[example] == split.item[row]
                assert chunk.split.context_features["hour"][example] == split.context_features["hour"][row]


def test_labelled_files_are_one_split(tables, encoder, tmp_path):
    config, _ = tables
    split = labelled_store(encoder, config.data.log, tmp_path / "new").split("test")
    np.testing.assert_array_equal(split.labels[:, 0], [1, 0, 0, 1, 0])
    bad = LOG | {"click": [1, 7, None, 1, 0]}
    pq.write_table(pa.table(bad), tmp_path / "bad.parquet")
    with pytest.raises(InputError, match="row 2, column click: found 7"):
        labelled_store(encoder, Table(str(tmp_path / "bad.parquet")), tmp_path / "refused")
    found: list = []
    store = labelled_store(encoder, Table(str(tmp_path / "bad.parquet")), tmp_path / "kept", set_aside=found.append)
    np.testing.assert_array_equal(store.split("test").example, [0, 2, 3, 4])
    assert [problem.row for problem in found] == [2] and store.manifest["rows"]["left_out"] == {"bad row": 1}


def test_values_are_encoded_like_rows(tables, encoder):
    config, _ = tables
    (rows,) = encoder.encode_files(config.data.log)
    contexts = [{"user": "a", "query": "coat", "hour": 1}, {"user": "c", "query": None, "hour": 3}]
    by_key = encoder.encode_values(contexts, [[{"item_id": 10}, {"item_id": 40}], [{"item_id": 30}]])
    np.testing.assert_array_equal(by_key.split.candidates, [0, 2, 3])
    np.testing.assert_array_equal(by_key.split.item, [0, 3, 2])
    columns = [{name: ITEMS[name][row] for name in ("title", "price", "brand", "vector")} for row in (0, 3, 2)]
    direct = encoder.encode_values(contexts, [columns[:2], columns[2:]])
    for one in (by_key, direct):
        assert [one.split.context[i].tolist() for i in range(2)] == [rows.split.context[i].tolist() for i in (0, 2)]
        for candidate, item in enumerate((0, 3, 2)):
            own = one.split.item[candidate]
            assert one.items.tokens[own].tolist() == rows.items.tokens[item].tolist()
            for name, values in rows.items.features.items():
                np.testing.assert_array_equal(one.items.features[name][own], values[item])


@pytest.mark.parametrize(
    ("context", "candidate", "message"),
    [
        ({"user": "a", "query": "x"}, {"item_id": 10}, "context values: no column 'hour'"),
        (
            {"user": "z", "query": "x", "hour": 1},
            {"item_id": 10},
            'context row 1, column user: found "z", expected a key',
        ),
        ({"user": "a", "query": "x", "hour": 1}, {"title": "x"}, "candidate values: no column 'price'"),
        ({"user": "a", "query": "x", "hour": 1}, {}, "candidate values: found nothing, expected the key of catalogue"),
        ({"user": "a", "query": "x", "hour": "noon"}, {"item_id": 10}, 'column hour: found "noon", expected a number'),
        ("coat", {"item_id": 10}, "context values: found a text, expected a mapping"),
    ],
)
def test_wrong_values(encoder, context, candidate, message):
    with pytest.raises(InputError) as error:
        encoder.encode_values([context], [[candidate]])
    assert message in str(error.value)


@given(st.lists(st.text(st.sampled_from("ab -.,\u3000é\u0301中文\t\x07"), max_size=60)), st.integers(1, 4))
def test_long_texts_give_their_first_tokens(encoder, texts, count):
    coded = tokenize(encoder.text, pa.array(texts, pa.large_string()), count)
    for text, code in zip(texts, coded.codes, strict=True):
        whole = words(encoder, text)
        assert coded.tokens[code].tolist() == whole[:count]
        assert coded.cut[code] == (len(whole) > count)


def test_several_text_sources_make_items_of_their_own(tmp_path):
    write_tables(tmp_path)
    schema = Schema(candidate=(Text("title", column="items.title"), Text("query")))
    store = prepare(make_config(tmp_path, schema), log=quiet)
    found = load_encoder(make_config(tmp_path, schema), store.folder)
    train = store.split("train")
    texts = [store.items.tokens[item].tolist() for item in train.item]
    assert texts == [words(found, "red coat", "coat"), words(found, "blue hat", "a hat"), []]
    assert len(train.context) == 3 and len(train.context.values) == 0


def test_unknown_keys_as_missing_or_left_out(tmp_path):
    write_tables(tmp_path, log=LOG | {"item_id": ["10", "99", "30", "40", "10"]})
    schema = Schema(candidate=(Text("title", column="items.title", fill="nothing"),))
    config = make_config(tmp_path, schema)
    with pytest.raises(InputError, match=r'log.parquet row 2, column item_id: found "99", expected a key of catalogue'):
        prepare(config, log=quiet)
    for unknown, items in (("missing", [0, 4, 2]), ("drop", [0, 2])):
        catalogue = Catalogue(str(tmp_path / "items.parquet"), key="item_id", unknown=unknown)
        store = prepare(make_config(tmp_path, schema, catalogues=(catalogue,)), log=quiet)
        np.testing.assert_array_equal(store.split("train").item, items)
        assert store.manifest["unknown_keys"] == {"items": 1}
        if unknown == "missing":
            assert store.items.tokens[4].tolist() == store.items.tokens[2].tolist()
        else:
            assert store.manifest["rows"]["left_out"] == {"key not in catalogue items": 1}


@given(
    lists=st.lists(st.lists(st.integers(0, 4), max_size=6), min_size=1, max_size=6),
    items=st.lists(st.lists(st.integers(1, 9), max_size=4), min_size=5, max_size=5),
    newest_first=st.booleans(),
    max_items=st.integers(1, 4),
    item_tokens=st.integers(1, 3),
    max_tokens=st.integers(1, 8),
)
def test_histories_are_cut_from_the_oldest(lists, items, newest_first, max_items, item_tokens, max_tokens):
    order = "newest_first" if newest_first else "oldest_first"
    feature = History("h", order=order, max_items=max_items, item_tokens=item_tokens, max_tokens=max_tokens)
    table = history_items([Ragged.from_rows(items, np.int32)], item_tokens, 0)
    read = read_history(feature, pa.array(lists, pa.large_list(pa.int64())), table, 0)
    for row, listed in enumerate(lists):
        newest = (listed if newest_first else listed[::-1])[:max_items]
        tokens: list[int] = []
        for item in newest:
            text = items[item][:item_tokens]
            tokens += ([0] if tokens and text else []) + text
        expected = tokens[:max_tokens]
        if len(expected) < len(tokens) and expected and expected[-1] == 0:
            expected.pop()  # nothing of the next item fits, so its separator goes too
        assert read.tokens[row].tolist() == expected
        assert read.cut[row] == (len(tokens) > max_tokens)
    assert read.items_left == sum(max(len(listed) - max_items, 0) for listed in lists)

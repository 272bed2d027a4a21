"""Lists of categories, numbers on other scales and values that stay missing, from raw files to a model's inputs."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from srsjax.config import (
    Catalogue,
    Categorical,
    Data,
    Numeric,
    Schema,
    Split,
    Table,
    Task,
    Tokenizer,
    TrainConfig,
    Vector,
)
from srsjax.data.inputs import input_specs
from srsjax.data.preparing.encode import load_encoder
from srsjax.data.preparing.prepare import labelled_store, prepare
from srsjax.errors import InputError

ROWS = 40
GENRES = [["a", "b"], ["b"], [], ["c", "a", "b", "d"], None]


def a_config(folder, *candidate, **task) -> TrainConfig:
    return TrainConfig(
        schema=Schema(context=(Categorical("user"),), candidate=candidate, tasks=(Task("click", **task),)),
        data=Data(
            log=Table(str(folder / "log.*")),
            catalogues=(Catalogue(str(folder / "items.parquet")),),
            split=Split(by="column", column="part"),
            store=str(folder / "stores"),
        ),
        tokenizer=Tokenizer(vocab_size=100),
    )


@pytest.fixture(params=["parquet", "csv"])
def folder(request, tmp_path):
    """A log with tags (a list), a price and a vector that may be missing; items with genres and counts."""
    rng = np.random.default_rng(0)
    log = {
        "user": [f"u{n % 7}" for n in range(ROWS)],
        "item_id": [n % 5 for n in range(ROWS)],
        "tags": [GENRES[n % 5] for n in range(ROWS)],
        "price": [None if n % 6 == 0 else round(float(np.exp(rng.normal(3, 1))), 2) for n in range(ROWS)],
        "image": [None if n % 4 == 0 else [float(n), 1.0] for n in range(ROWS)],
        "click": [n % 2 for n in range(ROWS)],
        "part": [("train", "train", "valid", "test")[n % 4] for n in range(ROWS)],
    }
    if request.param == "parquet":
        pq.write_table(pa.table(log), tmp_path / "log.parquet")
    else:
        lines = [",".join(log)]
        for row in zip(*log.values(), strict=True):
            cells = ["" if v is None else json.dumps(v) if isinstance(v, list) else str(v) for v in row]
            lines.append(",".join('"' + cell.replace('"', '""') + '"' for cell in cells))
        (tmp_path / "log.csv").write_text("\n".join(lines) + "\n")
    items = {"item_id": list(range(5)), "genres": GENRES, "sold": [0, 1, 10, 1000, 5]}
    pq.write_table(pa.table(items), tmp_path / "items.parquet")
    return tmp_path, log


def test_lists_of_categories_of_the_log_and_of_a_catalogue(folder):
    path, log = folder
    tags = Categorical("tags", max_values=3)
    genres = Categorical("genres", column="items.genres", max_values=2, hash_buckets=4, fill="none")
    store = prepare(a_config(path, tags, genres), log=lambda _: None)
    train = store.split("train")
    values = [log["tags"][n] for n in range(ROWS) if log["part"][n] == "train"]
    counts = {name: sum(v.count(name) for v in values if v) for name in "abcd"}
    order = sorted(counts, key=lambda name: (-counts[name], name))
    wanted = [[1 + order.index(x) for x in (v or [])[:3]] for v in values]
    wanted = [ids + [0] * (3 - len(ids)) for ids in wanted]
    np.testing.assert_array_equal(train.candidate_features["tags"], wanted)
    items = np.array([n % 5 for n in range(ROWS) if log["part"][n] == "train"])
    found = np.stack([train.candidate_features["genres"][items == item][0] for item in range(5)])
    assert found.shape == (5, 2) and found[2].tolist() == [0, 0] and (found[3] > 0).all()
    assert found[1, 0] == found[0, 1] and found[1, 1] == 0  # the same word, in a list and alone
    assert found[4, 0] > 0 and found[4, 1] == 0  # a missing list is the category that fills it
    specs = {spec.name: spec for spec in input_specs(a_config(path, tags, genres).schema, store.manifest)}
    assert (specs["tags"].size, specs["tags"].values) == (5, 3)
    assert (specs["genres"].size, specs["genres"].values) == (5, 2)


def test_numbers_by_logarithm_and_by_quantile_are_fitted_on_training_rows(folder):
    path, log = folder
    price = Numeric("price", missing="indicator", scale="log")
    same = Numeric("same", column="price", missing="median", scale="quantile", buckets=4)
    sold = Numeric("sold", column="items.sold", scale="log")
    schema = a_config(path, price, same, sold).schema
    store = prepare(a_config(path, price, same, sold), log=lambda _: None)
    train = [n for n in range(ROWS) if log["part"][n] == "train"]
    prices = np.array([np.nan if log["price"][n] is None else log["price"][n] for n in train])
    known = prices[~np.isnan(prices)]
    specs = {spec.name: spec for spec in input_specs(schema, store.manifest)}
    assert specs["price"].scale == "log" and specs["price"].may_be_missing
    assert specs["price"].mean == pytest.approx(np.log1p(known).mean())
    assert specs["price"].deviation == pytest.approx(np.log1p(known).std())
    np.testing.assert_allclose(specs["same"].edges, np.quantile(known, [0.25, 0.5, 0.75]), rtol=1e-9)
    counted = np.log1p(np.array([0, 1, 10, 1000, 5])[[n % 5 for n in train]])
    assert (specs["sold"].mean, specs["sold"].deviation) == pytest.approx((counted.mean(), counted.std()))
    stored = store.split("train").candidate_features
    np.testing.assert_allclose(stored["price"], prices.astype(np.float32))
    np.testing.assert_allclose(stored["same"], np.where(np.isnan(prices), np.median(known), prices).astype(np.float32))


def test_a_vector_may_stay_missing(folder):
    path, log = folder
    image = Vector("image", size=2, missing="indicator")
    store = prepare(a_config(path, image), log=lambda _: None)
    wanted = [log["image"][n] or [np.nan] * 2 for n in range(ROWS) if log["part"][n] == "train"]
    np.testing.assert_array_equal(store.split("train").candidate_features["image"], np.array(wanted, np.float32))
    (_, spec) = input_specs(a_config(path, image).schema, store.manifest)
    assert spec.may_be_missing
    assert store.manifest["missing"]["image"]["became"] == "a vector of the model"


def test_a_list_has_the_ids_of_the_feature_that_it_is_like(folder):
    path, _ = folder
    tags = Categorical("tags", max_values=3)
    one = Categorical("one", column="items.item_id")
    store = prepare(a_config(path, tags, one, Categorical("again", column="item_id", like="one")), log=lambda _: None)
    found = store.split("train").candidate_features
    np.testing.assert_array_equal(found["again"], found["one"])
    assert set(store.manifest["fitted"]["vocabularies"]) == {"user", "tags", "one"}


def test_a_column_that_only_training_reads_need_not_be_there_to_score(folder):
    path, _ = folder
    shown = Categorical("shown", column="user", fill="u3", training_only=True)
    price = Numeric("price", missing="constant", fill=7.0, training_only=True)
    config = a_config(path, Categorical("tags", max_values=3), shown, price)
    config = replace(config, schema=replace(config.schema, context=()))
    store = prepare(config, log=lambda _: None)
    specs = {spec.name: spec for spec in input_specs(config.schema, store.manifest)}
    vocabulary = store.manifest["fitted"]["vocabularies"]["shown"]
    assert specs["shown"].fixed == 1 + vocabulary.index("u3") and specs["price"].fixed == 7.0
    assert specs["tags"].fixed is None and len(set(store.split("train").candidate_features["shown"])) > 3
    (path / "new.jsonl").write_text('{"tags": ["a"]}\n{"tags": []}\n')
    encoder = load_encoder(config, store.folder)
    (encoded,) = encoder.encode_files(Table(str(path / "new.jsonl")), labels=False)
    np.testing.assert_array_equal(encoded.split.candidate_features["shown"], [specs["shown"].fixed] * 2)
    np.testing.assert_array_equal(encoded.split.candidate_features["price"], [7.0, 7.0])
    values = encoder.encode_values([{}], [[{"tags": ["a"]}]])
    np.testing.assert_array_equal(values.split.candidate_features["price"], [7.0])
    store = labelled_store(encoder, Table(str(path / "new.jsonl")), path / "new", labels=False)
    np.testing.assert_array_equal(store.split("test").candidate_features["price"], [7.0, 7.0])
    np.testing.assert_array_equal(store.split("test").weights, 0)


@pytest.mark.parametrize(
    "feature, message",
    [
        (Categorical("tags", max_values=2, missing="most_frequent"), "expected constant, drop or error for a list"),
        (Numeric("price", missing="mean", scale="log"), "the mean kept is that of logarithms"),
        (Categorical("user2", column="user", missing="indicator"), "found missing='indicator'"),
        (Categorical("sold", column="items.sold", training_only=True), "training_only in a column of a catalogue"),
        (Categorical("tags", like="usr"), "found like='usr', expected one of user; did you mean 'user'"),
        (Categorical("tags", like="user", hash_buckets=3), "found hash_buckets=3, expected 0 as in 'user'"),
        (Categorical("tags", max_values=3, like="user", pooling="attention"), "like a single value of the candidate"),
    ],
)
def test_settings_that_cannot_be_are_refused(folder, feature, message):
    with pytest.raises(InputError, match=message):
        prepare(a_config(folder[0], feature), log=lambda _: None)


def test_a_label_may_be_a_number_of_at_least_so_much(folder):
    path, log = folder
    store = prepare(a_config(path, Numeric("sold", column="items.sold"), column="price", positive=">=20"), log=str)
    train = [n for n in range(ROWS) if log["part"][n] == "train"]
    prices = [log["price"][n] for n in train]
    split = store.split("train")
    np.testing.assert_array_equal(split.weights[:, 0], [float(price is not None) for price in prices])
    np.testing.assert_array_equal(split.labels[:, 0], [float(price is not None and price >= 20) for price in prices])


@pytest.mark.parametrize(
    "task, message",
    [
        ({"kind": "regression", "softmax": 0.5}, "softmax is for kind binary; found kind regression"),
        (
            {"kind": "multiclass", "loss": "huber"},
            "found loss='huber', expected one of cross_entropy for kind multiclass",
        ),
        ({"positive": ">=many"}, "expected a value, or a number behind >="),
        ({"loss": "rcr"}, "loss rcr without softmax is cross_entropy"),
        ({"classes": ("a", "b")}, "classes is for kind multiclass"),
        ({"kind": "multiclass", "classes": ("a", "a")}, "named twice"),
        ({"kind": "multiclass", "column": "part"}, "the training rows have the classes train in column 'part'"),
    ],
)
def test_tasks_that_cannot_be_are_refused(folder, task, message):
    with pytest.raises(InputError, match=message):
        prepare(a_config(folder[0], Categorical("tags", max_values=3), **task), log=lambda _: None)

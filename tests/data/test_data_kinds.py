"""Every kind of feature has an object that answers for it, and its values arrive in the packed batch as the raw files
have them."""

from __future__ import annotations

import csv
import json
import typing
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from batches import make_layout

from srsjax import config
from srsjax.config import (
    Batch,
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
    Tokenizer,
    TrainConfig,
    Vector,
)
from srsjax.data.batches.loader import eval_batches, train_batches
from srsjax.data.inputs import InputSpec, input_specs
from srsjax.data.kind import ArrayKind
from srsjax.data.kinds import KINDS, kind_of, of_kind
from srsjax.data.preparing.prepare import prepare
from srsjax.data.store.tokenizer import load_tokenizer
from srsjax.errors import InputError

SCHEMA = Schema(
    context=(
        Text("query", max_tokens=4),
        Categorical("device", min_count=2),
        Categorical("device_hash", column="device", hash_buckets=5, fill="phone"),
        Categorical("city", column="users.city", missing="most_frequent"),
        Numeric("hour", missing="mean"),
        Numeric("age", column="users.age", missing="mean"),
        Vector("mood", size=2, missing="constant", fill=0.5),
        Vector("taste", column="users.taste", size=3, missing="constant"),
    ),
    candidate=(
        Text("title", column="items.title", max_tokens=4),
        Categorical("badge", fill="new"),
        Categorical("brand", column="items.brand", min_count=9),
        Categorical("brand_hash", column="items.brand", hash_buckets=3),
        Numeric("rank", missing="mean"),
        Numeric("price", column="items.price", missing="mean"),
        Vector("near", size=2, missing="constant", fill=-1.0),
        Vector("image", column="items.image", size=4, missing="constant", fill=9.0),
    ),
    tasks=(Task("click"),),
)
ARRAYS = {
    "context": ("device", "device_hash", "city", "hour", "age", "mood", "taste"),
    "candidate": ("badge", "brand", "brand_hash", "rank", "price", "near", "image"),
}
REQUESTS, USERS, ITEMS = 60, 12, 30


# ---------------------------------------------------------------------------------------------- the raw files


def make_tables() -> dict[str, dict[str, list]]:
    """A log of requests with one to five candidates each, users and items; a fifth of all values are missing."""
    rng = np.random.default_rng(5)

    def some(values: list) -> list:
        return [None if rng.random() < 0.2 else value for value in values]

    def vectors(count: int, size: int) -> list[list[float]]:
        return np.round(rng.normal(size=(count, size)), 3).tolist()

    def names(stem: str, kinds: int, count: int) -> list[str]:
        return [f"{stem}{number}" for number in np.minimum(rng.geometric(0.35, count), kinds)]

    users = {"user_id": [f"u{n}" for n in range(USERS)], "city": some(names("city", 4, USERS))}
    users |= {"age": some(rng.integers(18, 80, USERS).tolist()), "taste": some(vectors(USERS, 3))}
    items = {"item_id": [f"i{n}" for n in range(ITEMS)], "title": names("coat", 5, ITEMS)}
    items |= {"brand": some([f"brand{n}" for n in rng.integers(0, 14, ITEMS)])}
    items |= {"price": some(np.round(rng.gamma(2, 9, ITEMS), 2).tolist())}
    items |= {"image": some(vectors(ITEMS, 4))}
    contexts = {"user_id": [f"u{n}" for n in rng.integers(0, USERS, REQUESTS)], "query": names("hat", 6, REQUESTS)}
    contexts |= {"device": some(["phone", "tv", "Laptop é"][n] for n in rng.integers(0, 3, REQUESTS))}
    contexts |= {"hour": some(rng.integers(0, 24, REQUESTS).tolist()), "mood": some(vectors(REQUESTS, 2))}
    contexts |= {"part": [("train", "valid", "test")[max(n % 6 - 3, 0)] for n in range(REQUESTS)]}
    contexts["device"][4] = "fridge"  # in the valid split only
    of = np.repeat(np.arange(REQUESTS), rng.integers(1, 6, REQUESTS))
    log = {"request": [f"r{n}" for n in of]} | {name: [values[n] for n in of] for name, values in contexts.items()}
    log |= {"item_id": [f"i{n}" for n in rng.integers(0, ITEMS, len(of))], "rank": some(list(range(len(of))))}
    log |= {"badge": some(names("badge", 4, len(of))), "near": some(vectors(len(of), 2))}
    log["badge"][0] = "new"
    log |= {"click": rng.integers(0, 2, len(of)).tolist()}
    return {"log": log, "users": users, "items": items}


def write(path: Path, table: dict[str, list]) -> None:
    """As Parquet or CSV, by the name; lists in CSV are JSON."""
    if path.suffix == ".parquet":
        pq.write_table(pa.table(table), path)
        return
    cells = [["" if v is None else json.dumps(v) if isinstance(v, list) else v for v in row] for row in rows_of(table)]
    with open(path, "w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([table.keys(), *cells])


def rows_of(table: dict[str, list]) -> list[tuple]:
    return list(zip(*table.values(), strict=True))


def read_back(path: Path) -> dict[str, list]:
    """The columns of a file by plain pyarrow or csv; numbers and vectors of CSV stay text."""
    if path.suffix == ".parquet":
        return pq.read_table(path).to_pydict()
    with open(path, encoding="utf-8", newline="") as file:
        header, *rows = csv.reader(file)
    return {name: [cell or None for cell in cells] for name, cells in zip(header, zip(*rows, strict=True), strict=True)}


# ---------------------------------------------------------------------------------------------- what is expected


def hash_of(text: str) -> int:
    """The 64-bit hash of `srsjax.data.reading.hashing`'s docstring, in plain integers."""
    mask = 2**64 - 1

    def mix(x: int) -> int:
        x = (x ^ x >> 30) * 0xBF58476D1CE4E5B9 & mask
        x = (x ^ x >> 27) * 0x94D049BB133111EB & mask
        return x ^ x >> 31

    body = text.encode()
    total = sum((byte + 1) * (mix(place * 0x9E3779B97F4A7C15 & mask) | 1) for place, byte in enumerate(body, 1))
    return mix((total + len(body)) & mask)


def expected(folder: Path, suffix: str) -> dict[str, np.ndarray]:
    """Every feature of every log row, [rows, ...], from the raw files."""
    log, users, items = (read_back(folder / f"{name}{suffix}") for name in ("log", "users", "items"))
    user = [users["user_id"].index(key) for key in log["user_id"]]
    item = [items["item_id"].index(key) for key in log["item_id"]]
    train = [part == "train" for part in log["part"]]

    def column(feature) -> list:
        table, _, name = (feature.column or feature.name).rpartition(".")
        rows, held = {"": (range(len(train)), log), "users": (user, users), "items": (item, items)}[table]
        return [held[name][row] for row in rows]

    def ids(feature: Categorical) -> np.ndarray:
        values = column(feature)
        counts = Counter(value for value, seen in zip(values, train, strict=True) if seen and value is not None)
        order = sorted(counts, key=lambda value: (-counts[value], value))
        fill = order[0] if feature.missing == "most_frequent" else feature.fill or None
        values = [fill if value is None else value for value in values]
        if feature.hash_buckets:
            return np.array([0 if v is None else 1 + hash_of(v) % feature.hash_buckets for v in values])
        known = [value for value in order if counts[value] >= feature.min_count]
        return np.array([1 + known.index(value) if value in known else 0 for value in values])

    def numbers(feature: Numeric) -> np.ndarray:
        values = np.array([np.nan if value is None else float(value) for value in column(feature)])
        return np.where(np.isnan(values), np.nanmean(values[train]), values)

    def vectors(feature: Vector) -> np.ndarray:
        given = [json.loads(value) if isinstance(value, str) else value for value in column(feature)]
        return np.array([[feature.fill] * feature.size if value is None else value for value in given])

    make = {Categorical: ids, Numeric: numbers, Vector: vectors}
    features = [f for f in SCHEMA.context + SCHEMA.candidate if type(f) in make]
    return {feature.name: make[type(feature)](feature) for feature in features}


# ---------------------------------------------------------------------------------------------- from file to batch


@pytest.fixture(scope="module", params=[".parquet", ".csv"])
def prepared(request, tmp_path_factory):
    """The config, the store that `prepare` makes of the raw files, and what is expected in it."""
    folder = tmp_path_factory.mktemp("kinds")
    for name, table in make_tables().items():
        write(folder / f"{name}{request.param}", table)
    items = Catalogue(str(folder / f"items{request.param}"))
    users = Catalogue(str(folder / f"users{request.param}"), name="users", key="user_id", side="context")
    data = Data(
        log=Table(str(folder / f"log{request.param}")),
        catalogues=(items, users),
        group_by="request",
        split=Split(by="column", column="part"),
        store=str(folder / "stores"),
    )
    settings = TrainConfig(schema=SCHEMA, data=data, tokenizer=Tokenizer(vocab_size=100))
    return settings, prepare(settings, log=lambda _: None), expected(folder, request.param)


def check_batch(batch, numbers: np.ndarray, example: np.ndarray, wanted: dict[str, np.ndarray]) -> np.ndarray:
    """Every value of every slot of a batch [rows, slots]; returns the examples that it holds."""
    row, slot = np.nonzero(numbers >= 0)
    examples = example[numbers[row, slot]]
    context = row, batch.context_of[row, slot]
    for side, arrays, at in (
        ("context", batch.context_features, context),
        ("candidate", batch.candidate_features, (row, slot)),
    ):
        assert set(arrays) == set(ARRAYS[side])
        for name in ARRAYS[side]:
            ids = wanted[name].dtype.kind == "i"
            assert arrays[name].dtype == (np.int32 if ids else np.float32)
            assert arrays[name].shape == (*numbers.shape, *wanted[name].shape[1:])
            np.testing.assert_allclose(arrays[name][at], wanted[name][examples], rtol=0 if ids else 1e-6, err_msg=name)
            empty = np.ones(numbers.shape, bool)
            empty[at] = False
            assert not arrays[name][empty].any(), f"{name} in empty slots"
    return examples


@pytest.mark.parametrize("candidate_start", [None, 12], ids=["cross", "shared"])
def test_features_arrive_in_the_batch_as_the_raw_files_have_them(prepared, candidate_start):
    settings, store, wanted = prepared
    text = load_tokenizer(store.folder / "tokenizer")
    layout = make_layout(candidate_start, text.template, text.pad_id)
    part = np.array(read_back(Path(settings.data.log.files))["part"])

    split, seen = store.split("train"), []
    batch = Batch(rows=4, tokens=40, micro_batches=2)
    for packed, numbers in train_batches(split, store.items, layout, batch, whole_impressions=False, seed=1):
        for micro in range(2):
            one = packed._replace(
                context_of=packed.context_of[micro],
                context_features={name: array[micro] for name, array in packed.context_features.items()},
                candidate_features={name: array[micro] for name, array in packed.candidate_features.items()},
            )
            seen.extend(check_batch(one, numbers[micro], split.example, wanted))
    assert sorted(seen) == np.flatnonzero(part == "train").tolist()

    split, seen = store.split("valid"), []
    for packed, numbers in eval_batches(split, store.items, layout, rows=4, tokens=40):
        seen.extend(check_batch(packed, numbers, split.example, wanted))
    assert sorted(seen) == np.flatnonzero(part == "valid").tolist()


def test_the_raw_files_ask_for_every_case(prepared):
    """Missing, rare, unknown and filled values are among those that the test above compares."""
    settings, _, wanted = prepared
    log = read_back(Path(settings.data.log.files))
    for name in ("device", "hour", "mood", "badge", "rank", "near"):
        assert 0 < log[name].count(None) < len(log[name])
    fridge = [value == "fridge" for value in log["device"]]
    assert {log["part"][row] for row in np.flatnonzero(fridge)} == {"valid"}
    assert not wanted["device"][fridge].any() and wanted["device_hash"][fridge].all()
    assert wanted["badge"].all()  # a missing one is the category `new`
    assert len(set(wanted["brand"])) >= 3 and not wanted["brand"].all()  # some are seen less than `min_count` times
    assert set(wanted["brand_hash"]) == {0, 1, 2, 3}


def test_input_specs_tell_a_model_what_it_may_read(prepared):
    settings, store, wanted = prepared
    train = np.array(read_back(Path(settings.data.log.files))["part"]) == "train"
    specs = {spec.name: spec for spec in input_specs(SCHEMA, store.manifest)}
    assert [(spec.side, spec.name) for spec in specs.values()] == [
        (side, name) for side in ("context", "candidate") for name in ARRAYS[side]
    ]
    for name, size in {"device_hash": 6, "brand_hash": 4, "mood": 2, "taste": 3, "near": 2, "image": 4}.items():
        assert specs[name].size == size
    for name in ("device", "city", "badge", "brand"):
        assert (specs[name].kind, specs[name].size) == ("categorical", 1 + wanted[name][train].max())
    for name in ("hour", "age", "rank", "price"):
        assert (specs[name].kind, specs[name].size) == ("numeric", 1)
        # The mean that fills what is missing does not change the mean, but makes the deviation smaller.
        np.testing.assert_allclose(specs[name].mean, wanted[name][train].mean())
        assert specs[name].deviation > wanted[name][train].std()
    assert specs["near"] == InputSpec("near", "candidate", "vector", 2, 0.0, 1.0)
    assert json.loads((store.folder / "manifest.json").read_text())["fitted"] == store.manifest["fitted"]


def test_input_specs_need_the_statistics_of_the_schema(prepared):
    _, store, _ = prepared
    other = Schema(candidate=(Text("title"), Numeric("weight")))
    with pytest.raises(InputError, match=r"schema\.candidate feature 'weight': the manifest has no statistics of it"):
        input_specs(other, store.manifest)
    with pytest.raises(InputError, match=r"schema\.context feature 'device': the manifest has no statistics of it"):
        input_specs(SCHEMA, {"rows": {}})


# ---------------------------------------------------------------------------------------------- the kinds themselves


def test_every_feature_of_the_config_has_a_kind():
    assert set(KINDS) == set(typing.get_args(config.Feature))
    for side in ("context", "candidate"):
        allowed = typing.get_args(typing.get_args(typing.get_type_hints(Schema)[side])[0])
        assert set(allowed) == {each for each, kind in KINDS.items() if side in kind.sides}


@pytest.mark.parametrize("each", KINDS, ids=lambda each: each.__name__)
def test_a_kind_answers_for_its_feature(each):
    kind = kind_of(each("f", size=3) if each is Vector else each("f"))
    assert kind.feature.name == "f"
    assert kind.is_text == (kind.budget > 0) != isinstance(kind, ArrayKind)
    assert set(kind.policies) <= set(typing.get_args(config.Missing))
    assert hasattr(kind.feature, "missing") == bool(kind.policies)
    assert (kind.policy in kind.policies and kind.advised in kind.policies) or not kind.policies
    assert kind.problem() == ""


def test_kinds_are_found_in_the_order_of_the_schema():
    assert [kind.feature.name for kind in of_kind(SCHEMA.context, ArrayKind)] == list(ARRAYS["context"])


def test_a_category_may_read_the_column_of_a_text(tmp_path):
    for name, table in make_tables().items():
        write(tmp_path / f"{name}.parquet", table)
    schema = Schema(candidate=(Text("title", column="items.title"), Categorical("kind", column="items.title")))
    data = Data(
        log=Table(str(tmp_path / "log.parquet")),
        catalogues=(Catalogue(str(tmp_path / "items.parquet")),),
        split=Split(by="column", column="part"),
        store=str(tmp_path / "stores"),
    )
    store = prepare(TrainConfig(schema=schema, data=data, tokenizer=Tokenizer(vocab_size=100)), log=lambda _: None)
    titles = read_back(tmp_path / "items.parquet")["title"]
    kinds = store.items.features["kind"]
    assert len(set(zip(titles, kinds.tolist(), strict=True))) == len(set(titles)) == len(set(kinds.tolist()))
    assert [len(store.items.tokens[row]) > 0 for row in range(ITEMS)] == [True] * ITEMS


def test_a_history_without_a_catalogue_is_refused(tmp_path):
    write(tmp_path / "log.parquet", make_tables()["log"])
    schema = Schema(context=(History("seen", catalogue=""),), candidate=(Text("query"),))
    data = Data(log=Table(str(tmp_path / "log.parquet")), store=str(tmp_path / "stores"))
    with pytest.raises(InputError, match=r"schema\.context feature 'seen': no catalogue ''"):
        prepare(TrainConfig(schema=schema, data=data), log=lambda _: None)

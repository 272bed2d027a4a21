"""`prepare` as users rely on it: forms of logs, cleaning, splits, what is prepared again, the command."""

from __future__ import annotations

import json
from collections import defaultdict
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from prepare_cases import CONFIG, SCHEMA, WORDS, change, make_config, make_log, quiet, texts_of, write_csv

from srsjax.cli import read_config
from srsjax.config import (
    Catalogue,
    Model,
    Numeric,
    Schema,
    Split,
    Table,
    Task,
    Text,
    Tokenizer,
)
from srsjax.data.preparing.prepare import prepare
from srsjax.data.store.arrays import SPLITS

# ---------------------------------------------------------------------------------------------- forms of logs


def test_three_forms_of_a_log_give_the_same_store(tmp_path):
    log = make_log(60)
    flat, joined, lists = (tmp_path / name for name in ("flat", "joined", "lists"))
    for folder in (flat, joined, lists):
        folder.mkdir()
    write_csv(flat / "log.csv", log)

    pq.write_table(pa.table({name: log[name] for name in log if name != "title"}), joined / "log.parquet")
    titles = dict(zip(log["item"], log["title"], strict=True))
    pq.write_table(pa.table({"item": list(titles), "title": list(titles.values())}), joined / "items.parquet")
    items = Catalogue(str(joined / "items.parquet"), key="item")

    requests = defaultdict(list)
    for row, request in enumerate(log["request"]):
        requests[request].append(row)
    with open(lists / "log.jsonl", "w", encoding="utf-8") as file:
        for rows in requests.values():
            whole = {name: log[name][rows[0]] for name in ("request", "user", "query", "part")}
            shown = [{name: log[name][row] for name in ("item", "title", "click")} for row in rows]
            file.write(json.dumps(whole | {"shown": shown}) + "\n")

    configs = [
        make_config(flat, user="user"),
        make_config(
            joined,
            replace(SCHEMA, candidate=(Text("title", column="items.title"),)),
            user="user",
            log=Table(str(joined / "log.parquet")),
            catalogues=(items,),
        ),
        make_config(
            lists,
            replace(
                SCHEMA, candidate=(Text("title", column="shown.title"),), tasks=(Task("click", column="shown.click"),)
            ),
            user="user",
            log=Table(str(lists / "log.jsonl")),
            explode="shown",
            group_by=(),
        ),
    ]
    stores = [prepare(config, log=quiet) for config in configs]
    assert stores[0].manifest["tokenizer"] == stores[1].manifest["tokenizer"] == stores[2].manifest["tokenizer"]
    for name in SPLITS:
        first, *others = [texts_of(store, name) for store in stores]
        assert len(first) == log["part"].count(name) > 0
        assert others == [first, first]


def test_aggregated_rows_are_repeated_rows(tmp_path):
    shown = {"title": ["red coat", "blue hat", "silk hat"], "views": [5, 3, 0], "clicks": [2, 3, 0]}
    write_csv(tmp_path / "log.csv", shown)
    rows = [
        (title, int(n < clicks)) for title, views, clicks in zip(*shown.values(), strict=True) for n in range(views)
    ]
    write_csv(tmp_path / "rows.csv", {"title": [row[0] for row in rows], "click": [row[1] for row in rows]})
    whole = {"split": Split(valid=0, test=0), "group_by": ()}
    counted = Schema(candidate=(Text("title"),), tasks=(Task("click", column="clicks", impressions="views"),))
    aggregated = prepare(make_config(tmp_path, counted, **whole), log=quiet)
    repeated = prepare(
        make_config(tmp_path, Schema(candidate=(Text("title"),)), log=Table(str(tmp_path / "rows.csv")), **whole),
        log=quiet,
    )
    split = aggregated.split("train")
    np.testing.assert_array_equal(split.labels[:, 0], np.float32([0.4, 1.0, 0.0]))
    np.testing.assert_array_equal(split.weights[:, 0], np.float32([5, 3, 0]))
    one, other = (store.manifest["splits"]["train"]["labels"]["click"] for store in (aggregated, repeated))
    assert one["weighted_mean"] == pytest.approx(other["weighted_mean"], rel=1e-7)  # float32 0.4
    assert one["weight"] == other["weight"] == 8


# ---------------------------------------------------------------------------------------------- cleaning and splits


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 2), st.integers(0, 1)), min_size=1, max_size=30), st.data())
def test_duplicates_and_scattered_impressions(tmp_path_factory, rows, data):
    unique = data.draw(st.sampled_from(["*", ("request", "title"), ()]))
    folder = tmp_path_factory.mktemp("log")
    log = {"request": [f"r{row[0]}" for row in rows], "title": [WORDS[row[1]] for row in rows]}
    log |= {"click": [row[2] for row in rows]}
    write_csv(folder / "log.csv", log)
    schema = Schema(candidate=(Text("title"),))
    config = make_config(folder, schema, unique=unique, split=Split(valid=0, test=0))
    split = prepare(config, log=quiet).split("train")

    seen, impressions = set(), defaultdict(list)
    for row in range(len(rows)):
        names = log if unique == "*" else unique
        identity = tuple(log[name][row] for name in names) if unique else row
        if identity not in seen:
            impressions[log["request"][row]].append(row)
        seen.add(identity)
    assert [split.example[a:b].tolist() for a, b in zip(split.candidates, split.candidates[1:], strict=False)] == list(
        impressions.values()
    )
    np.testing.assert_array_equal(split.labels[:, 0], [log["click"][row] for row in split.example])


@pytest.mark.parametrize(
    "split",
    [
        Split(by="hash", column="item", valid=0.2, test=0.3),
        Split(by="hash", valid=0.2, test=0.3),
        Split(by="time", column="time", valid=0.2, test=0.3),
        Split(by="column", column="part"),
    ],
)
def test_no_impression_stands_in_two_splits(tmp_path, split):
    log = make_log(200)
    scattered = np.random.default_rng(1).permutation(200)
    log = {name: [values[row] for row in scattered] for name, values in log.items()}
    write_csv(tmp_path / "log.csv", log)
    store = prepare(make_config(tmp_path, split=split), log=quiet)
    found = {name: {log["request"][row] for row in store.split(name).example} for name in SPLITS}
    assert sum(map(len, found.values())) == len(set(log["request"])) == len(set.union(*found.values()))
    assert all(found.values())
    if split.by == "time":
        ends = {name: [log["time"][row] for row in store.split(name).example] for name in SPLITS}
        assert min(ends["valid"]) > max(ends["train"]) - 10 and min(ends["test"]) > max(ends["valid"]) - 10
    if split.by == "hash" and not split.column:
        assert store.manifest["rows"]["moved"] == 0


def test_users_are_told_apart(tmp_path):
    log = make_log(60)
    log["user"][5] = ""
    write_csv(tmp_path / "log.csv", log)
    store = prepare(make_config(tmp_path, group_by=(), split=Split(valid=0, test=0), user="user"), log=quiet)
    split = store.split("train")
    numbers = dict(zip(log["user"], split.user.tolist(), strict=True))
    assert split.user.tolist() == [numbers[user] for user in log["user"]]
    assert len(set(numbers.values())) == len(set(log["user"]))


@pytest.mark.parametrize(
    ("missing", "kept", "filled", "became"),
    [
        ("drop", 4, [], "left out"),
        ("constant", 6, [7.0, 7.0], "the constant 7.0"),
        ("mean", 6, [2.75, 2.75], "the mean value 2.75"),
        ("median", 6, [2.0, 2.0], "the median value 2.0"),
        ("most_frequent", 6, [2.0, 2.0], "the most frequent value 2.0"),
    ],
)
def test_missing_numbers(tmp_path, missing, kept, filled, became):
    log = {"title": ["x"] * 6, "price": ["2", "", "1", "2", "n/a", "6"], "click": [0] * 6}
    write_csv(tmp_path / "log.csv", log)
    schema = Schema(candidate=(Text("title"), Numeric("price", missing=missing, fill=7.0)))
    store = prepare(make_config(tmp_path, schema, group_by=(), split=Split(valid=0, test=0)), log=quiet)
    prices = store.split("train").candidate_features["price"]
    assert len(prices) == kept
    assert [price for row, price in zip(store.split("train").example, prices, strict=True) if row in (1, 4)] == filled
    assert store.manifest["missing"] == {"price": {"rows": 2, "became": became}}


def test_manifest_counts_what_was_cut(tmp_path):
    log = {"query": ["red coat", "hat"], "title": ["red red red red", "hat"], "click": [1, 0], "part": ["train"] * 2}
    write_csv(tmp_path / "log.csv", log)
    schema = Schema(context=(Text("query", max_tokens=1),), candidate=(Text("title", max_tokens=3),))
    store = prepare(make_config(tmp_path, schema, group_by=(), split=Split(valid=0, test=0)), log=quiet)
    assert store.manifest["cut"] == {"query": 1, "title": 1}
    tokens = store.manifest["splits"]["train"]["tokens"]
    assert (tokens["context"]["max"], tokens["candidate"]["max"], tokens["pair"]["max"]) == (1, 3, 4)
    assert tokens["candidate"]["p50"] == 1


# ---------------------------------------------------------------------------------------------- prepared again or not


def test_only_what_has_changed_is_prepared_again(tmp_path):
    write_csv(tmp_path / "log.csv", make_log(40))
    config = make_config(tmp_path)
    said: list[str] = []
    first = prepare(config, log=said.append)
    assert "the first store of this log" in said[0]
    written = (first.folder / "manifest.json").stat().st_mtime_ns
    said.clear()
    assert prepare(config, log=said.append).folder == first.folder
    assert "nothing it depends on has changed" in said[0] and len(said) == 1
    assert (first.folder / "manifest.json").stat().st_mtime_ns == written

    longer = replace(config, schema=replace(SCHEMA, candidate=(Text("title", max_tokens=2),)))
    words = replace(config, tokenizer=Tokenizer(vocab_size=100))
    by_time = replace(config, data=replace(config.data, split=Split(by="time", column="time")))
    for changed, what in ((longer, "schema"), (words, "tokenizer"), (by_time, "data.split")):
        said.clear()
        assert prepare(changed, log=said.append).folder != first.folder
        assert what in said[0]
    write_csv(tmp_path / "log.csv", make_log(41))
    said.clear()
    assert prepare(config, log=said.append).folder != first.folder
    assert "log.csv" in said[0]


# ---------------------------------------------------------------------------------------------- real data


@pytest.mark.parametrize(
    ("name", "candidates", "rate"),
    [
        # Rows of each split and the share of positive labels as the data sets' READMEs have them.
        ("upworthy", (15051, 2477, 2544), 0.0167),
        ("product_matching", (12617, 2146, 2063), 0.104),
        ("esci", (1592, 245, 463), 0.597),
        ("reviews", (13161, 1920, 3747), 0.823),
    ],
)
def test_real_data(tmp_path, monkeypatch, data_sets, name, candidates, rate):
    monkeypatch.setenv("SRSJAX_DATA", str(data_sets))
    config = read_config(name)
    short = tuple(replace(feature, max_tokens=4) for feature in config.schema.candidate)
    config = replace(config, schema=replace(config.schema, candidate=short), model=Model())
    config = replace(config, tokenizer=Tokenizer(vocab_size=500), data=replace(config.data, store=str(tmp_path)))
    store = prepare(config, log=quiet)
    assert tuple(store.manifest["splits"][split]["candidates"] for split in SPLITS) == candidates
    (label,) = store.manifest["splits"]["train"]["labels"].values()
    assert label["weighted_mean"] == pytest.approx(rate, abs=6e-4)
    examples = np.concatenate([store.split(split).example for split in SPLITS])
    np.testing.assert_array_equal(np.sort(examples), np.arange(sum(candidates)))


# ---------------------------------------------------------------------------------------------- the command


def test_the_command(tmp_path, command):
    (tmp_path / "ctr.py").write_text(CONFIG)
    write_csv(tmp_path / "log.csv", change("click", 7, 2))
    refused = command("prepare", "--config", "ctr.py", cwd=tmp_path)
    assert refused.returncode == 2
    assert len(refused.stderr.strip().splitlines()) == 1 and "log.csv row 8, column click" in refused.stderr
    done = command("prepare", "--config", "ctr.py", "--data.on_bad_row", "skip", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "bad row: 1" in done.stdout

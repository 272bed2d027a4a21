"""`prepare` as users rely on it: forms of logs, cleaning, splits, what is prepared again, bad input, crashes."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
from collections import defaultdict
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from srsjax.cli import read_config
from srsjax.config import (
    Catalogue,
    Data,
    Model,
    Numeric,
    Schema,
    Split,
    Table,
    Task,
    Text,
    Tokenizer,
    TrainConfig,
)
from srsjax.data.folders import building
from srsjax.data.prepare import prepare
from srsjax.data.store import SPLITS, Store
from srsjax.errors import InputError

WORDS = ["red", "blue", "coat", "hat", "wool", "silk", "大衣", "帽子"]


def quiet(_: str) -> None:
    pass


def make_log(rows: int, seed: int = 0) -> dict[str, list]:
    """A flat log of requests, each with one to four rows that stand together."""
    rng = np.random.default_rng(seed)
    request = np.cumsum(rng.random(rows) < 0.4)
    item = rng.integers(0, 12, rows)
    return {
        "request": [f"r{number}" for number in request],
        "user": [f"u{number % 7}" for number in request],
        "query": [" ".join(np.random.default_rng(number).choice(WORDS, 2)) for number in request],
        "item": [f"i{number}" for number in item],
        "title": [" ".join(np.random.default_rng(100 + number).choice(WORDS, 3)) for number in item],
        "time": (1000 + request * 10 + rng.integers(0, 5, rows)).tolist(),
        "price": (rng.integers(1, 9, rows) / 2).tolist(),
        "click": rng.integers(0, 2, rows).tolist(),
        "part": [SPLITS[min(number % 10 // 4, 2)] for number in request],
    }


def write_csv(path: Path, log: dict[str, list]) -> None:
    with open(path, "w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([log.keys(), *zip(*log.values(), strict=True)])


SCHEMA = Schema(context=(Text("query"),), candidate=(Text("title"),), tasks=(Task("click"),))


def make_config(folder: Path, schema: Schema = SCHEMA, **data) -> TrainConfig:
    settings = {"log": Table(str(folder / "log.csv")), "split": Split(by="column", column="part")}
    settings |= {"group_by": "request", "store": str(folder / "stores")}
    return TrainConfig(schema=schema, data=Data(**settings | data), tokenizer=Tokenizer(vocab_size=200))


def texts_of(store: Store, name: str) -> list[tuple]:
    """Every candidate of a split: example, context, candidate text, labels, weights, impression, user."""
    split = store.split(name)
    return [
        (
            int(split.example[row]),
            split.context[impression].tolist(),
            store.items.tokens[split.item[row]].tolist(),
            split.labels[row].tolist(),
            split.weights[row].tolist(),
            int(impression),
            int(split.user[impression]),
        )
        for row, impression in enumerate(split.impression)
    ]


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


# ---------------------------------------------------------------------------------------------- bad input


def change(name: str, row: int, value) -> dict[str, list]:
    log = make_log(40)
    log[name][row] = value
    return log


PRICED = replace(SCHEMA, candidate=(Text("title"), Numeric("price")))
BAD = {
    "missing column": (SCHEMA, {k: v for k, v in make_log(40).items() if k != "title"}, "no column 'title'"),
    "text in a number": (PRICED, change("price", 3, "cheap"), 'row 4, column price: found "cheap", expected a number'),
    "missing number": (PRICED, change("price", 3, ""), 'Numeric("price", missing="median")'),
    "label 2": (SCHEMA, change("click", 7, 2), 'row 8, column click: found "2", expected'),
    "no impression": (SCHEMA, change("request", 7, ""), "row 8, column request: found nothing, expected a value"),
    "empty split": (SCHEMA, make_log(40) | {"part": ["train"] * 40}, "the valid split is empty; of 40 rows 40 train"),
    "two features of a name": (
        replace(SCHEMA, context=(Text("title"),)),
        make_log(40),
        "two features are named 'title'",
    ),
    "median of a text": (replace(SCHEMA, context=(Text("query", missing="median"),)), make_log(40), "missing='median'"),
    "no budget": (
        replace(SCHEMA, context=(Text("query", max_tokens=0),)),
        make_log(40),
        "max_tokens=0, expected at least 1",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_line_and_leaves_nothing(tmp_path, case):
    schema, log, message = BAD[case]
    write_csv(tmp_path / "log.csv", log)
    with pytest.raises(InputError) as error:
        prepare(make_config(tmp_path, schema), log=quiet)
    assert message in str(error.value) and "\n" not in str(error.value)
    assert not (tmp_path / "stores").exists() or not list((tmp_path / "stores").iterdir())


def test_empty_file(tmp_path):
    (tmp_path / "log.csv").touch()
    with pytest.raises(InputError, match=r"log.csv: an empty file"):
        prepare(make_config(tmp_path), log=quiet)


def test_a_key_twice_in_a_catalogue(tmp_path):
    write_csv(tmp_path / "log.csv", make_log(40))
    write_csv(tmp_path / "items.csv", {"item": ["i1", "i2", "i3", "i2"], "title": ["a", "b", "c", "d"]})
    schema = replace(SCHEMA, candidate=(Text("title", column="items.title"),))
    catalogue = Catalogue(str(tmp_path / "items.csv"), key="item")
    with pytest.raises(InputError, match=r"items.csv row 4: the same key \(item\) as .*items.csv row 2"):
        prepare(make_config(tmp_path, schema, catalogues=(catalogue,)), log=quiet)


def test_bad_rows_are_set_aside(tmp_path):
    log = change("price", 3, "cheap")
    log["click"][9] = 2
    write_csv(tmp_path / "log.csv", log)
    store = prepare(make_config(tmp_path, PRICED, on_bad_row="skip"), log=quiet)
    aside = [json.loads(line) for line in (store.folder / "bad_rows.jsonl").read_text().splitlines()]
    assert [(bad["row"], bad["column"], bad["found"]) for bad in aside] == [
        (4, "price", '"cheap"'),
        (10, "click", '"2"'),
    ]
    assert store.manifest["rows"]["left_out"] == {"bad row": 2}
    kept = sorted(row for name in SPLITS for row in store.split(name).example.tolist())
    assert kept == [row for row in range(40) if row not in (3, 9)]


@pytest.mark.parametrize("group_by", ["request", ()])
def test_nothing_left_is_an_empty_split(tmp_path, group_by):
    write_csv(tmp_path / "log.csv", make_log(10) | {"click": [2] * 10})
    with pytest.raises(InputError, match=r"the train split is empty; of 10 rows 0 train, .*, 10 left out \(bad row\)"):
        prepare(make_config(tmp_path, group_by=group_by, on_bad_row="skip"), log=quiet)
    assert not list((tmp_path / "stores").iterdir())


def test_a_context_that_is_bad_for_all_its_candidates_is_set_aside_once(tmp_path):
    rows = [{"price": "cheap", "title": ["a", "b"], "click": [0, 1]}, {"price": "2", "title": ["c"], "click": [1]}]
    rows.append({"price": "2", "title": ["c", "d"], "click": [1]})
    (tmp_path / "log.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    schema = Schema(context=(Numeric("price"),), candidate=(Text("title"),))
    data = {"log": Table(str(tmp_path / "log.jsonl")), "explode": ("title", "click"), "group_by": ()}
    store = prepare(make_config(tmp_path, schema, split=Split(valid=0, test=0), on_bad_row="skip", **data), log=quiet)
    aside = [json.loads(line) for line in (store.folder / "bad_rows.jsonl").read_text().splitlines()]
    assert sorted((bad["row"], bad["column"]) for bad in aside) == [(1, "price"), (3, "click")]
    assert store.split("train").example.tolist() == [2]


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

CONFIG = """
from srsjax.config import *
def get_config():
    return TrainConfig(
        schema=Schema(candidate=(Text("title"),)),
        data=Data(log=Table("log.csv"), split=Split(valid=0.0, test=0.0)),
        tokenizer=Tokenizer(vocab_size=100),
    )
"""


def test_the_command(tmp_path, command):
    (tmp_path / "ctr.py").write_text(CONFIG)
    write_csv(tmp_path / "log.csv", change("click", 7, 2))
    refused = command("prepare", "--config", "ctr.py", cwd=tmp_path)
    assert refused.returncode == 2
    assert len(refused.stderr.strip().splitlines()) == 1 and "log.csv row 8, column click" in refused.stderr
    done = command("prepare", "--config", "ctr.py", "--data.on_bad_row", "skip", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "bad row: 1" in done.stdout


# ---------------------------------------------------------------------------------------------- memory

# VmHWM and not ru_maxrss, which begins at what the parent process had when it forked.
MEASURED = """
from srsjax.config import *
from srsjax.data.prepare import prepare
prepare(
    TrainConfig(
        schema=Schema(candidate=(Text("title", max_tokens=8), Numeric("price", missing="median"))),
        data=Data(
            log=Table("log.parquet"), group_by="request", unique=("request", "price"),
            split=Split(by="time", column="price"),
        ),
        tokenizer=Tokenizer(vocab_size=100),
    ),
    log=lambda _: None,
)
status = dict(line.split(":", 1) for line in open("/proc/self/status"))
print(int(status["VmHWM"].split()[0]) // 1024)
"""


def peak_memory(folder: Path, rows: int) -> int:
    """MiB that a process holds at most to prepare scattered impressions with 2 kB of text a row."""
    rng = np.random.default_rng(0)
    pool = pa.array([" ".join(rng.choice(WORDS, 420)) for _ in range(100)])
    folder.mkdir()
    with pq.ParquetWriter(folder / "log.parquet", pa.schema(LOG_TYPES)) as writer:
        for _ in range(0, rows, 12_000):
            columns = {
                "request": rng.integers(0, rows // 4, 12_000),
                "title": pool.take(pa.array(rng.integers(0, 100, 12_000))),
            }
            columns |= {"price": rng.random(12_000), "click": rng.integers(0, 2, 12_000)}
            writer.write_table(pa.table(columns, pa.schema(LOG_TYPES)))
    # What is freed counts no more: without this Arrow's allocator keeps pages for a while, more on a busy machine.
    environment = os.environ | {"MIMALLOC_PURGE_DELAY": "0"}
    done = subprocess.run([sys.executable, "-c", MEASURED], cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return int(done.stdout)


LOG_TYPES = {"request": pa.int64(), "title": pa.string(), "price": pa.float64(), "click": pa.int64()}


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="peak memory is read from /proc")
def test_memory_does_not_grow_with_the_log(tmp_path):
    few, many = (peak_memory(tmp_path / str(rows), rows) for rows in (12_000, 120_000))
    # 108,000 more rows are 210 MB of text. What may grow are pages of memory-mapped numbers (about 100 bytes a row,
    # 11 MB, which the kernel takes back when it needs them) and batches that are not yet full with few rows (16 MB and
    # three copies).
    assert many - few < 75, f"{few} MiB for 12,000 rows, {many} MiB for 120,000"


# ---------------------------------------------------------------------------------------------- crashes and races

KILLED = """
import os, signal, sys
from srsjax.data import prepare, writer
append = writer.StoreWriter.append
def die(self, *args):
    append(self, *args)
    os.kill(os.getpid(), signal.SIGKILL)
writer.StoreWriter.append = die
sys.path.insert(0, ".")
import ctr
prepare.prepare(ctr.get_config())
"""


def test_a_killed_run_leaves_nothing_that_is_trusted(tmp_path):
    (tmp_path / "ctr.py").write_text(CONFIG)
    write_csv(tmp_path / "log.csv", make_log(40))
    killed = subprocess.run([sys.executable, "-c", KILLED], cwd=tmp_path, env=os.environ, capture_output=True)
    assert killed.returncode == -signal.SIGKILL
    (left,) = (tmp_path / "stores").iterdir()
    assert left.name.endswith(".partial")
    config = make_config(tmp_path, Schema(candidate=(Text("title"),)), group_by=(), split=Split(valid=0.0, test=0.0))
    said: list[str] = []
    store = prepare(config, log=said.append)
    assert "preparing" in said[0] and len(store.split("train")) == 40
    assert list((tmp_path / "stores").iterdir()) == [store.folder]


def test_two_that_build_the_same_folder(tmp_path):
    with building(tmp_path / "store") as slow:
        (slow / "whole").touch()
        with building(tmp_path / "store") as fast:
            assert slow.exists() and slow != fast
            (fast / "whole").touch()
            (fast / "fast").touch()
    assert [path.name for path in tmp_path.iterdir()] == ["store"]
    assert sorted(path.name for path in (tmp_path / "store").iterdir()) == ["fast", "whole"]


def test_a_failed_block_leaves_nothing(tmp_path):
    with pytest.raises(ZeroDivisionError), building(tmp_path / "store"):
        1 / 0  # noqa: B018
    assert list(tmp_path.iterdir()) == []


def test_preparing_imports_no_jax():
    code = "import sys, srsjax.data.prepare; print(sorted({'jax', 'torch', 'transformers'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "[]"

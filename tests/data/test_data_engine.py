"""The engines of `prepare`: any number of threads and a Spark cluster write the same store, byte for byte."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shutil
import sys
import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from prepare_cases import SCHEMA, change, make_config, make_log, quiet, write_csv

from srsjax.config import (
    Catalogue,
    Categorical,
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
from srsjax.data.preparing.engine import in_order
from srsjax.data.preparing.prepare import prepare
from srsjax.data.reading import tables
from srsjax.data.store import manifest
from srsjax.errors import InputError


@pytest.fixture(scope="module")
def spark():
    """A session with two cores of this machine."""
    if not (importlib.util.find_spec("pyspark") and importlib.util.find_spec("pandas")):
        pytest.skip("pyspark or pandas is not installed (the extra [spark])")
    if not (os.environ.get("JAVA_HOME") or shutil.which("java")):
        pytest.skip("Spark needs Java, which is not installed")
    from pyspark.sql import SparkSession

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYSPARK_PYTHON", sys.executable)
        builder = SparkSession.builder.master("local[2]").config("spark.ui.enabled", "false")
        session = builder.config("spark.ui.showConsoleProgress", "false").getOrCreate()
        yield session
        session.stop()


# ---------------------------------------------------------------------------------------------- the same store


def files_of(folder: Path) -> dict[str, bytes]:
    """Every file of a store; without the time it took, which the manifest says, and the manifest's own checksum."""
    out = {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    out["manifest.json"] = re.sub(rb'"(seconds": [0-9.]+|checksum": "\w+")', b"", out["manifest.json"])
    return out


def streamed(folder: Path) -> TrainConfig:
    """Several CSV files with texts in them, streamed straight through: nothing to group, a hash decides the split."""
    for part in range(3):
        write_csv(folder / f"log-{part}.csv", make_log(9000 if part == 1 else 50, seed=part))
    log = Table(str(folder / "log-*.csv"))
    return make_config(folder, log=log, group_by=(), split=Split(valid=0.2, test=0.2, column="request"))


def joined(folder: Path) -> TrainConfig:
    """Parquet files of several row groups, scattered impressions, duplicates, users and values that are missing, bad
    rows, two catalogues (one of them with the log's history), and every kind of feature."""
    rng = np.random.default_rng(0)
    for part, rows in enumerate((20_000, 300)):
        pick = {name: rng.integers(0, n, rows) for name, n in (("r", 4000), ("i", 70), ("w", 400))}
        log = {
            "request": [f"r{n}" for n in pick["r"]],
            "user": [f"u{n % 90}" if n % 90 else None for n in pick["r"]],
            "item": [f"i{n}" for n in pick["i"]],
            "brand": [f"b{n % 9}" if n % 5 else None for n in pick["w"]],
            "price": [None if n % 7 == 0 else "cheap" if n == 1 else str(n / 2) for n in pick["w"]],
            "note": [None if n % 3 == 0 else f"word{n % 11} word{n}" for n in pick["w"]],
            "seen": [[f"i{(n + k) % 75}" for k in range(n % 4)] for n in pick["r"]],
            "time": rng.random(rows),
            "click": rng.integers(0, 2, rows),
        }
        pq.write_table(pa.table(log), folder / f"log-{part}.parquet", row_group_size=8192)
    items = {
        "item": [f"i{n}" for n in range(64)],
        "title": [f"coat{n % 5} hat{n}" for n in range(64)],
        "weight": [None if n % 6 == 0 else n / 3 for n in range(64)],
        "shape": [[n / 2, n % 3] for n in range(64)],
    }
    pq.write_table(pa.table(items), folder / "items.parquet")
    people = [{"user": f"u{n}", "town": f"t{n % 4}"} for n in range(1, 90)]
    (folder / "people.jsonl").write_text("".join(json.dumps(each) + "\n" for each in people))
    schema = Schema(
        context=(
            History("seen", catalogue="items", fields=("title",)),
            Categorical("town", column="people.town", missing="constant"),
        ),
        candidate=(
            Text("title", column="items.title"),
            Text("note", missing="most_frequent"),
            Categorical("brand", missing="constant"),
            Numeric("price", missing="median"),
            Numeric("weight", column="items.weight", missing="mean"),
            Vector("shape", column="items.shape", size=2),
        ),
        tasks=(Task("click"),),
    )
    return make_config(
        folder,
        schema,
        log=Table(str(folder / "log-*.parquet")),
        catalogues=(
            Catalogue(str(folder / "items.parquet"), name="items", key="item", unknown="drop"),
            Catalogue(str(folder / "people.jsonl"), name="people", key="user", unknown="missing", side="context"),
        ),
        user="user",
        unique=("request", "item"),
        split=Split(by="time", column="time", valid=0.1, test=0.1),
        on_bad_row="skip",
    )


def exploded(folder: Path) -> TrainConfig:
    """Rows of JSON with a list of candidates each, and the catalogue's rows as the store's items."""
    rng = np.random.default_rng(1)
    rows = [{"query": f"red {n % 13}", "item": [f"i{k}" for k in rng.integers(0, 20, 1 + n % 3)]} for n in range(2500)]
    rows = [row | {"click": rng.integers(0, 2, len(row["item"])).tolist()} for row in rows]
    rows[7]["click"] = [1] * 9
    (folder / "log.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    items = [{"item": f"i{n}", "title": f"hat {n}"} for n in range(20)]
    (folder / "items.jsonl").write_text("".join(json.dumps(item) + "\n" for item in items))
    return make_config(
        folder,
        replace(SCHEMA, candidate=(Text("title", column="items.title"),)),
        log=Table(str(folder / "log.jsonl")),
        catalogues=(Catalogue(str(folder / "items.jsonl"), name="items", key="item"),),
        explode=("item", "click"),
        group_by=(),
        split=Split(valid=0.1, test=0.1),
        on_bad_row="skip",
    )


CASES = {"streamed": streamed, "joined": joined, "exploded": exploded}


def prepared(config: TrainConfig, folder: Path, **settings) -> dict[str, bytes]:
    config = replace(config, data=replace(config.data, store=str(folder), **settings))
    return files_of(prepare(config, log=quiet).folder)


@pytest.mark.parametrize("case", CASES)
def test_any_number_of_threads_writes_the_same_store(tmp_path, case):
    config = CASES[case](tmp_path)
    one, many = (prepared(config, tmp_path / f"stores{workers}", workers=workers) for workers in (1, 3))
    assert len(one) > 20 and one == many
    assert ("bad_rows.jsonl" in one) == (case != "streamed")


@pytest.mark.parametrize("case", CASES)
def test_spark_writes_the_same_store(tmp_path, case, spark):
    config = CASES[case](tmp_path)
    local, cluster = (prepared(config, tmp_path / engine, engine=engine) for engine in ("local", "spark"))
    assert len(local) > 20 and local == cluster


def test_the_fingerprint_does_not_say_who_did_the_work(tmp_path):
    write_csv(tmp_path / "log.csv", make_log(40))
    config = make_config(tmp_path)
    other = replace(config, data=replace(config.data, engine="spark", workers=7))
    assert manifest.describe_input(config, None) == manifest.describe_input(other, None)


@pytest.mark.parametrize("group_rows", [512, 1000, 5000])
def test_pieces_are_read_as_the_whole_file_is(tmp_path, group_rows):
    log = pa.table({"a": np.arange(5000), "b": [f"t{n % 70}" for n in range(5000)]})
    pq.write_table(log, tmp_path / "1.parquet", row_group_size=group_rows)
    pq.write_table(
        log.set_column(1, "b", log["b"].dictionary_encode()), tmp_path / "2.parquet", row_group_size=group_rows
    )
    table, names = Table(str(tmp_path / "*.parquet")), ["b", "a"]
    pieces = tables.pieces(table, names, 256)
    assert len(pieces) == {512: 10 + 1, 1000: 1 + 1, 5000: 1 + 1}[group_rows]
    parts = [chunk for piece in pieces for chunk in tables.read_piece(piece, table, names, 256)]
    whole = list(tables.read(table, names, 256))
    assert [(c.path, c.first_row, c.batch.to_pydict()) for c in parts] == [
        (c.path, c.first_row, c.batch.to_pydict()) for c in whole
    ]


# ---------------------------------------------------------------------------------------------- what goes wrong

PRICED = replace(SCHEMA, candidate=(Text("title"), Numeric("price")))
BAD = {
    "two bad rows": (PRICED, change("price", 3, "cheap"), 'log-0.csv row 4, column price: found "cheap", expected'),
    "missing column": (SCHEMA, {k: v for k, v in make_log(40).items() if k != "title"}, "no column 'title'"),
    "empty split": (SCHEMA, make_log(40) | {"part": ["train"] * 40}, "the valid split is empty; of 80 rows 80 train"),
    "no rows": (SCHEMA, {name: [] for name in make_log(1)}, "log-1.csv: no rows, expected at least one"),
}


@pytest.mark.parametrize("case", BAD)
def test_spark_says_in_the_same_line_what_is_wrong_and_leaves_nothing(tmp_path, case, spark):
    schema, log, message = BAD[case]
    for part in range(2):
        write_csv(tmp_path / f"log-{part}.csv", log)
    config, said = make_config(tmp_path, schema, log=Table(str(tmp_path / "log-*.csv"))), []
    for engine in ("local", "spark"):
        with pytest.raises(InputError) as error:
            prepare(replace(config, data=replace(config.data, engine=engine)), log=quiet)
        said.append(str(error.value))
        assert not list((tmp_path / "stores").glob("*"))
    assert said[0] == said[1] and message in said[0] and "\n" not in said[0]


@pytest.mark.parametrize("package", ["pyspark.sql", "pandas"])
def test_without_the_extra(tmp_path, monkeypatch, package):
    write_csv(tmp_path / "log.csv", make_log(40))
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(InputError, match=r"pip install 'srsjax\[spark\]'"):
        prepare(make_config(tmp_path, engine="spark"), log=quiet)
    assert not list((tmp_path / "stores").iterdir())


def test_negative_workers(tmp_path):
    write_csv(tmp_path / "log.csv", make_log(40))
    with pytest.raises(InputError, match=r"data.workers: found -1, expected 0"):
        prepare(make_config(tmp_path, workers=-1), log=quiet)


# ---------------------------------------------------------------------------------------------- threads in order


def test_results_come_in_order_and_few_are_held():
    alive, most, lock = set(), [0], threading.Lock()
    first = threading.Event()

    def work(number: int) -> int:
        if number == 0:
            first.wait(30)  # the first is done last of those under way
        with lock:
            alive.add(number)
            most[0] = max(most[0], len(alive))
        if number == 2:
            first.set()
        return number

    got = []
    for number in in_order(work, range(50), 3):
        got.append(number)
        with lock:
            alive.discard(number)
    assert got == list(range(50)) and 2 < most[0] <= 4 + 1


@pytest.mark.parametrize("workers", [1, 4])
def test_the_first_failure_in_input_order_is_raised(workers):
    def work(number: int) -> int:
        if number == 3:
            raise InputError("row 3")
        return number

    def inputs():
        yield from range(5)
        raise InputError("the file ends")

    got = []
    with pytest.raises(InputError, match="row 3"):
        got.extend(number for number in in_order(work, inputs(), workers) if got.append(number))
    assert got == [0, 1, 2]
    with pytest.raises(InputError, match="the file ends"):
        list(in_order(lambda number: number, inputs(), workers))


def test_what_was_prepared_is_said_once_with_its_rate(tmp_path):
    write_csv(tmp_path / "log.csv", make_log(400))
    said: list[str] = []
    for _ in range(2):
        prepare(make_config(tmp_path), log=said.append)
    rates = [
        text for text in said if re.search(r"^400 rows in [0-9.]+ s: [0-9,]+ rows/s, [0-9.]+ MB/s, peak memory", text)
    ]
    assert len(rates) == 1

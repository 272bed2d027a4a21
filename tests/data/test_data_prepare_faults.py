"""`prepare` where something is wrong: bad input, little memory, kills and races."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from child_memory import needs_status, peak_memory
from prepare_cases import CONFIG, SCHEMA, WORDS, change, make_config, make_log, quiet, write_csv

from srsjax.config import (
    Catalogue,
    Numeric,
    Schema,
    Split,
    Table,
    Task,
    Text,
)
from srsjax.data.preparing.prepare import prepare
from srsjax.data.store.arrays import SPLITS
from srsjax.errors import InputError
from srsjax.files import atomic_folder

# ---------------------------------------------------------------------------------------------- bad input

PRICED = replace(SCHEMA, candidate=(Text("title"), Numeric("price")))
BAD = {
    "missing column": (SCHEMA, {k: v for k, v in make_log(40).items() if k != "title"}, "no column 'title'"),
    "text in a number": (PRICED, change("price", 3, "cheap"), 'row 4, column price: found "cheap", expected a number'),
    "number beyond float32": (
        PRICED,
        change("price", 3, "1e39"),
        'row 4, column price: found "1e39", expected a number',
    ),
    "label beyond float32": (
        replace(SCHEMA, tasks=(Task("price", kind="regression"),)),
        change("price", 3, "-1e39"),
        'row 4, column price: found "-1e39", expected a number',
    ),
    "weight beyond float32": (
        replace(SCHEMA, tasks=(Task("click", impressions="shown", weight="price"),)),
        change("price", 3, "1e30") | {"shown": ["1e30"] * 40},
        "row 4, column price: found",
    ),
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


# ---------------------------------------------------------------------------------------------- memory

MEASURED = """
from srsjax.config import *
from srsjax.data.preparing.prepare import prepare
prepare(
    TrainConfig(
        schema=Schema(candidate=(Text("title", max_tokens=8), Numeric("price", missing="median"))),
        data=Data(
            log=Table("log.parquet"), group_by="request", unique=("request", "price"),
            split=Split(by="time", column="price"),
            workers=2,
        ),
        tokenizer=Tokenizer(vocab_size=100),
    ),
    log=lambda _: None,
)
"""


def peak_of_prepare(folder: Path, rows: int) -> int:
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
    return peak_memory(MEASURED, cwd=folder)


LOG_TYPES = {"request": pa.int64(), "title": pa.string(), "price": pa.float64(), "click": pa.int64()}


@needs_status
def test_memory_does_not_grow_with_the_log(tmp_path):
    # 24,000 rows keep the threads of two cores busy. 216,000 more are 420 MB of text. What may grow are pages of
    # memory-mapped numbers (about 100 bytes a row, 22 MB, which the kernel takes back when it needs them).
    few, many = (peak_of_prepare(tmp_path / str(rows), rows) for rows in (24_000, 240_000))
    assert many - few < 75, f"{few} MiB for 24,000 rows, {many} MiB for 240,000"


# ---------------------------------------------------------------------------------------------- crashes and races

KILLED = """
import os, signal, sys
from srsjax.data.preparing import prepare
from srsjax.data.preparing import writer
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
    with atomic_folder(tmp_path / "store", exists="keep") as slow:
        (slow / "whole").touch()
        with atomic_folder(tmp_path / "store", exists="keep") as fast:
            assert slow.exists() and slow != fast
            (fast / "whole").touch()
            (fast / "fast").touch()
    assert [path.name for path in tmp_path.iterdir()] == ["store"]
    assert sorted(path.name for path in (tmp_path / "store").iterdir()) == ["fast", "whole"]


def test_a_failed_block_leaves_nothing(tmp_path):
    with pytest.raises(ZeroDivisionError), atomic_folder(tmp_path / "store"):
        1 / 0  # noqa: B018
    assert list(tmp_path.iterdir()) == []


def test_preparing_imports_no_jax():
    code = (
        "import srsjax.data.preparing.prepare, sys; print(sorted({'jax', 'torch', 'transformers'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "[]"


# ---------------------------------------------------------------------------------------------- cut files

READS = """
import sys
from pathlib import Path
from srsjax.data.store.arrays import open_store

store = open_store(sys.argv[1])
weights = store.split("train").weights
path = Path(sys.argv[1]) / "train/weights.npy"
if sys.argv[2] == "cut":
    path.write_bytes(b"")
    print(weights.sum())
else:
    import ctypes, mmap
    other = Path(sys.argv[1]) / "other"
    other.write_bytes(bytes(4096))
    with open(other, "r+b") as file:
        mapped = mmap.mmap(file.fileno(), 4096)
    other.write_bytes(b"")
    print(mapped[0])
"""


@pytest.mark.parametrize("what, code", [("cut", 2), ("another file", -signal.SIGBUS)])
def test_a_file_that_is_cut_while_it_is_read_is_one_line(tmp_path, what, code):
    write_csv(tmp_path / "log.csv", make_log(200))
    folder = prepare(make_config(tmp_path), log=quiet).folder
    done = subprocess.run([sys.executable, "-c", READS, folder, what], capture_output=True, text=True)
    assert done.returncode == code, done.stderr
    if what == "cut":
        assert done.stderr.count("\n") == 1 and "train/weights.npy: found 0 bytes, expected" in done.stderr


def test_a_partial_store_is_removed_also_where_nothing_is_prepared(tmp_path):
    write_csv(tmp_path / "log.csv", make_log(40))
    prepare(make_config(tmp_path), log=quiet)
    partial = tmp_path / "stores/.log-0123456789ab.00.partial"
    partial.mkdir()
    os.utime(partial, (0, 0))
    prepare(make_config(tmp_path), log=quiet)
    assert not partial.exists()


@pytest.mark.parametrize(
    "column",
    [
        pa.array([[("a", 1)], None] * 20, pa.map_(pa.string(), pa.int64())),
        pa.array([b"\xff", None] * 20, pa.binary()),
        pa.array([[b"\xff"], None] * 20, pa.list_(pa.large_binary())),
    ],
    ids=str,
)
def test_a_column_of_any_type_counts_for_whether_a_row_is_a_duplicate(tmp_path, column):
    log = make_log(40)
    pq.write_table(
        pa.table({name: [values[0]] * 40 for name, values in log.items()} | {"more": column}), tmp_path / "log.parquet"
    )
    config = make_config(
        tmp_path, log=Table(str(tmp_path / "log.parquet")), unique="*", group_by="", split=Split(valid=0.0, test=0.0)
    )
    assert prepare(config, log=quiet).manifest["rows"]["left_out"] == {"duplicate": 38}

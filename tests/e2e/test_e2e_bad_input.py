"""Bad input: one line on standard error that says what and where, exit code 2, nothing half-written."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest


@pytest.fixture
def shop(trained, tmp_path):
    """A copy of the shop's files: the log as one table, the items, and where both are."""
    logs = [pq.read_table(path) for path in sorted((trained / "data/shop").glob("log-*.parquet"))]
    pq.write_table(pa.concat_tables(logs), tmp_path / "log.parquet")
    pq.write_table(pq.read_table(trained / "data/shop/items.parquet"), tmp_path / "items.parquet")
    return tmp_path


def drop_column(folder: Path):
    table = pq.read_table(folder / "log.parquet")
    pq.write_table(table.rename_columns({"query": "querry"}), folder / "log.parquet")


def put(folder: Path, column: str, value, kind: type):
    """Row 42 of that column becomes the value."""
    table = pq.read_table(folder / "log.parquet")
    values = table[column].to_pylist()
    values[41] = value
    changed = pa.array([kind(each) for each in values])
    pq.write_table(table.set_column(table.column_names.index(column), column, changed), folder / "log.parquet")


def text_in_number_column(folder: Path):
    put(folder, "click", "maybe", str)


def label_two(folder: Path):
    put(folder, "click", 2, int)


def unknown_item(folder: Path):
    put(folder, "item_id", "i-none", str)


def empty_file(folder: Path):
    (folder / "log.parquet").write_bytes(b"")


def truncated(folder: Path):
    whole = (folder / "log.parquet").read_bytes()
    (folder / "log.parquet").write_bytes(whole[: len(whole) // 2])


def as_csv(folder: Path):
    (folder / "log.csv").write_text("request_id,user_id,item_id,query,history,time,click,click_probability\n")


CASES = {
    "missing column": (drop_column, (), "log.parquet: no column 'query'", "querry"),
    "text in a number column": (text_in_number_column, (), 'log.parquet row 42, column click: found "maybe"', ""),
    "label 2": (label_two, (), "log.parquet row 42, column click: found 2", "0"),
    "empty file": (empty_file, (), "log.parquet", "empty"),
    "empty split": (None, ("--data.split.by", "column", "--data.split.column", "user_id"), "train", "split"),
    "truncated Parquet": (truncated, (), "log.parquet", "Parquet"),
    "unknown encoding": (
        as_csv,
        ("--data.log.files", "log.csv", "--data.log.encoding", "utf-88"),
        "utf-88",
        "encoding",
    ),
    "item key not in the catalogue": (unknown_item, (), "log.parquet row 42", "i-none"),
    "config typo": (None, ("--optimizer.lerning_rate", "1"), "--optimizer.lerning_rate", "--optimizer.learning_rate"),
    "wrong folder as weights": (None, ("--model.pretrained", "."), "error: .: no tokenizer there", "tokenizer.json"),
    "budgets longer than a row": (None, ("--batch.tokens", "32"), "batch.tokens: found 32", "max_tokens"),
    "two contexts in one impression": (None, ("--data.group_by", "user_id"), "data.group_by", "'query'"),
    "number out of range": (None, ("--log_every", "0"), "log_every: found 0", "at least 1"),
    "negative seed": (None, ("--seed", "-5"), "--seed: found -5", "at least 0"),
    "a sextillion steps": (None, ("--max_steps", str(10**21)), "--max_steps: found 1", "at most 100,000,000"),
    "epochs without end": (None, ("--epochs", "1e30", "--max_steps", "0"), "epochs: found", "at most 100,000,000"),
    "rows that no device holds": (None, ("--batch.rows", "100000000"), "batch.rows: found 100,000,000", "GiB"),
    "width that no device holds": (None, ("--model.hidden_size", "100000000"), "model: found an encoder of", "GiB"),
    "unknown metric": (None, ("--evaluate.monitor", "aucc"), "evaluate.monitor: found 'aucc'", "'auc'"),
}


@pytest.mark.parametrize("case", CASES)
def test_bad_input_is_one_line_and_exit_code_2(shop, command, small, case):
    spoil, arguments, where, what = CASES[case]
    if spoil:
        spoil(shop)
    before = {path.name for path in shop.iterdir()}
    files = ("--data.shop.folder", "", "--data.log.files", "log.parquet", "--data.catalogues.0.files", "items.parquet")
    done = command("train", "--config", "ctr.py", *small, *files, *arguments, cwd=shop)
    assert done.returncode == 2, done.stderr
    line = done.stderr
    assert line.startswith("error: ") and line.count("\n") == 1, line
    assert where in line and what in line, line
    assert not (shop / "runs").exists()
    left = {path.name for path in shop.iterdir()} - before
    whole = [path for path in (shop / "stores").iterdir()] if "stores" in left else []
    assert left <= {"stores"} and all((store / "manifest.json").exists() for store in whole), left

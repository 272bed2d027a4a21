"""Scoring that is killed, stopped, refused or repeated: the files are those of one run that nothing interrupted."""

from __future__ import annotations

import fcntl
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest

from srsjax import score
from srsjax.errors import InputError
from srsjax.inference.scorer import Scorer
from srsjax.runs.run_folder import RunFolder

CONFIG = """
from srsjax.config import *

def get_config():
    return TrainConfig(
        schema=Schema(
            context=(Categorical("user"),), candidate=(Categorical("item"), Numeric("price")), tasks=(Task("click"),)
        ),
        data=Data(log=Table("log.csv"), keys=("user", "item"), split=Split(valid=0.2, test=0.2)),
        model=Model(combine="concat", hidden_size=32),
        batch=Batch(rows=8, tokens=64),
        max_steps=3,
    )
"""
ROWS = 40_000
NEW = ("--input", "new-*.csv", "--part_rows", "500", "--data.on_bad_row", "skip")
"""Some 80 parts, of which a kill finds some made; one row is bad."""


def make_log(rows: int, seed: int) -> dict[str, list]:
    rng = np.random.default_rng(seed)
    return {
        "user": [f"u{number}" for number in rng.integers(0, 50, rows)],
        "item": [f"i{number}" for number in rng.integers(0, 200, rows)],
        "price": rng.uniform(1, 9, rows).round(2).tolist(),
        "click": rng.integers(0, 2, rows).tolist(),
    }


@pytest.fixture(scope="module")
def shop(command, tmp_path_factory) -> Path:
    """A folder with the runs `runs/a` and `runs/b`, and rows to score."""
    folder = tmp_path_factory.mktemp("score")
    pa.csv.write_csv(pa.table(make_log(1000, 0)), folder / "log.csv")
    (folder / "ids.py").write_text(CONFIG)
    done = command("train", "--config", "ids.py", "--run_dir", "runs/a", cwd=folder)
    assert done.returncode == 0, done.stderr
    shutil.copytree(folder / "runs/a", folder / "runs/b")
    report = json.loads((folder / "runs/b/report.json").read_text())
    config = json.loads((folder / "runs/b/config.json").read_text())
    (folder / "runs/b/config.json").write_text(json.dumps(config | {"seed": 7}))
    RunFolder(folder / "runs/b").bind([folder / "runs/b/config.json"], 3)
    assert report["best_step"] == 3
    new = make_log(ROWS, 1)
    new["price"] = [str(price) for price in new["price"]]
    new["price"][1234] = "cheap"
    half = ROWS // 2
    for number, rows in enumerate((slice(0, half), slice(half, ROWS))):
        pa.csv.write_csv(pa.table({name: values[rows] for name, values in new.items()}), folder / f"new-{number}.csv")
    return folder


@pytest.fixture(scope="module")
def whole(shop, command) -> Path:
    """The scores of a run that nothing interrupts."""
    done = command("score", "--run", "runs/a", *NEW, "--output", "whole", cwd=shop)
    assert done.returncode == 0, done.stderr
    assert f"{ROWS - 1:,} rows scored in" in done.stdout and "1 bad rows set aside" in done.stdout
    return shop / "whole"


def start(shop: Path, output: str, *arguments: object) -> subprocess.Popen:
    environment = {
        key: value
        for key, value in os.environ.items()
        if key not in ("JAX_NUM_CPU_DEVICES", "JAX_DISABLE_MOST_OPTIMIZATIONS")
    }
    return subprocess.Popen(
        [sys.executable, "-m", "srsjax.score", "--run", "runs/a", "--output", output, *map(str, arguments)],
        cwd=shop,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def wait_for_parts(process: subprocess.Popen, folder: Path, count: int) -> int:
    """Until the folder has so many parts, or the process ends; returns how many there are."""
    deadline = time.monotonic() + 120
    while process.poll() is None and time.monotonic() < deadline:
        if (found := len(list(folder.glob("part-*.parquet")))) >= count:
            return found
        time.sleep(0.001)
    return len(list(folder.glob("part-*.parquet")))


def contents(folder: Path) -> dict[str, bytes]:
    """All files of a folder; a lock or a partial file would be one."""
    return {file.name: file.read_bytes() for file in sorted(folder.iterdir())}


def in_process(shop: Path, monkeypatch, *arguments: object, run: str = "runs/a") -> int:
    monkeypatch.chdir(shop)
    return score.main(["--run", run, *map(str, arguments)])


def test_the_folder_says_that_it_is_complete_and_readers_see_the_scores_alone(whole):
    names = [file.name for file in sorted(whole.iterdir())]
    assert names[:2] == ["_SUCCESS", "_bad_rows-00002.jsonl"] and names[2:4] == ["_manifest.json", "part-00000.parquet"]
    assert json.loads((whole / "_SUCCESS").read_text()) == {
        "parts": 80,
        "rows": ROWS - 1,
        "set_aside": 1,
        "unknown": {},
    }
    bad = json.loads((whole / "_bad_rows-00002.jsonl").read_text())
    assert (bad["file"], bad["row"], bad["column"], bad["found"]) == ("new-0.csv", 1235, "price", '"cheap"')
    table, expected = ds.dataset(whole).to_table(), make_log(ROWS, 1)["item"]
    assert table["item"].to_pylist() == expected[:1234] + expected[1235:]
    assert np.isfinite(table["score"].to_numpy()).all()


def test_killed_again_and_again_it_makes_what_is_missing_and_no_more(shop, whole):
    """Each start finds the files that the one before left, and does not write them again."""
    chance, output, before = random.Random(0), shop / "killed", {}
    for kill in range(3):
        process = start(shop, "killed", *NEW)
        reached = wait_for_parts(process, output, len(before) + chance.randint(1, 15))
        time.sleep(chance.uniform(0, 0.05))
        process.kill()
        process.communicate()
        made = {file.name: file.stat().st_ino for file in output.glob("part-*.parquet")}
        assert not (output / "_SUCCESS").exists() and len(made) >= reached > len(before), kill
        assert before.items() <= made.items()
        before = made
    process = start(shop, "killed", *NEW)
    said, errors = process.communicate()
    assert process.returncode == 0, errors
    assert f"{len(before)} parts are complete; going on" in said
    assert before.items() <= {file.name: file.stat().st_ino for file in output.iterdir()}.items()
    assert contents(output) == contents(whole)
    assert [path.name for path in shop.iterdir() if path.name.startswith(".")] == []


def test_a_signal_stops_it_with_the_exit_code_of_what_may_go_on(shop, whole):
    process = start(shop, "stopped", *NEW)
    wait_for_parts(process, shop / "stopped", 3)
    process.send_signal(signal.SIGTERM)
    said, errors = process.communicate()
    assert process.returncode == 75 and errors == "", errors
    made = len(list((shop / "stopped").glob("part-*.parquet")))
    assert f"stopped: {made} parts are complete; run the same command to go on" in said and 3 <= made < 80
    process = start(shop, "stopped", *NEW)
    assert process.wait() == 0, process.communicate()
    process.communicate()
    assert contents(shop / "stopped") == contents(whole)


def test_scores_are_replaced_when_the_new_ones_are_complete_and_not_before(shop, whole, monkeypatch):
    """A replacement is killed: the old scores stay complete, and the next start goes on."""
    assert in_process(shop, monkeypatch, *NEW, "--output", "replaced", run="runs/b") == 0
    output, beside, old = shop / "replaced", shop / ".replaced.new", contents(shop / "replaced")
    with pytest.raises(InputError, match=r"replaced: holds scores made otherwise \(run\); .*--overwrite"):
        in_process(shop, monkeypatch, *NEW, "--output", "replaced")
    process = start(shop, "replaced", *NEW, "--overwrite")
    wait_for_parts(process, beside, 5)
    process.kill()
    process.communicate()
    assert contents(output) == old and len(list(beside.glob("part-*.parquet"))) >= 5
    process = start(shop, "replaced", *NEW, "--overwrite")
    said, errors = process.communicate()
    assert process.returncode == 0 and "going on" in said, errors
    assert contents(output) == contents(whole) and not beside.exists()
    assert in_process(shop, monkeypatch, *NEW, "--output", "replaced", "--overwrite") == 0
    assert contents(output) == contents(whole)


@pytest.mark.slow
@pytest.mark.parametrize("overwrite", [False, True], ids=["new", "replaced"])
def test_killed_at_any_moment_the_scores_come_out_the_same(shop, whole, monkeypatch, overwrite):
    """Kills from the start of the process on, also before it scores and when it ends."""
    output, options, chance = f"anytime-{overwrite}", ("--overwrite",) if overwrite else (), random.Random(1)
    old = None
    if overwrite:
        assert in_process(shop, monkeypatch, *NEW, "--output", output, run="runs/b") == 0
        old = contents(shop / output)
    seconds = 4.0
    for _ in range(12):
        began = time.monotonic()
        process = start(shop, output, *NEW, *options)
        try:
            process.communicate(timeout=chance.uniform(0, seconds))
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()
        else:
            seconds = time.monotonic() - began
        found = contents(shop / output) if (shop / output).exists() else {}
        if overwrite:
            assert found in (old, contents(whole))
        elif "_SUCCESS" in found:
            assert found == contents(whole)
    process = start(shop, output, *NEW, *options)
    _, errors = process.communicate()
    assert process.returncode == 0, errors
    assert contents(shop / output) == contents(whole)
    assert not [path.name for path in shop.iterdir() if path.name.startswith(f".{output}")]


# ---------------------------------------------------------------------------------------------- in this process


@pytest.fixture(scope="module")
def small(shop) -> Path:
    """The same 300 rows as Parquet, CSV and JSON lines."""
    log = make_log(300, 2)
    table = pa.table(log)
    pq.write_table(table, shop / "small.parquet", row_group_size=70)
    pa.csv.write_csv(table, shop / "small.csv")
    (shop / "small.jsonl").write_text("".join(json.dumps(row) + "\n" for row in table.to_pylist()))
    return shop


def test_formats_give_the_same_scores(small, monkeypatch):
    """Bit for bit: parts are cut by rows, not by how a file is stored."""
    found = []
    for kind in ("parquet", "csv", "jsonl"):
        arguments = ("--input", f"small.{kind}", "--output", f"of-{kind}", "--part_rows", 64)
        assert in_process(small, monkeypatch, *arguments) == 0
        found.append(ds.dataset(small / f"of-{kind}").to_table())
        assert [len(pq.read_table(file)) for file in sorted((small / f"of-{kind}").glob("*.parquet"))] == [64] * 4 + [
            44
        ]
    assert found[0] == found[1] == found[2]


def test_a_complete_folder_is_left_alone_and_missing_parts_are_made(small, monkeypatch, capsys):
    arguments = ("--input", "small.csv", "small.parquet", "--output", "again", "--part_rows", 100)
    assert in_process(small, monkeypatch, *arguments) == 0
    before = contents(small / "again")
    capsys.readouterr()
    assert in_process(small, monkeypatch, *arguments) == 0
    assert "again: these 600 rows are scored already" in capsys.readouterr().out
    for lost in (["part-00001.parquet"], ["part-00000.parquet", "part-00004.parquet"], sorted(before)[1:]):
        for name in ("_SUCCESS", *lost):
            (small / "again" / name).unlink()
        assert in_process(small, monkeypatch, *arguments) == 0
        assert contents(small / "again") == before, lost


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (("--part_rows", 50), "settings.part_rows 100 there, 50 here"),
        (("--data.keys", "item"), "settings.keys"),
        (("--input", "small.parquet"), "input small.csv; input small.parquet"),
    ],
)
def test_scores_made_otherwise_are_refused(small, monkeypatch, change, said):
    given = {"--input": "small.csv", "--part_rows": 100, "--output": "other"}
    assert in_process(small, monkeypatch, *(word for pair in given.items() for word in pair)) == 0
    changed = given | {change[0]: change[1]}
    with pytest.raises(InputError, match="made otherwise") as refused:
        in_process(small, monkeypatch, *(word for pair in changed.items() for word in pair))
    assert said in str(refused.value)


def test_an_input_that_changed_is_refused_and_what_is_no_score_is_never_deleted(small, monkeypatch):
    shutil.copy(small / "small.csv", small / "touched.csv")
    arguments = ("--input", "touched.csv", "--output", "touched")
    assert in_process(small, monkeypatch, *arguments) == 0
    os.utime(small / "touched.csv", ns=(1, 1))
    with pytest.raises(InputError, match=r"input touched\.csv"):
        in_process(small, monkeypatch, *arguments)
    (small / "touched/mine.txt").write_text("mine")
    with pytest.raises(InputError, match=r"holds more than files of scores \(mine\.txt\)"):
        in_process(small, monkeypatch, *arguments, "--overwrite")
    assert (small / "touched/mine.txt").read_text() == "mine" and (small / "touched/_SUCCESS").exists()


def test_a_kill_while_the_folders_change_places_loses_nothing(small, monkeypatch):
    """Where that takes two steps: the new scores are complete, and their place is empty."""
    arguments = ("--input", "small.csv", "--output", "swapped", "--part_rows", 100)
    assert in_process(small, monkeypatch, *arguments) == 0
    before = contents(small / "swapped")
    (small / "swapped").rename(small / ".swapped.new")
    assert in_process(small, monkeypatch, *arguments, "--overwrite") == 0
    assert contents(small / "swapped") == before and not (small / ".swapped.new").exists()


def test_two_commands_do_not_write_to_one_folder(small, monkeypatch):
    with open(small / ".busy.lock", "a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        lock.write(json.dumps({"pid": 12345, "host": "elsewhere", "since": "2026-11-26 12:00:00 +0000"}))
        lock.flush()
        with pytest.raises(InputError, match="in use by process 12345 on elsewhere since 2026-11-26 12:00:00"):
            in_process(small, monkeypatch, "--input", "small.csv", "--output", "busy")
    assert in_process(small, monkeypatch, "--input", "small.csv", "--output", "busy") == 0  # nobody holds it now
    assert not (small / ".busy.lock").exists()


def test_a_score_that_is_not_finite_is_an_error_that_names_its_row(small, monkeypatch, capsys):
    """As a model gives it whose sums overflow for a price like no other."""
    plain = Scorer.raw_logits

    def overflowing(self, split, *arguments, **named):
        logits = plain(self, split, *arguments, **named)
        logits[split.candidate_features["price"] > 1e38] = np.nan
        return logits

    monkeypatch.setattr(Scorer, "raw_logits", overflowing)
    log = make_log(300, 3)
    log["price"][123], log["price"][250] = 3e38, 3e38
    pq.write_table(pa.table(log), small / "huge.parquet")
    arguments = ("--input", "huge.parquet", "--output", "huge", "--part_rows", 100)
    assert in_process(small, monkeypatch, *arguments) == 1
    said = capsys.readouterr().err
    assert re.search(r"huge\.parquet row 124: found logit \[?(nan|-?inf)", said) and said.count("\n") == 1
    assert [file.name for file in (small / "huge").glob("part-*")] == ["part-00000.parquet"]
    assert not (small / "huge/_SUCCESS").exists()


def test_a_bad_row_is_refused_before_its_part_is_written_and_leaves_no_empty_folder(small, monkeypatch):
    log = make_log(300, 4)
    log["price"] = ["x" if row == 50 else str(price) for row, price in enumerate(log["price"])]
    pa.csv.write_csv(pa.table(log), small / "bad.csv")
    with pytest.raises(InputError, match=r"bad\.csv row 51, column price"):
        in_process(small, monkeypatch, "--input", "bad.csv", "--output", "bad")
    assert not (small / "bad").exists()

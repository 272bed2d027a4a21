"""`train --track` as a user runs it: with a library that is missing, and offline with each one that is installed."""

from __future__ import annotations

import importlib.util
import json
import os
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

LIBRARIES = ("wandb", "mlflow", "trackio")


@pytest.mark.parametrize("name", [name for name in LIBRARIES if importlib.util.find_spec(name) is None])
def test_a_missing_library_ends_before_any_work(command, tmp_path, name):
    done = command("train", "--config", "ctr.py", "--track", "tensorboard", name, cwd=tmp_path)
    assert done.returncode == 2 and not [*tmp_path.iterdir()]
    assert done.stderr == f"error: --track {name}: needs {name}; pip install 'srsjax[{name}]'\n"


def test_an_unknown_tracker_is_refused(command, tmp_path):
    done = command("train", "--config", "ctr.py", "--track", "wandb", "neptune", cwd=tmp_path)
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and not [*tmp_path.iterdir()]
    assert 'found "neptune", expected one of tensorboard, wandb, mlflow, trackio' in done.stderr


def test_without_trackers_there_are_no_files_of_any(trained, small, command, read_lines):
    run = trained / "runs/untracked"
    done = command("train", "--config", "ctr.py", *small, "--run_dir", run, "--track", cwd=trained)
    assert done.returncode == 0, done.stderr
    assert not (run / "tensorboard").exists() and not (run / "tracking").exists()
    assert read_lines(run) == read_lines(trained / "runs/ctr")


@pytest.mark.parametrize("name", LIBRARIES)
def test_a_run_is_tracked_offline_and_continued(trained, small, command, read_lines, name):
    """Twice: to the end, and, as if it had been killed while it wrote its report, from the last checkpoint on."""
    pytest.importorskip(name, reason=f"needs {name}: pip install -e '.[{name}]'")
    run = trained / f"runs/{name}"
    arguments = ("train", "--config", "ctr.py", *small, "--run_dir", run, "--track", name, "tensorboard")
    for _ in range(2):
        done = command(*arguments, cwd=trained, WANDB_MODE="offline", WANDB_SILENT="true")
        assert done.returncode == 0 and "is dropped" not in done.stdout, done.stdout + done.stderr
        (run / "report.json").rename(run / "report.kept")
    known = (run / f"tracking/{name}.id").read_text().strip()
    (run / "report.kept").rename(run / "report.json")
    found = READERS[name](run, known)

    lines = read_lines(run)
    assert lines == read_lines(trained / "runs/ctr")
    for kind, key in (("train", "loss"), ("valid", "auc")):
        expected = [(line["step"], line[key]) for line in lines if line["kind"] == kind]
        np.testing.assert_allclose(found[f"{kind}/{key}"], expected, rtol=1e-12)  # text of float64, read again
    report = json.loads((run / "report.json").read_text())
    assert {value for _, value in found["report/test/auc"]} == {report["test"]["auc"]}
    assert [*(run / "tensorboard").iterdir()]


def of_wandb(run: Path, known: str) -> dict[str, list]:
    from wandb.proto import wandb_internal_pb2

    found: dict[str, list] = {}
    files = sorted(run.glob("tracking/wandb/offline-run-*/*.wandb"))
    assert len(files) == 2  # one for each start, of the same run
    for file in files:
        for content in wandb_records(file):
            record = wandb_internal_pb2.Record()
            record.ParseFromString(content)
            if record.HasField("run"):
                assert record.run.run_id == known and record.run.project == "srsjax"
            for item in record.history.item:
                key = item.key or "/".join(item.nested_key)
                found.setdefault(key, []).append((record.history.step.num, json.loads(item.value_json)))
            for item in record.summary.update:
                key = item.key or "/".join(item.nested_key)
                if key.startswith("report/"):
                    found.setdefault(key, []).append((0, json.loads(item.value_json)))
    return found


def wandb_records(file: Path) -> Iterator[bytes]:
    """The records of a file in LevelDB's log format: blocks of 32 KiB, a header of 7 bytes before the first."""
    data, at, record = file.read_bytes(), 7, b""
    while at + 7 <= len(data):
        if (left := 2**15 - at % 2**15) < 7:
            at += left
            continue
        _, length, kind = struct.unpack("<IHB", data[at : at + 7])
        record = data[at + 7 : at + 7 + length] if kind in (1, 2) else record + data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):
            yield record


def of_mlflow(run: Path, known: str) -> dict[str, list]:
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{run}/tracking/mlflow/mlflow.db")
    (experiment,) = [each for each in client.search_experiments() if each.name == "srsjax"]
    (found,) = client.search_runs([experiment.experiment_id])
    assert found.info.run_id == known and found.info.run_name == run.name and found.info.status == "FINISHED"
    assert found.data.params["batch.rows"] == "8"
    return {
        key: [(each.step, each.value) for each in client.get_metric_history(known, key)] for key in found.data.metrics
    }


def of_trackio(run: Path, known: str) -> dict[str, list]:
    """By a process of its own: trackio reads where its files are when it is imported."""
    program = (
        "import json, sys; from trackio.sqlite_storage import SQLiteStorage as s; "
        "assert s.get_runs('srsjax') == [sys.argv[1]]; print(json.dumps(s.get_logs('srsjax', sys.argv[1])))"
    )
    environment = os.environ | {"TRACKIO_DIR": str(run / "tracking/trackio")}
    done = subprocess.run(
        [sys.executable, "-c", program, known], env=environment, capture_output=True, text=True, check=True
    )
    found: dict[str, list] = {}
    for line in json.loads(done.stdout):
        for key, value in line.items():
            found.setdefault(key, []).append((line["step"], value))
    return found


READERS = {"wandb": of_wandb, "mlflow": of_mlflow, "trackio": of_trackio}

"""Killed, stopped and started again: the same examples, the same losses, the same final metrics, to the last bit."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from background import wait_for_step


def start(folder: Path, *arguments: object) -> subprocess.Popen:
    environment = {key: value for key, value in os.environ.items() if key != "JAX_NUM_CPU_DEVICES"}
    with open(folder / "said.txt", "w") as said, open(folder / "errors.txt", "w") as errors:
        return subprocess.Popen(
            [sys.executable, "-m", "srsjax.train", "--config", "ctr.py", *map(str, arguments)],
            cwd=folder,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=said,
            stderr=errors,
        )


def finished(run: Path) -> dict:
    return json.loads((run / "report.json").read_text())


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM], ids=["killed", "stopped"])
def test_going_on_gives_the_uninterrupted_run(trained, small, read_lines, how):
    # With dropout and several micro-batches: their random bits must resume too.
    settings = (*small, "--model.hidden_dropout", 0.1, "--model.attention_dropout", 0.1, "--batch.micro_batches", 2)
    # Long enough that a signal sent at step 25 comes well before the end on any machine; the last batch is not full.
    settings = (*settings, "--checkpoints.every", 7, "--log_every", 1, "--max_steps", 0, "--epochs", 2.9)
    whole, cut = trained / "runs/whole", trained / f"runs/cut-{how.name}"
    if not (whole / "report.json").exists():
        process = start(trained, *settings, "--run_dir", whole)
        assert process.wait() == 0, (trained / "errors.txt").read_text()

    process = start(trained, *settings, "--run_dir", cut)
    wait_for_step(process, cut, 25)
    process.send_signal(how)
    code = process.wait()
    if how is signal.SIGTERM:
        said = (trained / "said.txt").read_text()
        saved = int(re.search(r"saved at step (\d+) of \d+; run the same command to go on", said).group(1))
        assert code == 75 and saved >= 25
    assert not (cut / "report.json").exists()

    process = start(trained, *settings, "--run_dir", cut)
    assert process.wait() == 0, (trained / "errors.txt").read_text()
    said = (trained / "said.txt").read_text()
    assert len(re.findall(r"train_step (?:compiled|loaded) in", said)) == 1
    resumed = int(re.search(r"resumed at step (\d+) of", said).group(1))
    # A kill loses at most what came after the last checkpoint that was whole on disk; a signal loses nothing.
    assert resumed == saved if how is signal.SIGTERM else resumed >= 7
    assert read_lines(cut) == read_lines(whole)
    assert finished(cut) == finished(whole)


def test_a_loss_that_is_not_finite_stops_the_run_and_names_the_step(trained, small, command):
    run = trained / "runs/infinite"
    settings = ("--optimizer.learning_rate", 1e30, "--optimizer.clip_norm", 0, "--optimizer.name", "sgd")
    done = command("train", "--config", "ctr.py", *small, *settings, "--run_dir", run, cwd=trained)
    assert done.returncode == 1
    assert "is not finite at step" in done.stderr and done.stderr.count("\n") == 1
    assert not (run / "report.json").exists()
    assert not [path for path in (run / "checkpoints").glob("*") if path.name.isdigit()]


def test_early_stopping_keeps_the_best(trained, small, command):
    run = trained / "runs/early"
    settings = ("--evaluate.every", 5, "--evaluate.patience", 2, "--evaluate.monitor", "log_loss")
    # A rate so high that the loss soon grows.
    done = command(
        "train",
        "--config",
        "ctr.py",
        *small,
        *settings,
        "--optimizer.learning_rate",
        0.3,
        "--run_dir",
        run,
        cwd=trained,
    )
    assert done.returncode == 0, done.stderr
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    valid = {record["step"]: record["log_loss"] for record in records if record["kind"] == "valid"}
    report = finished(run)
    assert report["best_step"] == min(valid, key=valid.get) and report["valid"]["log_loss"] == min(valid.values())
    assert report["steps"] == report["best_step"] + 10 < 60

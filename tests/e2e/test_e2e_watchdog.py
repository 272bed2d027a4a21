"""A training that hangs in set-up, in an evaluation or in the report at the end is ended, and resumes."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

HANGING = """
import ctypes, sys
from srsjax import cli, train

def hang(*_, **__):
    ctypes.CDLL(None).usleep(600_000_000)  # C code that no signal handler of Python interrupts

setattr(train, sys.argv.pop(1), hang)
cli.run(train.main)
"""


@pytest.mark.parametrize(
    ("function", "part"),
    [
        ("validate", "evaluation, after step 20, "),
        pytest.param("set_up", "set-up; ", marks=pytest.mark.slow),
        pytest.param("write_page", "evaluation, after step 60, ", marks=pytest.mark.slow),
    ],
    ids=["evaluation", "set-up", "report"],
)
def test_a_hang_ends_the_training_and_the_run_resumes(trained, small, command, function, part):
    options = (*small, "--checkpoints.every", 7, "--run_dir", f"runs/hangs-{function}")
    arguments = ["--config", "ctr.py", *map(str, options), "--watchdog", "5"]
    for_tests = ("JAX_NUM_CPU_DEVICES", "JAX_DISABLE_MOST_OPTIMIZATIONS")  # `command` leaves them out too
    environment = {key: value for key, value in os.environ.items() if key not in for_tests}
    program = [sys.executable, "-c", HANGING, function, *arguments]
    hung = subprocess.run(program, cwd=trained, env=environment, capture_output=True, text=True, timeout=300)
    assert hung.returncode == 70, hung.stderr
    assert hung.stderr.startswith(f"error: no progress for 5 s (--watchdog) in {part}")
    assert "in hang\n" in hung.stderr and "in main\n" in hung.stderr
    run = trained / f"runs/hangs-{function}"
    assert not (run / "report.json").exists()

    done = command("train", "--config", "ctr.py", *options, cwd=trained)
    assert done.returncode == 0, done.stderr
    assert (run / "report.json").read_text() == (trained / "runs/ctr/report.json").read_text()
    assert json.loads((run / "report.json").read_text())["steps"] == 60


@pytest.mark.parametrize("seconds", ["-1", "0.5", "604801"])
def test_a_time_that_cannot_be_is_wrong_input(trained, command, seconds):
    done = command("train", "--config", "ctr.py", "--watchdog", seconds, cwd=trained)
    assert done.returncode == 2 and done.stderr.count("\n") == 1
    assert "--watchdog" in done.stderr and "at least 1 and at most 604,800" in done.stderr

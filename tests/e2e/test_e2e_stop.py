"""Training that is left alone: stopped before it began, started twice, on a disk that takes no more."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
import time

import pytest


def start(folder, *arguments, **more) -> subprocess.Popen:
    command = [sys.executable, "-m", "srsjax.train", "--config", "ctr.py", *map(str, arguments)]
    pipes = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen(command, cwd=folder, text=True, **pipes, **more)


def until(condition, seconds=300) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it never came"
        time.sleep(0.02)


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_before_the_first_step_ends_with_75_and_leaves_nothing_behind(trained, small, how):
    slow = ("--data.shop.impressions", 40000, "--data.shop.folder", f"data/{how.name}", "--run_dir", "runs/large")
    process = start(trained, *small, *slow)
    until(lambda: (trained / f"data/{how.name}").exists() or list((trained / "data").glob(f".{how.name}.*")))
    process.send_signal(how)
    said, errors = process.communicate(timeout=120)
    assert process.returncode == 75 and errors == "", errors
    assert "stopped: before anything had to be saved; run the same command to go on, " in said
    assert "s after the signal" in said and not (trained / "runs/large").exists()
    assert not list((trained / "runs").glob(".large.lock"))


def test_a_second_training_in_a_folder_is_refused_and_names_the_first(trained, small, command):
    options = (*small, "--run_dir", "runs/twice", "--max_steps", 0, "--epochs", 50)
    first = start(trained, *options)
    try:
        until(lambda: (trained / "runs/twice/metrics.jsonl").exists() or first.poll() is not None)
        second = command("train", "--config", "ctr.py", *options, cwd=trained)
        assert second.returncode == 2 and second.stderr.count("\n") == 1
        assert f"runs/twice: in use by process {first.pid} on " in second.stderr
    finally:
        first.kill()  # the lock of a dead process holds nothing
        first.communicate()
    done = command("train", "--config", "ctr.py", *small, "--run_dir", "runs/twice", "--overwrite", True, cwd=trained)
    assert done.returncode == 0, done.stderr


def test_what_a_kill_left_of_the_first_file_is_no_obstacle(trained, small, command):
    run = trained / "runs/leftover"
    run.mkdir(parents=True)
    (run / ".config.json.0123456789ab.partial").write_text("{")
    done = command("train", "--config", "ctr.py", *small, "--run_dir", run, cwd=trained)
    assert done.returncode == 0, done.stderr
    assert not list(run.glob(".*"))


@pytest.mark.parametrize(
    ("run", "said"),
    [("file/below", "a folder above it is a file"), ("r" * 300, "File name too long")],
    ids=["below a file", "long name"],
)
def test_a_path_that_cannot_be_is_said_in_one_line(trained, small, command, run, said):
    (trained / "file").write_text("")
    done = command("train", "--config", "ctr.py", *small, "--run_dir", run, cwd=trained)
    assert done.returncode == 2 and done.stderr.count("\n") == 1, done.stderr
    assert said in done.stderr


def test_a_disk_that_takes_no_more_is_said_in_one_line(trained, small):
    """A limit on the size of files stands for a full disk: no file may be as large as a checkpoint's."""

    def limit():
        resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, 60_000))

    environment = os.environ | {"JAX_ENABLE_COMPILATION_CACHE": "false"}  # its files would not fit either
    process = start(
        trained, *small, "--run_dir", "runs/full", "--checkpoints.every", 5, preexec_fn=limit, env=environment
    )
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 2, errors[-2000:]
    assert errors.count("\n") == 1 and "File too large" in errors and "run the same command again" in errors

"""Worker processes of training that are killed or stopped: named, and never waited for without end."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from background import wait_for_step

pytestmark = pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="workers are found by Linux's /proc")


@pytest.fixture(scope="module")
def settings(small):
    """Long enough that what is done to a worker at step 10 comes well before the end."""
    workers = ("--batch.workers", 2, "--checkpoints.every", 7, "--log_every", 1)
    return (*small, *workers, "--max_steps", 0, "--epochs", 2.5, "--evaluate.every", 100, "--batch.rows", 4)


@pytest.fixture(scope="module")
def whole(trained, settings):
    """A run without worker processes that nothing disturbed."""
    process = start(trained, *settings, "--batch.workers", 0, "--run_dir", "runs/undisturbed")
    assert process.wait() == 0, (trained / "errors.txt").read_text()
    return trained / "runs/undisturbed"


started: list[subprocess.Popen] = []


@pytest.fixture(autouse=True)
def nothing_is_left():
    """What a test that failed left behind is killed."""
    yield
    for process in started:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    started.clear()


def start(folder: Path, *arguments: object) -> subprocess.Popen:
    """A training in the background, the first process of a group of its own."""
    environment = {key: value for key, value in os.environ.items() if key != "JAX_NUM_CPU_DEVICES"}
    with open(folder / "said.txt", "w") as said, open(folder / "errors.txt", "w") as errors:
        process = subprocess.Popen(
            [sys.executable, "-m", "srsjax.train", "--config", "ctr.py", *map(str, arguments)],
            cwd=folder,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=said,
            stderr=errors,
            start_new_session=True,
        )
    started.append(process)
    return process


def workers_of(process: subprocess.Popen) -> dict[str, int]:
    """The pids of its worker processes by number."""
    found = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):  # it ended meanwhile
            name, _, rest = stat.read_text().partition("(")[2].rpartition(")")
            number = re.fullmatch(r"srsjax-data-(\d+)", name)
            if number and int(rest.split()[1]) == process.pid:
                found[number[1]] = int(stat.parent.name)
    return found


def are_gone(pids, seconds: float = 20) -> bool:
    """Whether all of these processes end in time."""
    deadline = time.monotonic() + seconds
    while any(Path(f"/proc/{pid}").exists() for pid in pids):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True


def assert_resumes(process: subprocess.Popen, folder: Path, run: Path, whole: Path, read_lines) -> None:
    assert process.wait() == 0, (folder / "errors.txt").read_text()
    assert re.search(r"resumed at step \d+ of", (folder / "said.txt").read_text())
    assert read_lines(run) == read_lines(whole)
    assert json.loads((run / "report.json").read_text()) == json.loads((whole / "report.json").read_text())


@pytest.mark.parametrize(
    ("how", "words"),
    [
        (signal.SIGKILL, "was killed by SIGKILL"),
        pytest.param(signal.SIGSTOP, "was stopped by SIGSTOP, and not continued for 20 s", marks=pytest.mark.slow),
    ],
    ids=["killed", "stopped"],
)
def test_a_lost_worker_is_named_and_the_run_resumes(trained, settings, whole, read_lines, how, words):
    run = trained / f"runs/lost-{how.name}"
    process = start(trained, *settings, "--run_dir", run)
    wait_for_step(process, run, 10)
    workers = workers_of(process)
    assert workers.keys() == {"1", "2"}
    os.kill(workers["2"], how)
    code = process.wait(timeout=180)
    errors = (trained / "errors.txt").read_text().splitlines()
    said = f"error: data worker 2 of 2 \\(pid {workers['2']}\\) {words}"
    assert code == 71 and re.match(rf"{said}.*; saved at step \d+ of \d+; run the same command to go on$", errors[-1])
    assert len(errors) == (1 if how is signal.SIGKILL else 2), errors
    assert are_gone(workers.values())
    assert_resumes(start(trained, *settings, "--run_dir", run), trained, run, whole, read_lines)


@pytest.mark.slow
def test_a_signal_is_answered_while_a_worker_is_stopped(trained, settings, whole, read_lines):
    run = trained / "runs/asked"
    process = start(trained, *settings, "--run_dir", run)
    wait_for_step(process, run, 10)
    workers = workers_of(process)
    os.kill(workers["1"], signal.SIGSTOP)
    time.sleep(5)  # until nothing that it made is left, and nobody gave it up yet
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=180) == 75, (trained / "errors.txt").read_text()
    done = json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])["step"]
    assert f"stopped: saved at step {done} of " in (trained / "said.txt").read_text()
    assert are_gone(workers.values())
    assert_resumes(start(trained, *settings, "--run_dir", run), trained, run, whole, read_lines)


def test_a_signal_to_all_processes_of_a_job_is_answered(trained, settings):
    run = trained / "runs/group"
    process = start(trained, *settings, "--run_dir", run)
    wait_for_step(process, run, 10)
    workers = workers_of(process)
    os.killpg(process.pid, signal.SIGTERM)
    assert process.wait(timeout=180) == 75, (trained / "errors.txt").read_text()
    assert are_gone(workers.values())


def test_workers_end_with_a_trainer_that_is_killed(trained, settings):
    run = trained / "runs/orphans"
    process = start(trained, *settings, "--run_dir", run)
    wait_for_step(process, run, 10)
    workers = workers_of(process)
    process.kill()
    process.wait()
    assert len(workers) == 2 and are_gone(workers.values())

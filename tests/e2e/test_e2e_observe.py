"""What a run tells about itself: traces of chosen steps, and where its wall time went though it was killed."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
import warnings
from pathlib import Path

import pytest
from jax.profiler import ProfileData

from srsjax.training.goodput import account, read


def test_a_trace_holds_the_steps_that_were_asked_for_and_changes_nothing(trained, small, command, read_lines):
    run = trained / "runs/traced"
    done = command("train", "--config", "ctr.py", *small, "--run_dir", run, "--profile.steps", "12:14", cwd=trained)
    assert done.returncode == 0, done.stderr
    said = r"profile: steps 12 to 14 in (\S+); open it with `tensorboard --logdir (\S+)`"
    where, logs = re.search(said, done.stdout).groups()
    assert Path(logs) == run / "tensorboard" and Path(where).parent == run / "tensorboard/plugins/profile"
    (file,) = Path(where).glob("*.xplane.pb")
    assert (Path(where) / "perfetto_trace.json.gz").stat().st_size > 0
    with warnings.catch_warnings(action="ignore"):  # of ProfileData's own types
        events = [
            (event.name, dict(event.stats).get("step_num"), event.start_ns, event.end_ns)
            for plane in ProfileData.from_file(str(file)).planes
            for line in plane.lines
            for event in line.events
            if event.name == "train" or "train_step" in event.name
        ]
    steps = sorted((step, start, end) for name, step, start, end in events if name == "train")
    calls = [(start, end) for name, _, start, end in events if name != "train"]
    assert [step for step, _, _ in steps] == [12, 13, 14]
    for _, start, end in steps:  # each called the program, and nothing else did
        inside = [call for call in calls if start <= call[0] and call[1] <= end]
        assert inside
        calls = [call for call in calls if call not in inside]
    assert not calls
    assert read_lines(run) == read_lines(trained / "runs/ctr")


@pytest.mark.parametrize(("steps", "expected"), [("15:12", "FIRST:LAST"), ("50:61", "steps up to 60")])
def test_steps_that_cannot_be_traced_are_refused_before_anything_is_written(trained, small, command, steps, expected):
    run = trained / "runs/untraced"
    done = command("train", "--config", "ctr.py", *small, "--run_dir", run, "--profile.steps", steps, cwd=trained)
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and not run.exists()
    assert f"profile.steps: found '{steps}'" in done.stderr and expected in done.stderr


def test_a_killed_run_says_what_it_repeated_and_every_second_is_told(trained, small, command):
    run = trained / "runs/killed-late"
    # Long enough between checkpoints for lines of goodput in between on any machine.
    settings = (*small, "--batch.rows", 32, "--max_steps", 900, "--evaluate.every", 300, "--log_every", 50)
    arguments = [*map(str, ("--config", "ctr.py", *settings, "--run_dir", run))]
    environment = {key: value for key, value in os.environ.items() if key != "JAX_NUM_CPU_DEVICES"}
    process = subprocess.Popen(
        [sys.executable, "-m", "srsjax.train", *arguments], cwd=trained, env=environment, stdout=subprocess.DEVNULL
    )
    file, deadline, step = run / "goodput.jsonl", time.monotonic() + 300, 0
    while step <= 300 or step % 300 == 0:  # done after the checkpoint of step 300, and not in another one
        assert process.poll() is None and time.monotonic() < deadline
        step = max((line.get("step", 0) for line in read(file)), default=0) if file.exists() else 0
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    done = command("train", *arguments, cwd=trained)
    assert done.returncode == 0, done.stderr

    lines = read(file)
    starts = [line["start"] for line in lines if "start" in line]
    total = account(lines)
    resumed = int(re.search(r"resumed at step (\d+) of 900", done.stdout).group(1))
    assert len(starts) == 2 and resumed < step
    assert total["repeated"] > 0 and total["stopped"] > 0
    assert all(total[part] > 0 for part in ("steps", "compile", "data", "evaluation", "checkpoints", "log", "set-up"))
    # The file was last written when the last second was told; clocks and file times differ by little.
    assert sum(total.values()) == pytest.approx(file.stat().st_mtime - starts[0], abs=0.2)
    first, last = re.findall(r"goodput \d+ % of .* s, \d+ % of the time it ran: steps .*", done.stdout)
    assert f"repeated {total['repeated']:,.{0 if sum(total.values()) >= 100 else 1}f} s" in last and first != last
    assert "goodput" not in json.loads((run / "report.json").read_text())

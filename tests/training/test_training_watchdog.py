"""The watchdog ends what hangs, says where, and leaves alone what works, waits for others or was stopped."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import time

import pytest

START = """
import ctypes, multiprocessing, sys, time
from srsjax import waits
from srsjax.training.goodput import Goodput
from srsjax.training.watchdog import Watchdog

def hang(seconds=60):
    ctypes.CDLL(None).usleep(int(seconds * 1e6))  # C code that no signal handler of Python interrupts

goodput = Goodput()
"""


def run(body: str, seconds: float = 2, before=lambda process: None) -> tuple[int, str, float]:
    """Exit code, standard error and duration of a program that runs `body` with a watchdog."""
    program = f"{START}with Watchdog({seconds}, goodput):\n    print('begun', flush=True)\n" + textwrap.indent(
        body, "    "
    )
    pipes = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    process = subprocess.Popen([sys.executable, "-c", program], text=True, **pipes)
    assert process.stdout.readline() == "begun\n"
    began = time.monotonic()
    before(process)
    errors = process.communicate(timeout=90)[1]
    return process.returncode, errors, time.monotonic() - began


STEPS = "goodput.enter('steps')\nfor step in (1, 2, 3):\n    goodput.tick(step)\n    time.sleep(0.25)\n"


@pytest.mark.parametrize(
    ("body", "part"),
    [
        (STEPS + "hang()", "steps, after step 3, "),
        ("goodput.enter('evaluation')\ngoodput.beat()\nhang()", "evaluation; "),
        ("hang()", "set-up; "),
        ("goodput.enter('checkpoints')\nhang()", "checkpoints; "),
        # Waiting in a loop for a device or other processes is not progress of a step.
        (STEPS + "while True:\n    pass", "steps, after step 3, "),
    ],
    ids=["steps", "evaluation", "set-up", "checkpoints", "busy loop"],
)
def test_what_hangs_ends_with_the_stacks_and_the_last_steps(body, part):
    code, errors, _ = run(body)
    lines = errors.splitlines()
    assert code == 70 and lines[0].startswith(f"error: no progress for 2 s (--watchdog) in {part}")
    assert lines[1].startswith("last steps: 2: 0.2" if "steps" in part else "last steps: none")
    assert "Current thread" in errors or "Thread 0x" in errors
    assert 'File "<string>", line' in errors  # where the main thread is


def test_standard_error_that_takes_no_more_does_not_hold_the_end_up():
    """A pipe that nobody reads is full: the last words are lost, and the process ends."""
    fill = "import os, threading\nthreading.Thread(target=lambda: os.write(2, bytes(1 << 20)), daemon=True).start()\n"
    code, _, _ = run(fill + "hang()", before=lambda process: process.wait(timeout=60))
    assert code == 70


def test_processes_that_it_started_end_with_it(tmp_path):
    """Also one that is stopped, which a signal that asks for its end would not reach."""
    child = (
        "import os, signal\n"
        "process = multiprocessing.get_context('fork').Process(target=time.sleep, args=(300,), daemon=True)\n"
        "process.start()\n"
        "os.kill(process.pid, signal.SIGSTOP)\n"
        f"open({str(tmp_path / 'pid')!r}, 'w').write(str(process.pid))\n"
    )
    code, _, _ = run(child + "hang()")
    pid = int((tmp_path / "pid").read_text())
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            break
        time.sleep(0.05)
    else:
        raise AssertionError("the child lives on")
    assert code == 70


@pytest.mark.parametrize(
    "body",
    [
        "goodput.enter('steps')\nfor step in range(40):\n    goodput.tick(step)\n    time.sleep(0.1)",
        "goodput.enter('evaluation')\nfor step in range(40):\n    goodput.beat()\n    time.sleep(0.1)",
        "end = time.monotonic() + 5\nwhile time.monotonic() < end:\n    pass",  # set-up at work
        "goodput.enter('compile')\nend = time.monotonic() + 5\nwhile time.monotonic() < end:\n    pass",
        "goodput.enter('checkpoints')\nfor _ in range(50):\n    open('/dev/null', 'wb').write(bytes(1 << 20))\n"
        "    time.sleep(0.1)",
        "with waits.elsewhere():\n    hang(5)",
    ],
    ids=["steps", "batches", "set-up", "compilation", "writing", "another process"],
)
def test_work_and_waiting_for_others_are_left_alone(body):
    code, errors, seconds = run(body)
    assert (code, errors) == (0, "") and seconds > 3.5


def test_zero_waits_without_end():
    assert run("hang(4)", seconds=0)[:2] == (0, "")


def test_time_in_which_the_process_was_stopped_does_not_count():
    def stop(process):
        time.sleep(0.5)
        process.send_signal(signal.SIGSTOP)
        time.sleep(6)
        process.send_signal(signal.SIGCONT)

    code, errors, seconds = run("hang(1.5)\nprint('done')", before=stop)
    assert (code, errors) == (0, "") and seconds > 6

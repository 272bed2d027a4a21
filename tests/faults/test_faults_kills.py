"""A few kills of every command, each before a file operation or at a moment drawn from a seed; `kills.py` makes many.

python -m pytest tests/faults/test_faults_kills.py -m slow
python tests/faults/kills.py --kills 300 --seed 0
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest
from kill_cases import CASES, WRAPPER, run_kills

WRITES = """
from pathlib import Path
from srsjax.files import write_json

write_json("one.json", {"a": 1})
Path("two").mkdir()
"""


def wrapped(folder, at: int) -> tuple[int, str, list[str]]:
    """The exit code, the report and the files of a command that is killed at a file operation."""
    folder.mkdir()
    (folder / "writes.py").write_text(WRITES)
    command = [sys.executable, WRAPPER, str(at), "report", "writes"]
    done = subprocess.run(command, cwd=folder, env=os.environ | {"PYTHONDONTWRITEBYTECODE": "1"}, capture_output=True)
    report = folder / "report"
    names = sorted(path.suffix or path.name for path in folder.iterdir() if path.name != "writes.py")
    return done.returncode, report.read_text() if report.exists() else "", names


def test_a_command_is_killed_before_the_file_operation_that_is_named(tmp_path):
    """Of JSON: made empty, opened to write, flushed, renamed."""
    code, report, names = wrapped(tmp_path / "whole", 0)
    assert code == 0 and report == "5" and names == [".json", "report", "two"]
    left = [wrapped(tmp_path / str(at), at) for at in range(1, 6)]
    assert {code for code, _, _ in left} == {-signal.SIGKILL} and {report for _, report, _ in left} == {""}
    assert [names for _, _, names in left] == [[], [".partial"], [".partial"], [".partial"], [".json"]]


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES, ids=[case.name for case in CASES])
def test_killed_again_and_again_a_command_leaves_what_an_unbroken_one_does(case):
    made = run_kills(4, 0, (case.name,))
    assert made.counts["kills"] >= 4 and not made.failures, made.failures

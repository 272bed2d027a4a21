"""What `refusals.py` hands to the commands, and how it judges; all cases, in minutes, among the slow tests."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
import refusal_cases
import refusals


def test_there_are_hundreds_of_cases_each_with_a_name_of_its_own():
    names = Counter(case.name for case in refusal_cases.every())
    assert len(names) > 300 and set(names.values()) == {1}


@pytest.mark.parametrize(
    ("code", "said", "took", "why"),
    [
        (2, "error: log.csv row 3: found 7\n", 1.0, ""),
        (2, "error: log.csv row 3: found 7\n", 11.0, "took 11.0 s"),
        (0, "", 1.0, "exit code 0, expected 2"),
        (1, "Traceback (most recent call last):\n", 1.0, "exit code 1, expected 2: Traceback"),
        (2, "Traceback\nerror: log.csv\n", 1.0, "found 2 lines"),
        (2, "warning: log.csv\n", 1.0, "found 1 lines"),
    ],
)
def test_what_is_a_refusal(code, said, took, why):
    found = refusals.why_not(subprocess.CompletedProcess([], code, "", said), took)
    assert found.startswith(why) and bool(found) == bool(why)


@pytest.mark.slow
def test_all_are_refused():
    done = subprocess.run([sys.executable, Path(refusals.__file__)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr

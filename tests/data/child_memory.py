"""How much memory a program holds, in a process of its own: nothing else that a test run does is in the figure."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

STATUS = Path("/proc/self/status")
# VmHWM and not ru_maxrss, which begins at what the parent process had when it forked.
SAY_PEAK = f"""
status = dict(line.split(":", 1) for line in open("{STATUS}"))
print(int(status["VmHWM"].split()[0]) // 1024)
"""

needs_status = pytest.mark.skipif(not STATUS.exists(), reason="peak memory is read from /proc")


def peak_memory(program: str, *arguments: object, cwd: Path | None = None) -> int:
    """MiB that a process holds at most to run a program that prints nothing."""
    # What is freed counts no more: without this Arrow's allocator keeps pages for a while, more on a busy machine.
    environment = os.environ | {"MIMALLOC_PURGE_DELAY": "0"}
    command = [sys.executable, "-c", program + SAY_PEAK, *map(str, arguments)]
    done = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return int(done.stdout)

"""Trainings in the background, for tests that stop or hurt them."""

from __future__ import annotations

import json
import subprocess
import time
from pathlib import Path


def wait_for_step(process: subprocess.Popen, run: Path, step: int) -> None:
    """Until the run has logged that step. Fails where the process ends before, or after five minutes."""
    deadline = time.monotonic() + 300
    while process.poll() is None and time.monotonic() < deadline:
        if (run / "metrics.jsonl").exists():
            lines = (run / "metrics.jsonl").read_text().splitlines()
            if lines and json.loads(lines[-1])["step"] >= step:
                return
        time.sleep(0.02)
    process.kill()
    raise AssertionError(f"step {step} never came, exit code {process.wait()}")

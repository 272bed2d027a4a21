"""Programs that one run compiled are loaded by the next."""

from __future__ import annotations

import json
import re
from pathlib import Path


def programs(said: str) -> dict[str, str]:
    """Of each program, whether a run says that it was `compiled` or `loaded`."""
    return {
        name: how
        for line in said.splitlines()
        if line.startswith("programs: ")
        for name, how in re.findall(r"(\w+) (compiled|loaded) in \d", line)
    }


def kept(folder: Path) -> dict[str, int]:
    """The files below a folder, and when each was written."""
    return {str(path): path.stat().st_mtime_ns for path in folder.rglob("*-cache")}


def test_a_second_run_compiles_nothing_and_computes_the_same_bits(trained, small, command, read_lines, tmp_path):
    runs, said = [tmp_path / "cold", tmp_path / "warm"], []
    for run in runs:
        done = command(
            *("train", "--config", "ctr.py", *small, "--max_steps", 20, "--run_dir", run),
            cwd=trained,
            JAX_COMPILATION_CACHE_DIR=str(tmp_path / "programs"),
        )
        assert done.returncode == 0, done.stderr
        assert "warn" not in done.stderr.lower()
        said.append(done.stdout)
        if run is runs[0]:
            after_cold = kept(tmp_path / "programs")
    assert "predict_step of 8 rows x 128 tokens" in said[0] and "train_step of 1 x 8 rows x 128 tokens" in said[0]
    cold, warm = map(programs, said)
    assert {"init", "train_step", "predict_step"} <= set(cold) == set(warm)
    assert set(cold.values()) == {"compiled"} and set(warm.values()) == {"loaded"}
    assert after_cold and kept(tmp_path / "programs") == after_cold
    assert read_lines(runs[0]) == read_lines(runs[1])
    assert json.loads((runs[0] / "report.json").read_text()) == json.loads((runs[1] / "report.json").read_text())

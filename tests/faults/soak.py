"""A long training, watched from outside: memory, open files, threads and the time of an example must not grow.

    python tests/faults/soak.py --minutes 60 --out soak

Trains a small click model on the simulated shop with a worker process, with validation, checkpoints and log lines far
more often than anyone would ask for. Prints each quantity in the second and in the last quarter, and draws `soak.png`.
Ends with 1 where a quantity grew by more than its allowance.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path

import matplotlib
import numpy as np

matplotlib.use("Agg")
import matplotlib.pyplot as plt

EVERY = 5.0
"""Seconds between looks."""
CONFIG = """
import runpy
from dataclasses import replace

def get_config():
    made = runpy.run_path({config!r})["get_config"]()
    data = replace(made.data, shop=replace(made.data.shop, impressions=3000))
    return replace(
        made, data=data, epochs=100000, log_every=20, batch=replace(made.batch, workers=1),
        evaluate=replace(made.evaluate, every=500), checkpoints=replace(made.checkpoints, every=250),
    )
"""
ALLOWED = {"memory, MiB": 0.02, "open files": 0.0, "threads": 0.05, "microseconds an example": 0.1}
"""How much larger the median of the last quarter may be than that of the second. A machine is not equally fast all the
time; memory has the noise of an allocator, and there is one thread more where a library's pool has begun another."""


def main() -> int:
    """Runs the training, and looks."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--out", type=Path, default=Path("soak"))
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    config = Path(__file__).parents[2] / "configs/ctr.py"
    (given.out / "soak.py").write_text(CONFIG.format(config=str(config)))
    command = [sys.executable, "-m", "srsjax.train", "--config", "soak.py", "--run_dir", "run", "--overwrite", "True"]
    with open(given.out / "train.log", "w") as log:
        process = subprocess.Popen(command, cwd=given.out, stdout=log, stderr=log)
        seen = watched(process, given.minutes * 60)
    if process.returncode is None:
        process.terminate()
    code = process.wait(120)
    if code != 75:
        sys.exit(f"the training ended with {code}, expected 75 of a stopped one; see {given.out / 'train.log'}")
    lines = [json.loads(line) for line in (given.out / "run/metrics.jsonl").read_text().splitlines()]
    speed = [(line["step"], 1e6 / line["examples_per_second"]) for line in lines if "examples_per_second" in line]
    series = {name: np.array(values) for name, values in seen.items()}
    series["microseconds an example"] = np.array([each for _, each in speed])
    return told(series, given.out / "soak.png", steps=speed[-1][0])


def watched(process: subprocess.Popen, seconds: float) -> dict[str, list[float]]:
    """What is seen of a process and its children every `EVERY` seconds."""
    seen: dict[str, list[float]] = {"memory, MiB": [], "open files": [], "threads": []}
    end = time.monotonic() + seconds
    while time.monotonic() < end and process.poll() is None:
        time.sleep(EVERY)
        tree = [process.pid, *children(process.pid)]
        status = [read for pid in tree if (read := _status(pid))]
        seen["memory, MiB"].append(sum(int(each["VmRSS"].split()[0]) for each in status) / 1024)
        seen["threads"].append(sum(int(each["Threads"]) for each in status))
        seen["open files"].append(sum(_files(pid) for pid in tree))
    return seen


def children(pid: int) -> list[int]:
    """The processes that descend from one."""
    try:
        own = [int(each) for each in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except OSError:
        return []
    return own + [each for child in own for each in children(child)]


def told(series: dict[str, np.ndarray], picture: Path, steps: int) -> int:
    """Prints and draws what was seen; 1 where something grew."""
    grew, figure = 0, plt.figure(figsize=(9, 7))
    print(f"{steps:,} steps\n\n| | second quarter | last quarter | change | allowed |\n|---|---|---|---|---|")
    for number, (name, values) in enumerate(series.items(), 1):
        quarters = [np.median(part) for part in np.array_split(values, 4)]
        change = quarters[3] / quarters[1] - 1
        grew |= change > ALLOWED[name]
        print(f"| {name} | {quarters[1]:.4g} | {quarters[3]:.4g} | {change:+.1%} | {ALLOWED[name]:.0%} |")
        axes = figure.add_subplot(len(series), 1, number)
        axes.plot(np.linspace(0, 1, len(values)), values, linewidth=0.8)
        axes.set_ylabel(name)
        axes.set_ylim(0, 1.2 * values.max())
    figure.tight_layout()
    figure.savefig(picture, dpi=100)
    return int(grew)


def _status(pid: int) -> dict[str, str]:
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return {}
    found = dict(line.split(":", 1) for line in lines if ":" in line)
    return found if "VmRSS" in found else {}


def _files(pid: int) -> int:
    try:
        return len(list(Path(f"/proc/{pid}/fd").iterdir()))
    except OSError:
        return 0


if __name__ == "__main__":
    sys.exit(main())

"""What the checks of a training cost (checksums, the lock, the watchdog, skipped steps), and what its report does.

    python tests/bench/checks.py
    python tests/bench/checks.py --starts 15

Runs the default training in this process with a clock around each part of them, and prints the seconds that its main
thread spent in each (those of other threads beside), and the share of the whole. With `--starts` so many pairs of
processes take turns, one of each with its checks left out: the seconds from the command to the first step, data
prepared before.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np

from srsjax import locks, train
from srsjax.data.store import arrays, checksums
from srsjax.reporting import final
from srsjax.runs import array_checksums, room, run_folder
from srsjax.training import anomalies, setup, watchdog

seconds: dict[tuple[str, str], list[float]] = defaultdict(lambda: [0.0, 0.0, 0])
"""By table and what is timed: seconds of the main thread, of others, and calls."""
_inside = threading.local()


def timed(owner: Any, name: str, label: str, table: str = "check") -> None:
    """Puts a clock around a function or method; one that is called by another timed one counts there."""
    plain = getattr(owner, name)

    @functools.wraps(plain)
    def clocked(*arguments, **named):
        if getattr(_inside, "depth", 0):
            return plain(*arguments, **named)
        _inside.depth, began = 1, time.perf_counter()
        try:
            return plain(*arguments, **named)
        finally:
            _inside.depth = 0
            own = threading.current_thread() is threading.main_thread()
            seconds[table, label][not own] += time.perf_counter() - began
            seconds[table, label][2] += 1

    setattr(owner, name, clocked)


def main() -> None:
    """Trains, and prints a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", default=str(Path(__file__).parents[2] / "configs/ctr.py"))
    parser.add_argument("--starts", type=int, default=0, help="pairs of starts, instead of a training")
    parser.add_argument("--start", choices=STARTS, help=argparse.SUPPRESS)
    given, rest = parser.parse_known_args()
    if given.start:
        return start(given.start, given.config, rest)
    if given.starts:
        return compare_starts(given.starts, given.config, rest)
    watch_checks()
    watch_report()
    with tempfile.TemporaryDirectory() as folder:
        began = time.perf_counter()
        train.main(["--config", given.config, "--run_dir", f"{folder}/run", *rest])
        whole = time.perf_counter() - began
    print(f"\n{whole:.1f} s")
    for what in ("check", "report"):
        print_table(what, whole)


def watch_checks() -> None:
    """Clocks around all checks."""
    for name in ("begin", "tell", "wait", "_read", "everything"):
        timed(checksums.Checks, name, "checksums of the store")
    timed(arrays, "write_manifest", "checksums of a new store")
    for name in [each for each in dir(array_checksums) if not each.startswith("_")]:
        if callable(getattr(array_checksums, name)) and getattr(array_checksums, name).__module__.endswith(
            "array_checksums"
        ):
            timed(array_checksums, name, "checksums of checkpoints")
    for name in ("verify", "bind", "bind_all", "identity", "check", "check_data"):
        timed(run_folder.RunFolder, name, "the run folder's files")
    timed(anomalies.Anomalies, "see", "skipped steps and spikes")
    timed(watchdog._Work, "since", "the watchdog")
    timed(room, "check_room", "memory that is needed")
    timed(locks, "exclusive", "the lock")


def watch_report() -> None:
    """Clocks around all that comes after the scores of the last evaluation."""
    for name, label in (
        ("fit_calibration", "calibration"),
        ("assess", "metrics, intervals, baselines, slices"),
        ("split_part", "figures and tables of the page, with reasons of scores"),
        ("save_curves", "pictures beside the page"),
        ("make_reference", "reference for `watch`"),
        ("write_page", "report.html"),
        ("about_run", "model card"),
        ("run_card", "model card"),
    ):
        timed(final, name, label, "report")


STARTS = ("with checks", "without")


def start(kind: str, config: str, options: list[str]) -> None:
    """Begins a training, and ends this process where its first step would be."""
    if kind == "without":
        leave_out_checks()
    train.fit = lambda *arguments: os._exit(0)
    train.main(["--config", config, *options])
    sys.exit("the training did not begin")


def leave_out_checks() -> None:
    """Puts nothing in the place of what is checked before a first step."""
    for name in ("begin", "tell", "wait", "everything"):
        setattr(checksums.Checks, name, lambda *arguments: None)
    for name in ("verify", "check_data"):
        setattr(run_folder.RunFolder, name, lambda *arguments: None)
    setup.check_room = lambda *arguments, **named: None
    arrays.is_sealed = checksums.is_sealed = lambda data: True
    train.exclusive = lambda *arguments: contextlib.nullcontext()
    train.Watchdog = lambda *arguments: contextlib.nullcontext()


def compare_starts(pairs: int, config: str, options: list[str]) -> None:
    """Prints the seconds of both kinds, and of the difference within a pair."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, __file__, "--config", config, *options, "--run_dir", f"{folder}/run"]
        command += ["--overwrite", "true", "--start"]
        for kind in STARTS:  # prepares the data, and reads all files once
            subprocess.run([*command, kind], cwd=folder, check=True, stdout=subprocess.DEVNULL)
        found = []
        for number in range(pairs):
            took = {}
            for kind in STARTS[:: 1 if number % 2 else -1]:
                began = time.perf_counter()
                subprocess.run([*command, kind], cwd=folder, check=True, stdout=subprocess.DEVNULL)
                took[kind] = time.perf_counter() - began
            found.append(took)
    for kind in STARTS:
        print(f"{kind}: {np.median([took[kind] for took in found]):.2f} s, median of {pairs}")
    low, middle, high = np.quantile([took["with checks"] - took["without"] for took in found], (0.25, 0.5, 0.75))
    print(f"difference of a pair: {middle:+.3f} s (quartiles {low:+.3f} to {high:+.3f})")


def print_table(what: str, whole: float) -> None:
    """The clocks of `what`, beside the seconds of the whole training."""
    of = {label: each for (group, label), each in seconds.items() if group == what}
    print(f"\n| {what} | calls | main thread, s | other threads, s | share |\n|---|---|---|---|---|")
    for label, (own, others, calls) in of.items():
        print(f"| {label} | {calls:,} | {own:.3f} | {others:.3f} | {own / whole:.2%} |")
    own, others = (sum(each[i] for each in of.values()) for i in (0, 1))
    print(f"| all | | {own:.3f} | {others:.3f} | {own / whole:.2%} |")


if __name__ == "__main__":
    main()

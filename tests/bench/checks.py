"""What the checks of a training cost (checksums, the lock, the watchdog, skipped steps), and what its report does.

    python tests/bench/checks.py

Runs the default training in this process with a clock around each part of them, and prints the seconds that its main
thread spent in each (those of other threads beside), and the share of the whole.
"""

from __future__ import annotations

import argparse
import functools
import tempfile
import threading
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

from srsjax import locks, train
from srsjax.data.store import arrays, checksums
from srsjax.reporting import final
from srsjax.runs import array_checksums, room, run_folder
from srsjax.training import anomalies, watchdog

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
    given, rest = parser.parse_known_args()
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

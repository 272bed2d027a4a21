"""Paired measurements: each system is a worker process of its own, and only one of them computes at a time.

A worker is a script that builds a system and calls `serve(system)`; it answers one JSON line with one JSON line. The
driver asks the workers in turn, forwards and backwards (A B, B A, A B ...), so that a machine that becomes slower for
a while slows every system alike, and the ratio within a round stays what it is.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, Protocol

import numpy as np

SETTINGS = {
    # Memory that stays with the process, as `srsjax.cpu` has it for srsjax: glibc's habit of giving it back to
    # the kernel after every step, to have it cleared again for the next, costs each of the systems a part of a step.
    "MALLOC_ARENA_MAX": "1",
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_TRIM_THRESHOLD_": "1000000000000",
    "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1",
    # OpenMP threads (PyTorch) that sleep while they wait: spinning ones keep a core from whoever has work for it.
    "OMP_WAIT_POLICY": "PASSIVE",
    "TOKENIZERS_PARALLELISM": "true",
}
"""Environment of every worker."""


class System(Protocol):
    """What a worker serves."""

    def gate(self) -> dict[str, list[float]]:
        """Numbers by name that every system of the comparison must agree on, to the tolerance of the name."""

    def measure(self) -> dict[str, float]:
        """One measurement: seconds by name, from a `Clock`, and whatever else it should report."""

    def precision(self) -> str:
        """`float32` or `bfloat16`, what it computes in: of the two, where it was given `auto`, the faster one here."""

    def flops(self) -> float:
        """Of one measurement, where the driver does not know them; 0 where they would say nothing."""

    def peak(self) -> float:
        """FLOP/s of a large square product in its precision."""


class Clock:
    """Adds the seconds of a block to `times`: those on the wall as `name`, those of all threads as `name cpu`.

    The second number hardly changes when others use the machine too; it does not see threads that wait.
    """

    def __init__(self, times: dict[str, float], name: str):
        self.times, self.name = times, name

    def __enter__(self) -> None:
        self.wall, self.cpu = time.perf_counter(), time.process_time()

    def __exit__(self, *_) -> None:
        self.times[self.name] = time.perf_counter() - self.wall
        self.times[f"{self.name} cpu"] = time.process_time() - self.cpu


class Worker:
    """A worker process, started at once; a context manager that ends it.

    It imports srsjax from the checkout that its script, `tests/bench/*.py`, is in.
    """

    def __init__(self, script: Path, threads: int, arguments: dict):
        cores = sorted(os.sched_getaffinity(0))[:threads]
        if len(cores) < threads:
            raise ValueError(f"{threads} threads asked for, {len(cores)} cores available")
        command = [sys.executable, str(script), json.dumps(arguments | {"threads": threads})]
        path = os.pathsep.join(filter(None, (str(script.resolve().parents[2]), os.environ.get("PYTHONPATH"))))
        counts = {"PYTHONPATH": path, "OMP_NUM_THREADS": str(threads), "NPROC": str(threads)}
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | SETTINGS | counts,
            preexec_fn=lambda: os.sched_setaffinity(0, cores),
        )

    def ask(self, method: str) -> Any:
        """Calls a method of the worker's system. Raises RuntimeError where the worker has ended."""
        self._process.stdin.write(json.dumps(method) + "\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"{self._process.args[1]} ended with exit code {self._process.wait()}; see its error")
        return json.loads(line)

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *_) -> None:
        self._process.stdin.close()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process.stdout.close()


def serve(system: System) -> None:
    """Answers the driver until it closes the pipe. Whatever else is printed goes to the standard error."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    for line in sys.stdin:
        answers.write(json.dumps(getattr(system, json.loads(line))()) + "\n")
        answers.flush()


def arguments() -> dict:
    """The worker's arguments."""
    return json.loads(sys.argv[1])


def check_gate(workers: dict[str, Worker], tolerances: dict[str, float]) -> dict[str, dict[str, float]]:
    """The largest difference of each system from the first one, by system and name, as a share of the spread of the
    first one's numbers (of the number itself where there is one). Raises AssertionError above the tolerance."""
    answers = {name: worker.ask("gate") for name, worker in workers.items()}
    (_, reference), *others = answers.items()
    found: dict[str, dict[str, float]] = {}
    for system, answer in others:
        if answer.keys() != reference.keys() or reference.keys() != tolerances.keys():
            raise AssertionError(f"{system}: answers {[*answer]}, expected {[*tolerances]}")
        found[system] = {name: _difference(reference[name], answer[name]) for name in reference}
        wrong = {name: share for name, share in found[system].items() if not share <= tolerances[name]}
        if wrong:
            raise AssertionError(f"{system} computes something else: {wrong} apart, expected at most {tolerances}")
    return found


def _difference(a: list[float], b: list[float]) -> float:
    a, b = np.array(a), np.array(b)
    if a.shape != b.shape:
        return np.inf
    spread = np.abs(a).max() if a.size == 1 else np.ptp(a)
    return float(np.abs(a - b).max() / spread)


def measure(workers: dict[str, Worker], rounds: int) -> list[dict[str, dict[str, float]]]:
    """`rounds` measurements of each system: by round, system and name of the time. One more before them is for
    compiling and warming up, and not counted."""
    result = []
    for number in range(-1, rounds):
        order = list(workers) if number % 2 == 0 else list(workers)[::-1]
        times = {name: workers[name].ask("measure") for name in order}
        if number >= 0:
            result.append(times)
            print(f"  round {number + 1} of {rounds}: {_say(times)}", file=sys.stderr, flush=True)
    return result


def _say(times: dict[str, dict[str, float]]) -> str:
    return ", ".join(f"{name} {seconds['run']:.2f} s" for name, seconds in times.items())


def quartiles(values: list[float]) -> tuple[float, float, float]:
    """Median, lower and upper quartile."""
    low, median, high = np.percentile(values, [25, 50, 75])
    return float(median), float(low), float(high)

"""Bad input through the real commands: each must be refused in one line, with exit code 2, in seconds.

    python tests/faults/refusals.py --jobs 2

A small run of the simulated shop is trained first; each case of `refusal_cases.py` is a command in a copy of it.
Prints every case that ended otherwise, the number of cases and the slowest; the exit code is 1 where there is one.
`--only TEXT` does those whose names have it, and prints what each said.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import refusal_cases as cases

SECONDS = 10.0
"""How long a refusal may take."""
CSV_CONFIG = """
import runpy
from dataclasses import replace

def get_config():
    made = runpy.run_path({config!r})["get_config"]()
    return replace(made, schema=replace(made.schema, context=made.schema.context[:1]))
"""


def main() -> int:
    """Tries all cases."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", type=int, default=2, help="commands at a time")
    parser.add_argument("--only", default="")
    given = parser.parse_args()
    chosen = [case for case in cases.every() if given.only in case.name]
    wrong, slowest = 0, (0.0, "")
    with tempfile.TemporaryDirectory(prefix="srsjax-refusals-") as folder, ThreadPoolExecutor(given.jobs) as pool:
        whole = make(Path(folder) / "whole")
        for case, (why, said, took) in zip(chosen, pool.map(partial(refused, whole), chosen), strict=True):
            if why or given.only:
                print(f"{case.name}: {why or said.strip()}", flush=True)
            wrong += bool(why)
            slowest = max(slowest, (took, case.name))
    print(f"{len(chosen)} cases, {wrong} not refused as they should be; slowest: {slowest[0]:.1f} s, {slowest[1]}")
    return bool(wrong)


def make(folder: Path) -> Path:
    """A folder with a finished run, a copy of it, its data and store, and the data as two tables."""
    folder.mkdir()
    done = run(folder, "train", ("--config", "ctr.py", *cases.SMALL))
    if done.returncode:
        sys.exit(done.stderr)
    shutil.copytree(folder / "runs/ctr", folder / "runs/other")
    logs = [pq.read_table(path) for path in sorted((folder / "data/shop").rglob("log-*.parquet"))]
    pq.write_table(pa.concat_tables(logs), folder / "log.parquet")
    shutil.copy(next((folder / "data/shop").rglob("items.parquet")), folder / "items.parquet")
    config = Path(__file__).parents[2] / "configs/ctr.py"
    (folder / "one_text.py").write_text(CSV_CONFIG.format(config=str(config)))
    return folder


def refused(whole: Path, case: cases.Case) -> tuple[str, str, float]:
    """Why a case is not refused as it should be (empty where it is), what it said, and the seconds it took."""
    with tempfile.TemporaryDirectory(dir=whole.parent) as made:
        folder = Path(made) / "shop"
        shutil.copytree(whole, folder)
        if case.spoil:
            case.spoil(folder)
        began = time.monotonic()
        done = run(folder, case.command, case.arguments)
        took = time.monotonic() - began
    return why_not(done, took), done.stderr, took


def why_not(done: subprocess.CompletedProcess[str], took: float) -> str:
    """What is wrong with a refusal; empty where nothing is."""
    if done.returncode != 2:
        return f"exit code {done.returncode}, expected 2: {done.stderr.strip()[-400:] or done.stdout.strip()[-200:]}"
    if not done.stderr.startswith("error: ") or done.stderr.count("\n") != 1:
        return f"found {done.stderr.count(chr(10))} lines, expected one that begins with error: {done.stderr[-400:]}"
    return f"took {took:.1f} s" if took > SECONDS else ""


def run(folder: Path, command: str, arguments: tuple[str, ...]) -> subprocess.CompletedProcess[str]:
    """One command, on one device."""
    environment = {key: value for key, value in os.environ.items() if key != "JAX_NUM_CPU_DEVICES"}
    line = [sys.executable, "-m", f"srsjax.{command}", *arguments]
    return subprocess.run(line, cwd=folder, env=environment, capture_output=True, text=True)


if __name__ == "__main__":
    sys.exit(main())

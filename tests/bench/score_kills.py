"""Scoring of many pairs, unbroken and killed again and again: equal files, flat memory.

    python tests/bench/score_kills.py --pairs 10000000 --kills 5 --out score_kills

Trains a small DCN-V2 on the simulated shop, repeats its log until there are so many pairs, and scores them twice: once
in one go, once with `kill -9` at random times and the same command again. Prints the SHA-256 of all files of scores of
both, pairs/s, and the resident memory of the unbroken command, sampled each second.
"""

from __future__ import annotations

import argparse
import hashlib
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from bench_runs import command

LOG_ROWS = 500_000
"""Rows of one file of input."""


def make_input(folder: Path, log: Path, pairs: int) -> None:
    """Files of `LOG_ROWS` rows: the shop's log, drawn with replacement."""
    folder.mkdir(exist_ok=True)
    table = pa.concat_tables([pq.read_table(file) for file in sorted(log.glob("log-*.parquet"))])
    for number, start in enumerate(range(0, pairs, LOG_ROWS)):
        file = folder / f"part-{number:03d}.parquet"
        if not file.exists():
            rows = np.random.default_rng(number).integers(0, len(table), min(LOG_ROWS, pairs - start))
            pq.write_table(table.take(rows), file)


def start(run: Path, inputs: Path, output: Path) -> subprocess.Popen:
    """The command, as a user runs it."""
    given = ["--run", run, "--input", f"{inputs}/*.parquet", "--output", output]
    return subprocess.Popen([sys.executable, "-m", "srsjax.score", *map(str, given)], stdout=subprocess.DEVNULL)


def resident(process: subprocess.Popen) -> float:
    """MiB of memory of a process."""
    status = Path(f"/proc/{process.pid}/status").read_text()
    return next((int(line.split()[1]) / 1024 for line in status.splitlines() if line.startswith("VmRSS")), 0.0)


def unbroken(run: Path, inputs: Path, output: Path) -> tuple[float, list[float]]:
    """Seconds it took, and its memory each second."""
    began, memory = time.monotonic(), []
    process = start(run, inputs, output)
    while process.poll() is None:
        memory.append(resident(process))
        time.sleep(1)
    if process.returncode:
        raise SystemExit(f"score ended with {process.returncode}")
    return time.monotonic() - began, memory


def killed(run: Path, inputs: Path, output: Path, kills: int, seconds: float, seed: int) -> int:
    """Kills the command after random times within the `seconds` it needs, then lets it end; how many kills met it."""
    rng, met = np.random.default_rng(seed), 0
    for _ in range(kills):
        process = start(run, inputs, output)
        try:
            process.wait(float(rng.uniform(0.05, 1.6)) * seconds / kills)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            met += 1
            print(f"  killed with {len(list(output.glob('part-*.parquet')))} files complete", flush=True)
    if code := start(run, inputs, output).wait():
        raise SystemExit(f"score ended with {code}")
    return met


def digest(folder: Path) -> tuple[int, str]:
    """Number of files of scores, and one SHA-256 of their names and bytes."""
    files, made = sorted(folder.glob("part-*.parquet")), hashlib.sha256()
    for file in files:
        made.update(file.name.encode() + file.read_bytes())
    return len(files), made.hexdigest()


def main() -> None:
    """Scores twice and prints what came of it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("score_kills"), help="folder of run, input and scores")
    parser.add_argument("--pairs", type=int, default=10_000_000)
    parser.add_argument("--kills", type=int, default=5)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    out = args.out.absolute()
    out.mkdir(parents=True, exist_ok=True)
    run, shop = out / "run", ("--data.shop.folder", out / "shop", "--data.shop.impressions", 5000)
    files = ("--data.log.files", f"{out}/shop/log-*.parquet", "--data.catalogues.0.files", out / "shop/items.parquet")
    command(
        "train", "--config", "dcn.py", "--run_dir", run, "--data.store", out / "stores", "--epochs", 1, *shop, *files
    )
    make_input(out / "input", out / "shop", args.pairs)
    seconds, memory = unbroken(run, out / "input", out / "unbroken")
    print(f"unbroken: {args.pairs / seconds:,.0f} pairs/s, start included ({seconds:.0f} s)", flush=True)
    quarters = [f"{max(part):,.0f}" for part in np.array_split(memory, 4)]
    print(f"memory, largest of each quarter of the time: {', '.join(quarters)} MiB", flush=True)
    met = killed(run, out / "input", out / "killed", args.kills, seconds, args.seed)
    first, second = digest(out / "unbroken"), digest(out / "killed")
    print(f"killed {met} times; files {first[0]} and {second[0]}, SHA-256 {first[1][:16]} and {second[1][:16]}")
    print("equal" if first == second else "NOT EQUAL")
    sys.exit(first != second)


if __name__ == "__main__":
    main()

"""Weak scaling on CPU devices that share this machine: the same rows on each of 1, 2, 4 and 8.

    python tests/bench/scaling.py --out scaling

The devices have no cores of their own, so tokens a second cannot rise with them
and are no forecast for real devices. What is measured is the overhead of dividing a step: sharding, collectives and the
host's part, against one device that computes the same rows alone. Both run in processes of their own that take turns,
and every figure is the median of the rounds. Prints a markdown table.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", default="scaling", help="folder of the data and of results.json")
    parser.add_argument("--devices", type=int, nargs="+", default=[1, 2, 4, 8])
    parser.add_argument("--rows", type=int, default=4, help="rows of each device")
    parser.add_argument("--hidden", type=int, default=128)
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=10, help="steps of a round, after two that are not counted")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        work(arguments)
        return
    out = Path(arguments.out)
    out.mkdir(parents=True, exist_ok=True)
    jobs = list(dict.fromkeys((size, rows) for rows in arguments.devices for size in (rows, 1)))
    found: dict[tuple[int, int], list[dict]] = {job: [] for job in jobs}
    for _ in range(arguments.rounds):
        for devices, parts in jobs:
            found[devices, parts].append(measure(arguments, devices, parts))
    median = {
        job: {name: statistics.median(result[name] for result in results) for name in results[0]}
        for job, results in found.items()
    }
    print(f"rows of each device: {arguments.rows}; {os.cpu_count()} cores; medians of {arguments.rounds} rounds\n")
    print("| devices | rows | ms a step | tokens/s | one device, same rows: ms | overhead |")
    print("|---|---|---|---|---|---|")
    for n in arguments.devices:
        many, one = median[n, n], median[1, n]
        print(
            f"| {n} | {n * arguments.rows} | {1e3 * many['seconds']:.1f} | {many['tokens'] / many['seconds']:,.0f} | "
            f"{1e3 * one['seconds']:.1f} | {many['seconds'] / one['seconds'] - 1:+.0%} |"
        )
    results = [{"devices": job[0], "rows": job[1] * arguments.rows, "rounds": rounds} for job, rounds in found.items()]
    (out / "results.json").write_text(json.dumps(results, indent=2))


def measure(arguments: argparse.Namespace, devices: int, parts: int) -> dict[str, float]:
    """Median seconds and mean tokens of a step of `parts` x `rows` rows on `devices`, in a process of their own."""
    given = ["--out", arguments.out, "--hidden", arguments.hidden, "--layers", arguments.layers]
    given += ["--steps", arguments.steps, "--rows", parts * arguments.rows, "--worker", devices]
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": str(devices)}
    command = [sys.executable, __file__, *map(str, given)]
    done = subprocess.run(command, env=environment, check=True, capture_output=True, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def work(arguments: argparse.Namespace) -> None:
    """Times the steps of one worker and prints the result as JSON."""
    import jax

    from srsjax.cli import read_config
    from srsjax.compilation import enable_cache
    from srsjax.console import Console
    from srsjax.runs.sharding import put_batch
    from srsjax.training.setup import set_up

    enable_cache()
    config = read_config("ctr")
    shop = f"{Path(arguments.out).resolve()}/shop"
    width = arguments.hidden
    sizes = {"hidden_size": width, "intermediate_size": 4 * width, "num_layers": arguments.layers}
    data = replace(config.data, shop=replace(config.data.shop, folder=shop, impressions=4000))
    data = replace(data, log=replace(data.log, files=f"{shop}/log-*.parquet"), store=f"{arguments.out}/stores")
    data = replace(data, catalogues=(replace(data.catalogues[0], files=f"{shop}/items.parquet"),))
    config = replace(
        config,
        data=data,
        model=replace(config.model, **sizes),
        batch=replace(config.batch, rows=arguments.rows),
        max_steps=arguments.steps + 2,
    )
    with open(os.devnull, "w") as nowhere:
        training = set_up(config, Console(file=nowhere))
    state, times, tokens = training.state, [], 0
    for number, (batch, _) in enumerate(training.batches):
        started = time.perf_counter()
        state, metrics = training.step(state, put_batch(training.session.mesh, batch, row_axis=1))
        jax.block_until_ready(metrics.loss)
        if number >= 2:
            times.append(time.perf_counter() - started)
            tokens += int((batch.segment > 0).sum())
    print(json.dumps({"seconds": statistics.median(times), "tokens": tokens / len(times)}))


if __name__ == "__main__":
    main()

"""Quality against speed: each interaction trained alike on real data, then scoring contexts with a whole catalogue.

    SRSJAX_DATA=data SRSJAX_MINILM=minilm python tests/bench/tradeoff.py --config product_matching --out tradeoff

Trains one run for each interaction (kept in the folder, and not repeated), prints the metric of its test split with the
95 % interval, and measures `Scorer.recommend` from contexts of the log to the ten best of all items, tokenising of
contexts included. Items are tokenised, and the lower layers of `split` and the vectors of `towers` computed, once
before; that is what the bytes of an item are. The interactions take turns (`paired.py`).
"""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
from contextlib import ExitStack
from pathlib import Path

import numpy as np
from bench_runs import command
from interactions import SETS
from paired import Clock, Worker, arguments, check_gate, measure, quartiles, serve

SPLIT = "split after "
INTERACTIONS = ("cross", "shared", f"{SPLIT}2", f"{SPLIT}4", f"{SPLIT}5", "towers")
CONTEXTS = {"cross": 1, "towers": 256}
"""Contexts of one measurement; 2 of the others."""
TOP = 10


class System:
    """A run that recommends from its catalogue."""

    def __init__(self, run: str, contexts: int, threads: int):
        import pyarrow.parquet as pq

        from srsjax.data.reading.files import expand
        from srsjax.inference.scorer import Scorer

        del threads  # the processor affinity decides
        self.scorer = Scorer.load(run, unknown="missing")
        rows = pq.read_table(expand(self.scorer.config.data.log.files)[0]).to_pylist()
        self.contexts = [rows[i] for i in np.random.default_rng(0).integers(0, len(rows), contexts)]
        self.items = len(self.scorer.encoder.items.tokens)
        self.bytes = 4.0 * len(self.scorer.encoder.items.tokens.values)
        if self.scorer.can_store_items:
            self.bytes = self.scorer.store_items().states.nbytes
        elif self.scorer.session.spec.interaction.reads_context:
            self.bytes = self.scorer.item_vectors().vectors.nbytes

    def gate(self) -> dict[str, list[float]]:
        """The number of items, which all must score."""
        return {"items": [float(self.items)]}

    def measure(self) -> dict[str, float]:
        times: dict[str, float] = {}
        with Clock(times, "run"):
            self.scorer.recommend(self.contexts, top_k=TOP)
        pairs = len(self.contexts) * self.items
        return times | {"pairs": pairs, "bytes": self.bytes / self.items}


def train(folder: Path, config: str, interaction: str) -> Path:
    """The run of an interaction, trained where it is not there."""
    run = folder / f"{config}-{interaction.replace(' ', '-')}"
    kind, _, layers = interaction.partition(SPLIT.removeprefix("split"))
    options = ["--model.interaction", kind, "--model.readout", "mean" if kind == "towers" else "pooled"]
    options += ["--model.split_layers", layers] if layers else []
    command(
        "train", "--config", config, "--run_dir", run, "--data.store", folder / "stores", *options, *SETS[config][2]
    )
    return run


def main() -> None:
    """Trains, measures and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("tradeoff"), help="folder of runs and table")
    parser.add_argument("--config", choices=SETS, default="product_matching")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    runs = {name: train(args.out.absolute(), args.config, name) for name in INTERACTIONS}
    with ExitStack() as stack:
        workers = {}
        for name, run in runs.items():
            given = {"run": str(run), "contexts": CONTEXTS.get(name, 2)}
            workers[name] = stack.enter_context(Worker(Path(__file__), args.threads, given))
        check_gate(workers, {"items": 0})
        rounds = measure(workers, args.rounds)
    metric = SETS[args.config][1]
    lines = [
        f"| interaction | test {metric} (95 %) | pairs/s | of `cross` (quartiles) | bytes of an item |",
        "|---" * 5 + "|",
    ]
    for name, run in runs.items():
        report = json.loads((run / "report.json").read_text())
        low, high = report["test_intervals"][metric]
        speed = [each[name]["pairs"] / each[name]["run"] for each in rounds]
        of = quartiles(
            [own * each["cross"]["run"] / each["cross"]["pairs"] for own, each in zip(speed, rounds, strict=True)]
        )
        lines.append(
            f"| {name} | {report['test'][metric]:.3f} ({low:.3f} to {high:.3f}) | {np.median(speed):,.0f} "
            f"| {of[0]:.1f} ({of[1]:.1f} to {of[2]:.1f}) | {rounds[0][name]['bytes']:,.0f} |"
        )
    table = "\n".join(lines) + "\n"
    (args.out / f"{args.config}.md").write_text(table)
    print(table)


if __name__ == "__main__":
    if sys.argv[1:] and sys.argv[1].startswith("{"):
        with contextlib.redirect_stdout(sys.stderr):  # the answers alone go there
            made = System(**arguments())
        serve(made)
    else:
        main()

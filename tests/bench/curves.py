"""Whether packing changes what is learnt: loss curves of packed rows beside one pair a row.

    SRSJAX_DATA=data SRSJAX_MINILM=minilm python tests/bench/curves.py --out curves

Both train with the same seeds, epochs and (on average) pairs a step; `unpacked` has one pair in a row, and padding
behind it. The table gives the mean training loss in each fifth of the run and the test AUC: mean over the seeds, with
the lowest and the highest. Every finished training is a line of `curves/runs.jsonl` and is not repeated.
"""

from __future__ import annotations

import argparse
import itertools
import json
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
from bench_examples import load_config
from bench_runs import command, read_lines, run_missing

from srsjax.data.preparing.prepare import prepare
from srsjax.data.store.tokenizer import load_tokenizer
from srsjax.runs.spec import layout_of, make_spec
from srsjax.runs.steps import training_batches

PARTS = 5


def pairs_a_step(name: str, stores: Path) -> int:
    """Mean number of pairs in a packed step of the config."""
    config = load_config(name)
    config = replace(config, data=replace(config.data, store=str(stores)))
    store = prepare(config, log=lambda text: None)
    text = load_tokenizer(str(store.folder / "tokenizer"))
    layout = layout_of(make_spec(config, text), text)
    batches = training_batches(replace(config, epochs=1), store, layout)
    return round(sum(int((numbers >= 0).sum()) for _, numbers in batches) / batches.steps)


def train(folder: Path, config: str, rows: str, seed: int) -> dict:
    """One training: its loss in each part of the run and its test AUC."""
    run = folder / f"{config}-{rows}-{seed}"
    options = []
    if rows == "unpacked":
        options = ["--batch.candidates", 1, "--batch.rows", pairs_a_step(config, folder / "stores")]
    fixed = ("--seed", seed, "--log_every", 1, "--data.store", folder / "stores", "--overwrite", True)
    command("train", "--config", config, "--run_dir", run, *fixed, *options)
    losses = [line["loss"] for line in read_lines(run / "metrics.jsonl") if line["kind"] == "train"]
    parts = [float(np.mean(part)) for part in np.array_split(losses, PARTS)]
    return {"steps": len(losses), "losses": parts, "auc": json.loads((run / "report.json").read_text())["test"]["auc"]}


def markdown(runs: list[dict]) -> str:
    """A line for each config and kind of rows."""
    fifths = " | ".join(f"loss, part {part}" for part in range(1, PARTS + 1))
    lines = [f"| config | rows | seeds | steps | {fifths} | test AUC |", "|---" * (PARTS + 5) + "|"]
    for config, rows in sorted({(run["config"], run["rows"]) for run in runs}):
        own = [run for run in runs if (run["config"], run["rows"]) == (config, rows)]
        cells = [_cell(values) for values in zip(*([*run["losses"], run["auc"]] for run in own), strict=True)]
        steps = round(np.mean([run["steps"] for run in own]))
        lines.append(f"| {config} | {rows} | {len(own)} | {steps} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _cell(values: tuple[float, ...]) -> str:
    return f"{np.mean(values):.3f} ({min(values):.3f} to {max(values):.3f})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("curves"), help="folder of runs and table")
    parser.add_argument("--configs", nargs="+", default=["esci"])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    args = parser.parse_args()
    args.out = args.out.absolute()
    args.out.mkdir(parents=True, exist_ok=True)
    wanted = itertools.product(args.seeds, args.configs, ("packed", "unpacked"))
    keys = [dict(zip(("seed", "config", "rows"), values, strict=True)) for values in wanted]
    runs = run_missing(args.out / "runs.jsonl", keys, partial(train, args.out))
    (args.out / "curves.md").write_text(markdown(runs))
    print(markdown(runs))


if __name__ == "__main__":
    main()

"""The price of each interaction: `cross`, `shared`, `split` and `towers` trained alike on four data sets.

    SRSJAX_DATA=data SRSJAX_MINILM=minilm python tests/bench/interactions.py --out interactions

What `shared` was chosen by, on product matching:

    ... interactions.py --configs product_matching --interactions shared "from 0" "one type" first mean

Every finished training is a line of `interactions/runs.jsonl` and is not repeated when the command runs again. The
table gives the mean over the seeds of the test metric, with the lowest and the highest. What each interaction costs in
time is measured apart (`speed.py interaction`, `speed.py scoring`).
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import shutil
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
from bench_runs import command, run_missing

INTERACTIONS = ("cross", "shared", "split", "towers")
TRIALS: dict[str, tuple] = {
    # title, interaction, what is tried with it
    "from 0": ("shared", "--model.candidate_start", 0),
    "one type": ("shared",),
    "first": ("shared", "--model.readout", "first"),
    "mean": ("shared", "--model.readout", "mean"),
}
"""What `shared` was chosen by: candidates that start again at position 0, both sides of one token type, and other
read-outs than the pooled one."""
SETS: dict[str, tuple[str, str, tuple]] = {
    # title, metric, what makes impressions larger than one candidate and rows wide enough for them
    "product_matching": ("Product matching", "auc", ()),
    "esci": ("ESCI sample", "auc", ("--data.group_by", "query_id", "--batch.rows", 4, "--batch.tokens", 256)),
    "chorus": ("Chorus", "ndcg@10", ()),
    "ctr": ("Simulated shop, 1 epoch", "auc", ("--epochs", 1, "--batch.rows", 4, "--batch.tokens", 512)),
}
"""Rows of one step hold the same number of tokens as the config's own."""


def train(folder: Path, config: str, interaction: str, seed: int) -> dict:
    """One training: its metric on valid and test."""
    run = folder / f"{config}-{interaction.replace(' ', '-')}-{seed}"
    kind, *tried = TRIALS.get(interaction, (interaction,))
    options = ("--model.interaction", kind, *tried, "--seed", seed, "--data.store", folder / "stores", *SETS[config][2])
    if interaction == "one type":
        options += ("--tokenizer.source", one_type(folder / "one-type"))
    if "--model.readout" not in tried:
        options += ("--model.readout", "mean" if interaction == "towers" else "pooled")
    if config == "ctr":
        options += ("--data.shop.folder", folder / "shop", "--data.log.files", str(folder / "shop/log-*.parquet"))
        options += ("--data.catalogues.0.files", folder / "shop/items.parquet")
    command("train", "--config", config, "--run_dir", run, "--overwrite", True, *options)
    report = json.loads((run / "report.json").read_text())
    return {split: report[split][SETS[config][1]] for split in ("valid", "test")}


def one_type(folder: Path) -> Path:
    """A folder with the tokenizer of the weights, but for both sides of a pair having token type 0."""
    shutil.copytree(
        os.environ["SRSJAX_MINILM"], folder, ignore=shutil.ignore_patterns("*.safetensors"), dirs_exist_ok=True
    )
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    for part in tokenizer["post_processor"]["pair"]:
        next(iter(part.values()))["type_id"] = 0
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    return folder


def markdown(runs: list[dict], columns: Sequence[str]) -> str:
    """Mean, lowest and highest over the seeds."""
    lines = ["| data | seeds | test metric | " + " | ".join(columns) + " |", "|---" * (3 + len(columns)) + "|"]
    for name, (title, metric, _) in SETS.items():
        found = [[r for r in runs if (r["config"], r["interaction"]) == (name, kind)] for kind in columns]
        seeds = ", ".join(map(str, sorted({r["seed"] for own in found for r in own})))
        if seeds:
            cells = " | ".join(_cell([r["test"] for r in own]) for own in found)
            lines.append(f"| {title} | {seeds} | {metric} | {cells} |")
    return "\n".join(lines) + "\n"


def _cell(values: list[float]) -> str:
    return f"{np.mean(values):.3f} ({min(values):.3f} to {max(values):.3f})" if values else "–"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("interactions"), help="folder of runs and table")
    parser.add_argument("--configs", nargs="+", choices=SETS, default=list(SETS))
    parser.add_argument("--interactions", nargs="+", choices=[*INTERACTIONS, *TRIALS], default=list(INTERACTIONS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    args = parser.parse_args()
    args.out = args.out.absolute()
    args.out.mkdir(parents=True, exist_ok=True)
    wanted = itertools.product(args.seeds, args.configs, args.interactions)
    keys = [dict(zip(("seed", "config", "interaction"), values, strict=True)) for values in wanted]
    runs = run_missing(args.out / "runs.jsonl", keys, partial(train, args.out))
    table = markdown(runs, args.interactions)
    (args.out / "interactions.md").write_text(table)
    print(table)


if __name__ == "__main__":
    main()

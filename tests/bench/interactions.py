"""The price of each interaction: `cross`, `shared`, `split` and `towers` trained alike on four data sets.

    SRSJAX_DATA=data SRSJAX_MINILM=minilm python tests/bench/interactions.py --out interactions

Every finished training is a line of `interactions/runs.jsonl` and is not repeated when the command runs again. The
table gives the mean over the seeds of the test metric, with the lowest and the highest. What each interaction costs in
time is measured apart (`speed.py interaction`, `speed.py scoring`).
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
from bench_runs import command, read_lines

INTERACTIONS = ("cross", "shared", "split", "towers")
SETS: dict[str, tuple[str, str, tuple]] = {
    # title, metric, what makes impressions larger than one candidate and rows wide enough for them
    "product_matching": ("Product matching", "auc", ()),
    "esci": ("ESCI sample", "auc", ("--data.group_by", "query_id", "--batch.rows", 4, "--batch.tokens", 256)),
    "chorus": ("Chorus", "ndcg@10", ()),
    "ctr": ("Simulated shop, 1 epoch", "auc", ("--epochs", 1, "--batch.rows", 4, "--batch.tokens", 512)),
}
"""Rows of one step hold the same number of tokens as the config's own."""


def train(name: str, interaction: str, seed: int, folder: Path) -> dict:
    """One training: its line of results."""
    run = folder / f"{name}-{interaction}-{seed}"
    options = ("--model.interaction", interaction, "--seed", seed, "--data.store", folder / "stores", *SETS[name][2])
    if interaction == "towers":
        options += ("--model.readout", "mean")
    if name == "ctr":
        options += ("--data.shop.folder", folder / "shop", "--data.log.files", str(folder / "shop/log-*.parquet"))
        options += ("--data.catalogues.0.files", folder / "shop/items.parquet")
    command("train", "--config", name, "--run_dir", run, "--overwrite", True, *options)
    report = json.loads((run / "report.json").read_text())
    values = {split: report[split][SETS[name][1]] for split in ("valid", "test")}
    return {"config": name, "interaction": interaction, "seed": seed, **values}


def markdown(runs: list[dict]) -> str:
    """Mean, lowest and highest over the seeds."""
    lines = [
        "| data | seeds | test metric | " + " | ".join(INTERACTIONS) + " |",
        "|---" * (3 + len(INTERACTIONS)) + "|",
    ]
    for name, (title, metric, _) in SETS.items():
        found = [[r for r in runs if (r["config"], r["interaction"]) == (name, kind)] for kind in INTERACTIONS]
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
    parser.add_argument("--interactions", nargs="+", choices=INTERACTIONS, default=list(INTERACTIONS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    args = parser.parse_args()
    args.out = args.out.absolute()
    args.out.mkdir(parents=True, exist_ok=True)
    log = args.out / "runs.jsonl"
    runs = read_lines(log) if log.exists() else []
    done = {(r["config"], r["interaction"], r["seed"]) for r in runs}
    for wanted in [(n, i, s) for s in args.seeds for n in args.configs for i in args.interactions]:
        if wanted not in done:
            runs.append(train(*wanted, args.out))
            with log.open("a") as file:
                file.write(json.dumps(runs[-1]) + "\n")
    (args.out / "interactions.md").write_text(markdown(runs))
    print(markdown(runs))


if __name__ == "__main__":
    main()

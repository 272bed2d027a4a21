"""Recipes of `configs` on real data, over seeds: what they reach on the test split, and what calibration does there.

    SRSJAX_DATA=data SRSJAX_MINILM=minilm python tests/bench/recipes.py --out recipes --recipes reviews intent

Every finished training is a line of `recipes/runs.jsonl` and is not repeated when the command runs again. The tables
give the mean over the seeds, with the lowest and the highest; before calibration are the logits of the model itself.
With `--chance` also what the ECE of a run would be if its probabilities were true: labels are drawn from them.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from bench_runs import command, run_missing

from srsjax.inference.scorer import Scorer
from srsjax.metrics.calibration import ece, sigmoid
from srsjax.runs.evaluation import run_split
from srsjax.runs.run_folder import RunFolder

CONFIGS = Path(__file__).parents[2] / "configs"
DATA = "${SRSJAX_DATA}"
CHINESE = (
    *("--model.pretrained", "", "--model.hidden_size", 256, "--model.num_layers", 2, "--model.intermediate_size", 512),
    *("--model.initializer_range", 0.06, "--tokenizer.vocab_size", 6000, "--schema.context.0.max_tokens", 128),
    *("--schema.candidate.0.max_tokens", 64, "--batch.tokens", 256, "--optimizer.learning_rate", 1e-3, "--epochs", 8),
)
"""A fresh small encoder: the English weights know no Chinese."""


@dataclass(frozen=True)
class Recipe:
    """A training of a config on a data set."""

    config: str
    metrics: tuple[str, ...]
    """Of the test split, as `report.json` names them."""
    options: tuple = ()
    joined: str = ""
    """A file of the data set that the config's own command writes, where it reads one."""
    changed: str = ""
    """Another config, made of it (`of`) in Python."""
    apart: str = ""
    """A class that is measured apart, as `recall of CLASS`, `precision of CLASS` and `accuracy of the others`."""


RECIPES = {
    "reviews": Recipe("reviews", ("auc",)),
    "esci": Recipe("esci", ("auc",)),
    "ratings": Recipe("ratings", ("liked/auc", "rmse")),
    "ctr": Recipe("ctr", ("auc",)),
    "purchases": Recipe("purchases", ("auc",)),
    "sentiment": Recipe("sentiment", ("accuracy", "macro_f1", "recommended/auc")),
    "intent": Recipe("intent", ("accuracy", "macro_f1")),
    "clinc": Recipe(
        "intent",
        ("accuracy", "accuracy of the others", "recall of oos", "precision of oos"),
        (
            *("--data.log.files", f"{DATA}/clinc150/utterances.parquet"),
            *("--evaluate.class_shares", "oos=0.2"),
        ),
        apart="oos",
    ),
    "bitext": Recipe(
        "intent",
        ("accuracy", "macro_f1"),
        (
            *("--data.log.files", f"{DATA}/bitext_customer_support/utterances.parquet"),
            *("--schema.candidate.0.column", "utterance", "--epochs", 2),
        ),
    ),
    "multidogo": Recipe(
        "intent",
        ("accuracy", "macro_f1"),
        (
            *("--data.log.files", f"{DATA}/multidogo_intents/turns.parquet"),
            *("--epochs", 1, "--batch.rows", 16),
        ),
        "multidogo_intents/turns.parquet",
    ),
    "retail": Recipe("retail", ("auc",), (), "online_retail/purchases.parquet"),
    "retail, with recency": Recipe(
        "retail",
        ("auc",),
        (),
        "online_retail/purchases.parquet",
        'replace(made, schema=replace(made.schema, context=(*made.schema.context, of["RECENCY"])))',
    ),
    "crosswoz": Recipe(
        "reply",
        ("r@1", "mrr"),
        ("--data.log.files", f"{DATA}/crosswoz_zh/replies.parquet", *CHINESE),
        "crosswoz_zh/replies.parquet",
    ),
}
CHANGED = """
import runpy
from dataclasses import replace

of = runpy.run_path({config!r})
made = of["get_config"]()


def get_config():
    return {changed}
"""
CALIBRATED = (("log_loss", "cross_entropy"), ("ece",))
"""Names of a metric: cross-entropy is the log loss of classes."""


def train(folder: Path, recipe: str, seed: int) -> dict:
    """One training: its metrics on test, calibrated and not, and the map of each task."""
    of, run, started = RECIPES[recipe], run_of(folder, recipe, seed), time.time()
    options = (*of.options, "--seed", seed, "--data.store", folder / "stores")
    if of.joined:
        join(of)
    if of.config == "ctr":
        options += ("--data.shop.folder", folder / "shop", "--data.log.files", str(folder / "shop/log-*.parquet"))
        options += ("--data.catalogues.0.files", folder / "shop/items.parquet")
    config = of.config
    if of.changed:
        config = str(run.with_suffix(".py"))
        path = str(CONFIGS / f"{of.config}.py")
        Path(config).write_text(CHANGED.format(config=path, changed=of.changed))
    command("train", "--config", config, "--run_dir", run, *options)
    report, maps = (json.loads((run / f"{name}.json").read_text()) for name in ("report", "calibration"))
    found = {name: report[name] for name in ("test", "test_uncalibrated", "test_intervals")}
    if of.apart:
        found["test"] |= measured_apart(report["test_classes"], of.apart)
    return {
        **found,
        "maps": {task: own["method"] for task, own in maps["tasks"].items()},
        "seconds": time.time() - started,
    }


def measured_apart(tables: dict, name: str) -> dict[str, float]:
    """Of the first task's table of classes."""
    classes = dict(next(iter(tables.values())))
    own = classes.pop(name)
    rows = sum(each["support"] for each in classes.values())
    right = sum(each["recall"] * each["support"] for each in classes.values())
    found = {f"{key} of {name}": own[key] for key in ("recall", "precision")}
    return found | {"accuracy of the others": right / rows}


def run_of(folder: Path, recipe: str, seed: int) -> Path:
    """Its run folder."""
    return folder / f"{recipe.replace(', ', '-').replace(' ', '-')}-{seed}"


def join(recipe: Recipe) -> None:
    """Writes the table of a data set that comes in several, where it is not there."""
    written = Path(os.environ["SRSJAX_DATA"]) / recipe.joined
    if not written.exists():
        subprocess.run([sys.executable, CONFIGS / f"{recipe.config}.py", written.parent], check=True)


def spread(values: Sequence[float]) -> str:
    """The mean; with the lowest and the highest where there are several."""
    if len(values) == 1:
        return f"{values[0]:.3f}"
    return f"{np.mean(values):.3f} ({min(values):.3f} to {max(values):.3f})"


def results(runs: dict[str, list[dict]]) -> str:
    """The metrics of each recipe as a table."""
    lines = ["| recipe | seeds | test metric | mean (lowest to highest) |", "|---|---|---|---|"]
    for recipe, of in runs.items():
        seeds = ", ".join(str(run["seed"]) for run in of)
        for metric in RECIPES[recipe].metrics:
            lines.append(f"| {recipe} | {seeds} | {metric} | {spread([run['test'][metric] for run in of])} |")
    return "\n".join(lines)


def calibration(runs: dict[str, list[dict]]) -> str:
    """Log loss and ECE of each task that predicts a probability, before and after, as a table."""
    lines = ["| recipe, task | map of each seed | log loss before | after | ECE before | after |", "|---" * 6 + "|"]
    for recipe, of in runs.items():
        for task in of[0]["maps"]:
            cells = []
            for names in CALIBRATED:
                metric = next(key for key in candidates(task, names) if key in of[0]["test"])
                after = [run["test"][metric] for run in of]
                cells += [spread([run["test_uncalibrated"].get(metric, run["test"][metric]) for run in of])]
                cells += [spread(after)]
            lines.append(f"| {recipe}, {task} | {', '.join(run['maps'][task] for run in of)} | {' | '.join(cells)} |")
    return "\n".join(lines)


def chance(folder: Path, recipe: str, seed: int) -> str:
    """The ECE of the first task's own probabilities on the test split with labels drawn from them: mean, and between
    which nine of ten draws are. The fewer the rows, the higher."""
    run = run_of(folder, recipe, seed)
    scorer = Scorer.load(run)
    store, split = run_split(RunFolder(run), scorer.config, "test")
    found, rng = sigmoid(scorer.logits(split, store.items)[:, 0]), np.random.default_rng(0)
    drawn = [ece(found, rng.random(len(found)) < found, np.ones(len(found))) for _ in range(1000)]
    low, high = np.quantile(drawn, (0.05, 0.95))
    return f"{recipe}, seed {seed}, {len(found):,} rows: {np.mean(drawn):.3f} ({low:.3f} to {high:.3f})"


def candidates(task: str, names: Sequence[str]) -> list[str]:
    """Where a metric of a task may be: the first task has no prefix."""
    return [f"{task}/{name}" for name in names] + list(names)


def main() -> None:
    """Trains what is not there yet, and prints two tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("recipes"), help="folder of the runs")
    parser.add_argument("--recipes", nargs="+", choices=RECIPES, default=list(RECIPES))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--chance", action="store_true", help="the ECE that true probabilities would have")
    given = parser.parse_args()
    folder = given.out.absolute()
    folder.mkdir(parents=True, exist_ok=True)
    wanted = [{"recipe": recipe, "seed": seed} for recipe, seed in itertools.product(given.recipes, given.seeds)]
    found = run_missing(folder / "runs.jsonl", wanted, partial(train, folder))
    chosen = [run for run in found if {"recipe": run["recipe"], "seed": run["seed"]} in wanted]
    chosen.sort(key=lambda run: run["seed"])
    runs = {recipe: [run for run in chosen if run["recipe"] == recipe] for recipe in given.recipes}
    print(f"\n{results(runs)}\n\n{calibration(runs)}")
    for run in chosen if given.chance else ():
        print(f"ECE of true probabilities, {chance(folder, run['recipe'], run['seed'])}")


if __name__ == "__main__":
    main()

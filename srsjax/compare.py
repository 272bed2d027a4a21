"""Compares runs on the same rows: `python -m srsjax.compare --runs runs/a runs/b --split test --slices brand`.

Scores the split with every run, and says of each metric which run is better and how surely: the difference to the first
run with its 95 % interval, paired, since both scored the same rows. `--slices` repeats that within the categories of a
feature. Also printed is what differs in the configs. Runs may have other features and tokenizers; they must have been
made of the same log, split the same way. An interval speaks for other users: that another seed might turn the result
around it does not say. `--cost` adds a table of size, speed, metrics and agreement: what a smaller run gains and loses.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
from rich.table import Table

from srsjax import cli, distributed
from srsjax.bounds import AtLeast1
from srsjax.compilation import enable_cache
from srsjax.config import TrainConfig
from srsjax.config_io import to_json
from srsjax.console import say
from srsjax.cpu import keep_freed_memory
from srsjax.data.store.arrays import Split, Store
from srsjax.errors import InputError
from srsjax.files import make_way, write_json
from srsjax.inference.cost import AGREEMENT, agreement, cost_table, timed
from srsjax.inference.scorer import Scorer
from srsjax.metrics import intervals, report
from srsjax.metrics.intervals import Interval, Spread
from srsjax.metrics.table import Candidates, row_of
from srsjax.model.spec import Outputs
from srsjax.objectives import objectives, predict
from srsjax.runs.evaluation import run_split
from srsjax.runs.run_folder import RunFolder, changed_fields
from srsjax.runs.slices import Frame, feature_groups


@dataclass(frozen=True)
class Arguments:
    """What the command takes."""

    runs: tuple[str, ...]
    """Run folders written by srsjax.train, two or more; the others are compared with the first."""
    split: str = "test"
    """Split of the runs' data: train, valid or test."""
    slices: tuple[str, ...] = ()
    """Categorical or Numeric features of the first run: the first task is also compared within their largest
    categories, or within quarters of a number."""
    categories: AtLeast1 = 8
    """Largest categories of each feature."""
    cost: bool = False
    """Also time scoring, and print what each run costs and is worth: MiB of its parameters, pairs a second here, and
    the rank correlation with the scores of the first run."""
    output: str = ""
    """JSON file to write the comparison to."""


@dataclass(frozen=True)
class Scored:
    """A run and its calibrated logits of the split."""

    name: str
    config: TrainConfig
    outputs: tuple[Outputs, ...]
    store: Store
    split: Split
    logits: np.ndarray
    """[M, K]."""
    cost: Mapping[str, float]
    """Size and speed (`srsjax.inference.cost.timed`), where they were asked for."""

    @cached_property
    def tasks(self) -> dict[str, tuple[str, tuple[str, ...], np.ndarray]]:
        """By name: kind and classes of the task, and what its metrics are taken of, [M] or [M, K]."""
        made = objectives(self.config.schema.tasks, self.outputs)
        return {
            each.task.name: (each.kind, of.classes, each.measured(self.logits[:, own]))
            for (each, own), of in zip(made, self.outputs, strict=True)
        }

    @property
    def scores(self) -> np.ndarray:
        """[M, T] float64, of all tasks."""
        return predict(self.config.schema.tasks, self.outputs, self.logits)


def main(argv: list[str] | None = None) -> int:
    """Runs the command; returns its exit code."""
    arguments = cli.parse(Arguments, argv, "compare", __doc__)
    if len(set(arguments.runs)) < max(2, len(arguments.runs)):
        raise InputError(f"--runs: found {' '.join(arguments.runs)}, expected two or more run folders, each once")
    distributed.initialize()
    if arguments.output:
        distributed.on_first(lambda: make_way(arguments.output))
    enable_cache()
    keep_freed_memory()
    first, *others = [scored(run, arguments.split, arguments.cost) for run in arguments.runs]
    slices = [each for name in arguments.slices for each in groups(first, name, arguments.categories)]
    found = {other.name: compare(first, other, slices) for other in others}
    for name, of in found.items():
        say(table(first.name, name, of["metrics"], f"{arguments.split} split, {of['rows']:,} rows"))
        if of["slices"]:
            say(slice_table(name, of["slices"]))
        for line in of["config"]:
            say(f"  {line}")
    written: dict[str, Any] = {"first": first.name, "compared": found}
    if arguments.cost:
        written["cost"] = costs(first, others, found)
        say(cost_table(written["cost"], f"{arguments.split} split, cost and worth", "run"))
    if arguments.output and distributed.is_first():
        write_json(Path(arguments.output), written)
    return 0


def scored(run: str, name: str, cost: bool = False) -> Scored:
    """A run with its scores of a split, with `cost` timed. Errors are those of `Scorer.load` and `run_split`."""
    folder = RunFolder(run)
    config = folder.config()
    scorer = Scorer.load(run, config=config, unknown=None)
    store, split = run_split(folder, config, name)
    outputs = scorer.session.spec.outputs
    compute = partial(scorer.raw_logits, split, store.items)
    raw, found = timed(scorer, compute) if cost else (compute(), {})
    logits = scorer.calibration.apply(config.schema, outputs, split, store.items, raw)
    return Scored(run, config, tuple(outputs), store, split, logits, found)


def compare(first: Scored, other: Scored, slices: list[tuple[str, np.ndarray]]) -> dict[str, Any]:
    """What differs between two runs, as plain data: metrics of all tasks that both have, of the first of them within
    slices (names and masks [M] of the first run's rows), and fields of the config.

    Raises InputError where they have no task or no rows in common.
    """
    rows, of_other = shared_rows(first, other)
    names = [
        name for name, (kind, classes, _) in first.tasks.items() if other.tasks.get(name, ())[:2] == (kind, classes)
    ]
    if not names:
        raise InputError(f"{other.name}: no task of the name and kind of one of {first.name}, expected one")
    metrics: dict[str, Any] = {}
    within: dict[str, Any] = {}
    for name in names:
        prefix = "" if name == next(iter(first.tasks)) else f"{name}/"
        metrics |= {prefix + key: each for key, each in _compared(first, other, name, rows, of_other).items()}
    for label, mask in slices:
        kept = mask[rows]
        apart = _compared(first, other, names[0], rows[kept], of_other[kept])
        headline = {key: each for key, each in apart.items() if row_of(key).headline}
        within[label] = {"rows": int(kept.sum()), "metrics": headline}
    old, new = (to_json(each.config) for each in (first, other))
    config = [
        f"{name}: {there!r} in {first.name}, {here!r} in {other.name}" for name, there, here in changed_fields(old, new)
    ]
    return {"rows": len(rows), "metrics": metrics, "slices": within, "config": config}


def costs(
    first: Scored, others: Sequence[Scored], found: Mapping[str, Mapping[str, Any]]
) -> dict[str, dict[str, float]]:
    """By run: size, speed, metrics on the shared rows, and the rank correlation with the scores of the first run there;
    `found` is what `compare` found of each of the others."""
    metrics = [of["metrics"] for of in found.values()]
    rows = {first.name: {**first.cost, **{key: each["first"] for key, each in metrics[0].items()}, AGREEMENT: 1.0}}
    for other, of in zip(others, metrics, strict=True):
        at, of_other = shared_rows(first, other)
        mine, theirs = (
            dict(zip((task.name for task in each.config.schema.tasks), each.scores[own].T, strict=True))
            for each, own in ((first, at), (other, of_other))
        )
        both = [name for name in mine if name in theirs]
        same = agreement(*(np.stack([each[name] for name in both], axis=1) for each in (mine, theirs)))
        rows[other.name] = {**other.cost, **{key: each["other"] for key, each in of.items()}, AGREEMENT: same}
    return rows


def shared_rows(first: Scored, other: Scored) -> tuple[np.ndarray, np.ndarray]:
    """The places [n] int64, in the split of each run, of the rows that both have.

    Raises InputError where they have none, or none that can be told: logs of other files, or drawn negatives that are
    not the same ones.
    """
    logs = [each.store.manifest["input"]["log"]["files"] for each in (first, other)]
    if [file["sha256_ends"] for file in logs[0]] != [file["sha256_ends"] for file in logs[1]]:
        raise InputError(f"{other.name}: trained on other log files than {first.name}, expected the same")
    a, b = np.asarray(first.split.example), np.asarray(other.split.example)
    if len(a) == len(b) and np.array_equal(a, b) and np.array_equal(_identity(first), _identity(other)):
        rows = of_other = np.arange(len(a))
    elif len(np.unique(a)) < len(a) or len(np.unique(b)) < len(b):
        raise InputError(f"{other.name}: other drawn negatives than {first.name}; expected runs of the same store")
    else:
        _, rows, of_other = np.intersect1d(a, b, assume_unique=True, return_indices=True)
        if not len(rows):
            raise InputError(
                f"{other.name}: found no row of the split of {first.name}, expected the same log and split"
            )
        order = np.argsort(rows)
        rows, of_other = rows[order], of_other[order]
    for t, task in enumerate(first.config.schema.tasks):
        names = [each.name for each in other.config.schema.tasks]
        if task.name in names and task.kind == other.config.schema.tasks[names.index(task.name)].kind:
            theirs = other.split.labels[of_other, names.index(task.name)]
            if not np.array_equal(first.split.labels[rows, t], theirs):
                raise InputError(f"{other.name}: other labels of {task.name} than {first.name}, expected the same log")
    return rows, of_other


def groups(of: Scored, name: str, most: int) -> Iterator[tuple[str, np.ndarray]]:
    """The groups of a feature (`feature_groups`): what a person calls each, and its rows [M] bool."""
    vocabularies = of.store.manifest["fitted"]["vocabularies"]
    for group in feature_groups(Frame(of.config, of.split, of.store.items, None, vocabularies), name, most):
        yield f"{name}={group.name}", group.rows


def table(first: str, other: str, metrics: Mapping[str, Mapping[str, Any]], title: str) -> Table:
    """Both runs and their difference, metric by metric."""
    shown = Table(title=title, show_edge=False, pad_edge=False, collapse_padding=True)
    shown.add_column("metric")
    for heading in (first, other):
        shown.add_column(heading, justify="right")
    shown.add_column("difference, 95 % interval")
    shown.add_column("better")
    for key, of in metrics.items():
        shown.add_row(key, f"{of['first']:.4f}", f"{of['other']:.4f}", _difference(of), of["better"] or "not sure")
    return shown


def slice_table(other: str, slices: Mapping[str, Mapping[str, Any]]) -> Table:
    """The headline metrics within slices."""
    shown = Table(title=f"{other} by slice", show_edge=False, pad_edge=False, collapse_padding=True)
    for heading in ("slice", "rows", "metric", "difference, 95 % interval", "better"):
        shown.add_column(heading)
    tests = 0
    for label, of in slices.items():
        for key, each in of["metrics"].items():
            shown.add_row(label, f"{of['rows']:,}", key, _difference(each), each["better"] or "not sure")
            tests += 1
    shown.caption = f"{tests} differences: by chance alone some {tests / 20:.0f} intervals leave out 0"
    return shown


def _compared(first: Scored, other: Scored, task: str, rows: np.ndarray, of_other: np.ndarray) -> dict[str, Any]:
    """The metrics of one task that can be better, on some rows of each run: both values, their difference, and which
    run is surely better."""
    pair = [_measured(first, first, task, rows, rows), _measured(first, other, task, rows, of_other)]
    (ours, spread), (theirs, other_spread) = pair
    apart = intervals.differences(other_spread, spread)
    found = {}
    for key, value in ours.items():
        if key in theirs and (better := row_of(key).better):
            given = apart.get(key, Interval(theirs[key] - value, float("nan"), float("nan")))
            sure = intervals.is_sure(given)
            ends = None if np.isnan(given.low) else [given.low, given.high]
            winner = (other if (given.value > 0) == (better == "max") else first).name if sure else ""
            found[key] = {"first": value, "other": theirs[key], "difference": given.value, "interval": ends} | {
                "better": winner
            }
    return found


def _measured(
    first: Scored, of: Scored, task: str, rows: np.ndarray, own: np.ndarray
) -> tuple[dict[str, float], dict[str, Spread]]:
    """Metrics and spreads of a run's scores at its rows `own`, for labels, impressions and users of the first run."""
    t = [each.name for each in first.config.schema.tasks].index(task)
    families = objectives(first.config.schema.tasks, first.outputs)[t][0].families
    settings = first.config.evaluate
    candidates: Candidates = report.of_split(
        of.tasks[task][2][own], first.split, t, rows=rows, threshold=settings.threshold, ndcg_at=settings.ndcg_at
    )
    values = report.measure(candidates, families)
    return values, intervals.spreads(candidates, values)


def _identity(of: Scored) -> np.ndarray:
    """What tells drawn negatives of one row of the log apart: the item. Stores number items by their catalogue."""
    return np.asarray(of.split.item) if of.config.data.negatives else np.zeros(0)


def _difference(of: Mapping[str, Any]) -> str:
    ends = f" {report.interval_text(*of['interval'])}" if of["interval"] else ""
    return f"{of['difference']:+.4f}{ends}"


if __name__ == "__main__":
    cli.run(main)

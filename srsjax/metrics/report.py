"""The report of a split: every metric that is defined, and the table a person reads."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Literal

import numpy as np
from rich.table import Table

from srsjax.data.store.arrays import Split
from srsjax.errors import InputError, did_you_mean
from srsjax.metrics.baselines import gap_closed, mean_scores, popularity_scores, user_item_scores
from srsjax.metrics.calibration import logit
from srsjax.metrics.classes import OfClass
from srsjax.metrics.sorting import known
from srsjax.metrics.table import METRICS, Candidates, find, row_of

MODES: dict[str, Literal["max", "min"]] = {metric.name: metric.better for metric in METRICS if metric.better}
"""Metrics that can choose a checkpoint, and which way is better. `ndcg` stands for `ndcg@k`."""

FAMILIES = ("click", "ranking")
"""Those of a click."""


def evaluate(
    logits: np.ndarray,
    labels: np.ndarray,
    weights: np.ndarray,
    groups: np.ndarray,
    users: np.ndarray,
    *,
    threshold: float = 0.5,
    ndcg_at: int = 10,
    identity: np.ndarray | None = None,
    families: Sequence[str] = FAMILIES,
) -> dict[str, float]:
    """Every metric of `srsjax.metrics.table` that applies and is defined; one that is not is absent, never NaN.

    Ranking metrics apply where some impression has several candidates. Labels above 1 are grades, to which no metric
    of clicks applies.

    Args:
        logits: [M] finite; [M, K] for families `class`; the predicted numbers for `value`.
        labels: [M] >= 0, classes by number; any number for `value`.
        weights: [M] >= 0; candidates of weight 0 are ignored in everything.
        groups: [M] int64, the impression of each candidate.
        users: [M] int64, the user of each candidate.
        threshold: probability from which on a candidate counts as predicted positive.
        ndcg_at: k of NDCG@k.
        identity: [M] int64, equal for candidates with the same text (`Split.item`): `pairwise` leaves such pairs out.
        families: of metrics that apply to the task (`Objective.families`).
    """
    columns = (logits, labels, weights, groups, users, identity)
    return measure(gather(*columns, threshold=threshold, ndcg_at=ndcg_at), families)


def measure(of: Candidates, families: Sequence[str] = FAMILIES) -> dict[str, float]:
    """`evaluate` for candidates that are gathered already, all of weight above 0."""
    ndcg_at = of.ndcg_at
    if not len(of.logits):
        return {metric.key(ndcg_at): 0.0 for metric in METRICS if metric.family == "count"}
    lacking = {"click": of.graded, "ranking": of.sizes.max() == 1, "retrieval": of.sizes.max() == 1}
    having = [family for family in families if not lacking.get(family)]
    values = {metric.key(ndcg_at): metric.value(of) for metric in METRICS if metric.applies(having)}
    return {name: float(value) for name, value in values.items() if value is not None and not np.isnan(value)}


def evaluate_split(
    logits: np.ndarray,
    split: Split,
    task: int = 0,
    *,
    threshold: float = 0.5,
    ndcg_at: int = 10,
    families: Sequence[str] = FAMILIES,
) -> dict[str, float]:
    """`evaluate` for the candidates of a split, in its order: logits [M] or [M, K] of one task."""
    return measure(of_split(logits, split, task, threshold=threshold, ndcg_at=ndcg_at), families)


def of_split(
    logits: np.ndarray,
    split: Split,
    task: int = 0,
    *,
    rows: np.ndarray | slice = slice(None),
    threshold: float = 0.5,
    ndcg_at: int = 10,
) -> Candidates:
    """The candidates of a split with a known label, and logits [M] or [M, K] of one task for all in its order; with
    `rows`, a mask [M] or places [M'], those of them that the logits are of."""
    users = np.repeat(split.user, np.diff(split.candidates))
    columns = (split.labels[:, task], split.weights[:, task], split.impression, users, np.asarray(split.item))
    return gather(logits, *(column[rows] for column in columns), threshold=threshold, ndcg_at=ndcg_at)


def gather(logits, labels, weights, groups, users, identity=None, *, threshold=0.5, ndcg_at=10) -> Candidates:
    """The rows of weight above 0; arguments as in `evaluate`."""
    weights, logits, labels, groups, users, identity = known(weights, logits, labels, groups, users, identity)
    return Candidates(logits, labels, weights, groups, users, identity, threshold, ndcg_at)


def references(
    train: Split,
    split: Split,
    n_items: int,
    *,
    threshold: float = 0.5,
    ndcg_at: int = 10,
    families: Sequence[str] = FAMILIES,
    names: Collection[str] = ("popularity", "oracle"),
    numbered: tuple[Split, Split, int] | None = None,
) -> dict[str, dict[str, float]]:
    """The metrics of `reference_logits`, with its arguments and those of `evaluate_split`."""
    made = reference_logits(train, split, n_items, families=families, names=names, numbered=numbered)
    return {
        name: evaluate_split(logits, split, threshold=threshold, ndcg_at=ndcg_at, families=families)
        for name, logits in made.items()
    }


def reference_logits(
    train: Split,
    split: Split,
    n_items: int,
    *,
    families: Sequence[str] = FAMILIES,
    names: Collection[str] = ("popularity", "oracle"),
    numbered: tuple[Split, Split, int] | None = None,
) -> dict[str, np.ndarray]:
    """What the first task's metrics on a split compare with, [M] logits or numbers each: `popularity` and `user_item`
    (`srsjax.metrics.baselines`), and `oracle` where its probability is known, as far as `names` has them.

    All are constants of the data, for labels in [0, 1]; graded labels and classes have none. Of numbers they are
    `item_mean` and `bias_model` (`baselines.mean_scores`). `n_items` is V, rows of `Items`;
    `numbered` are both splits with other numbers of items for the rates, and V (`baselines.number_items`); `families`
    are those of the first task, so that the columns of a table hold the same metrics.
    """
    given = numbered or (train, split, n_items)
    if "value" in families:
        predicted = {"popularity": "item_mean", "user_item": "bias_model"}
        return {predicted[name]: mean_scores(*given, users=name == "user_item") for name in names if name in predicted}
    if ("click" not in families and "ranking" not in families) or train.labels[:, 0].max(initial=0) > 1:
        return {}
    rates = {"popularity": popularity_scores, "user_item": user_item_scores}
    scores = {name: scored(*given) for name, scored in rates.items() if name in names}
    if split.oracle is not None and "oracle" in names:
        scores["oracle"] = split.oracle
    return {name: logit(probabilities) for name, probabilities in scores.items()}


def mode(name: str, ndcg_at: int = 10) -> Literal["max", "min"]:
    """Which way the metric `name` (or `task/name`) is better.

    Raises InputError, with a near name if there is one, where no metric of this name can choose a checkpoint.
    """
    modes = {metric.key(ndcg_at): metric.better for metric in METRICS if metric.better}
    metric = name.rpartition("/")[2]
    if metric in modes:
        return modes[metric]
    raise InputError(
        f"evaluate.monitor: found {name!r}, expected one of {', '.join(modes)}{did_you_mean(metric.lower(), modes)}"
    )


def monitored(metrics: dict[str, float], name: str) -> float:
    """The monitored metric of an evaluation. Raises InputError with the reason where it is undefined on this split."""
    if name in metrics:
        return metrics[name]
    if not metrics.get(_of_same_task(name, "candidates")):
        raise InputError(
            f"evaluate.monitor: {name} is undefined on the validation split: found no known label, expected some; "
            "check the label column of this task, and data.split"
        )
    metric = find(name)
    reason = (metric and metric.undefined) or "the labels of this split do not allow it"
    raise InputError(
        f"evaluate.monitor: {name} is undefined on the validation split ({reason}), expected one of "
        f"{', '.join(n for n in metrics if (row := find(n)) and row.better)}; monitor one of these"
    )


HEADINGS = {
    "popularity": "item popularity",
    "user_item": "item x user",
    "oracle": "best attainable",
    "item_mean": "item mean",
    "bias_model": "item + user bias",
}
"""What a person reads for the name of a reference."""


def table(
    columns: Mapping[str, Mapping[str, float]],
    title: str = "",
    uncalibrated: Mapping[str, float] | None = None,
    intervals: Mapping[str, Sequence[float]] | None = None,
) -> Table:
    """Metrics side by side for people: the model first, then what it compares with.

    Args:
        columns: results of `evaluate` by name, such as `{"model": ..., **references(...)}`. With `popularity` and
            `oracle` among them, a last line says how much of the AUC between the two the model gains.
        title: printed above the table.
        uncalibrated: metrics of the first column before its calibration, printed below each.
        intervals: low and high ends of the 95 % intervals of the first column, printed behind each.
    """
    # As narrow as it can be: 80 columns hold a model with its intervals and three references.
    shown = Table(title=title or None, show_edge=False, pad_edge=False, collapse_padding=True)
    shown.add_column("metric", no_wrap=True)
    for at, name in enumerate(columns):
        long = bool(intervals) and not at
        shown.add_column(HEADINGS.get(name, name), justify="left" if long else "right", no_wrap=long)
    for metric in metric_names(columns):
        first, *others = (cell(metric, values) for values in columns.values())
        if intervals and metric in intervals:
            first += f" {interval_text(*intervals[metric])}"
        shown.add_row(metric, first, *others)
        if uncalibrated and metric in uncalibrated:
            shown.add_row("  uncalibrated", cell(metric, uncalibrated), *["-"] * (len(columns) - 1))
    shown.caption = gap_said(columns) or None
    return shown


def gap_said(columns: Mapping[str, Mapping[str, float]]) -> str:
    """How much of the AUC between item popularity and the best attainable the first column gains, as the last line of a
    `table`; empty where either is unknown."""
    model, *_ = columns.values()
    needed = [values.get("auc", np.nan) for values in (model, columns.get("popularity", {}), columns.get("oracle", {}))]
    gap = gap_closed(*needed)
    return "" if np.isnan(gap) else f"{gap:.1%} of the AUC between item popularity and the best attainable gained"


def interval_text(low: float, high: float) -> str:
    """`[0.825, 0.834]`: three decimals, or four where the ends would hardly differ."""
    decimals = 3 if high - low >= 0.003 else 4
    return f"[{low:.{decimals}f}, {high:.{decimals}f}]"


MOST_CLASSES = 12
"""Classes of a table for people: of more, those with the lowest F1 are shown."""


def class_table(task: str, of: Mapping[str, OfClass]) -> Table:
    """Precision, recall, F1 and support by class, from `classes.class_report`."""
    names = shown_classes(of)
    shown = Table(title=f"classes of {task}" + (f", the {MOST_CLASSES} of lowest F1" if len(names) < len(of) else ""))
    shown.add_column("class")
    for heading in ("precision", "recall", "F1", "weight"):
        shown.add_column(heading, justify="right")
    for name in names:
        line = of[name]
        shown.add_row(
            name, f"{line['precision']:.4f}", f"{line['recall']:.4f}", f"{line['f1']:.4f}", f"{line['support']:,.0f}"
        )
    return shown


def shown_classes(of: Mapping[str, OfClass]) -> list[str]:
    """The classes of a table for people: all, or those with the lowest F1 first."""
    return sorted(of, key=lambda name: of[name]["f1"])[:MOST_CLASSES] if len(of) > MOST_CLASSES else [*of]


def metric_names(columns: Mapping[str, Mapping[str, float]]) -> list[str]:
    """The metrics of a table: what some column has, the first task's in order, and what a click lacks in all."""
    names = [name for values in columns.values() for name in values if (row := find(name)) and row.shown != "hidden"]
    names = list(dict.fromkeys(names))
    if all(values.get("weight") == values.get("candidates") for values in columns.values()):
        names = [name for name in names if name != "weight"]
    if "log_loss" in names:
        click = [metric.name for metric in METRICS if metric.family == "click" and metric.undefined]
        names += [name for name in click if name not in names]
    places = {metric.name: at for at, metric in enumerate(METRICS)}
    order = ("metric", "rate", "bound", "count")

    def place(name: str) -> tuple[int, int]:
        row = row_of(name)
        return order.index(row.shown), places[row.name]

    first = sorted((name for name in names if "/" not in name), key=place)
    return first + [name for name in names if "/" in name]


def cell(name: str, values: Mapping[str, float]) -> str:
    """A metric as a table has it, or why it is undefined."""
    row = row_of(name)
    if name not in values:
        measured = _of_same_task(name, "candidates") in values  # references have metrics of the first task only
        return f"undefined: {row.undefined}" if row.undefined and measured else "-"
    return f"{values[name]:,.0f}" if row.shown == "count" else f"{values[name]:.4f}"


def _of_same_task(name: str, metric: str) -> str:
    """The key of another metric of the task that `name` belongs to."""
    task, slash, _ = name.rpartition("/")
    return f"{task}{slash}{metric}"

"""All metrics of a split under stable names, their direction, and the table a person reads."""

from __future__ import annotations

import difflib
from typing import Literal

import numpy as np
from rich.table import Table

from srsjax.data.store.arrays import Split
from srsjax.errors import InputError
from srsjax.metrics.auc import auc, gauc
from srsjax.metrics.baselines import gap_closed, popularity_scores
from srsjax.metrics.calibration import ece, log_loss, logit, normalized_entropy, sigmoid
from srsjax.metrics.pairwise import pairwise_accuracy, significant_pairwise_accuracy
from srsjax.metrics.ranking import mrr, ndcg
from srsjax.metrics.sorting import group_sizes, known
from srsjax.metrics.threshold import classification

MAX_PAIRS = 100_000_000
"""Above this many pairs `pairwise_significant`, which visits each one, is left out (about ten seconds of one core)."""

MODES: dict[str, Literal["max", "min"]] = {
    "auc": "max",
    "gauc": "max",
    "log_loss": "min",
    "normalized_entropy": "min",
    "ece": "min",
    "accuracy": "max",
    "precision": "max",
    "recall": "max",
    "f1": "max",
    "ndcg": "max",
    "mrr": "max",
    "pairwise": "max",
    "pairwise_significant": "max",
}
"""Metrics that can choose a checkpoint, and which way is better. `ndcg` stands for `ndcg@k`."""

UNDEFINED = {
    "auc": "one class",
    "gauc": "no user with both classes",
    "normalized_entropy": "one class",
    "precision": "none predicted positive",
    "recall": "no positives",
    "f1": "no positives",
}
"""Why a metric of every click report may be missing."""


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
) -> dict[str, float]:
    """Every metric that is defined on these candidates; one that is not is absent, never NaN.

    `auc`, `gauc` (by user; `gauc_covered` is the share of weight that counts), `log_loss`, `normalized_entropy`, `ece`,
    `accuracy`, `precision`, `recall`, `f1`; where some impression has several candidates `ndcg@k`, `mrr`, `pairwise`
    and `pairwise_significant` with the number of groups or pairs each averages; `auc_ceiling` where labels are rates:
    the AUC of the rates themselves; then `label_rate`, `predicted_rate` and the counts `candidates`, `impressions` and
    `weight`. Labels above 1 are grades: only ranking metrics and counts are given.

    Args:
        logits: [M] finite.
        labels: [M] >= 0.
        weights: [M] >= 0; candidates of weight 0 are ignored in everything.
        groups: [M] int64, the impression of each candidate.
        users: [M] int64, the user of each candidate.
        threshold: probability from which on a candidate counts as predicted positive.
        ndcg_at: k of NDCG@k.
        identity: [M] int64, equal for candidates with the same text (`Split.item`): `pairwise` leaves such pairs out.
    """
    weights, logits, labels, groups, users, identity = known(weights, logits, labels, groups, users, identity)
    if not len(logits):
        return {"candidates": 0.0, "impressions": 0.0, "weight": 0.0}
    graded = labels.max() > 1
    metrics = {} if graded else _click_metrics(logits, labels, weights, users, threshold)
    sizes = group_sizes(groups)
    if sizes.max() > 1:
        significance = not graded and (sizes * (sizes - 1) // 2).sum() <= MAX_PAIRS
        metrics |= _ranking_metrics(logits, labels, weights, groups, identity, ndcg_at, significance)
    metrics |= {"candidates": len(logits), "impressions": len(sizes), "weight": weights.sum()}
    return {name: float(value) for name, value in metrics.items() if not np.isnan(value)}


def _click_metrics(
    logits: np.ndarray, labels: np.ndarray, weights: np.ndarray, users: np.ndarray, threshold: float
) -> dict[str, float]:
    """Metrics of labels in [0, 1]; NaN where undefined."""
    probabilities = sigmoid(logits)
    by_user = gauc(logits, labels, weights, users)
    soft = np.any((labels > 0) & (labels < 1))
    return {
        "auc": auc(logits, labels, weights),
        "gauc": by_user.value,
        "gauc_covered": by_user.covered,
        "auc_ceiling": auc(labels, labels, weights) if soft else np.nan,
        "log_loss": log_loss(logits, labels, weights),
        "normalized_entropy": normalized_entropy(logits, labels, weights),
        "ece": ece(probabilities, labels, weights),
        **classification(probabilities, labels, weights, threshold)._asdict(),
        "label_rate": weights @ labels / weights.sum(),
        "predicted_rate": weights @ probabilities / weights.sum(),
    }


def _ranking_metrics(
    logits: np.ndarray,
    labels: np.ndarray,
    weights: np.ndarray,
    groups: np.ndarray,
    identity: np.ndarray | None,
    ndcg_at: int,
    significance: bool,
) -> dict[str, float]:
    """Metrics of the order within impressions; NaN where undefined."""
    gain = ndcg(logits, labels, weights, groups, ndcg_at)
    first = mrr(logits, labels, weights, groups)
    pairs = pairwise_accuracy(logits, labels, weights, groups, identity)
    metrics = {
        f"ndcg@{ndcg_at}": gain.value,
        "ndcg_groups": gain.groups,
        "mrr": first.value,
        "mrr_groups": first.groups,
        "pairwise": pairs.accuracy,
        "pairwise_pairs": pairs.pairs,
    }
    if significance:
        significant = significant_pairwise_accuracy(logits, labels, weights, groups, identity)
        metrics |= {"pairwise_significant": significant.accuracy, "pairwise_significant_pairs": significant.pairs}
    return metrics


def evaluate_split(
    logits: np.ndarray, split: Split, task: int = 0, *, threshold: float = 0.5, ndcg_at: int = 10
) -> dict[str, float]:
    """`evaluate` for the candidates of a split, in its order: logits [M] of one task."""
    return evaluate(
        logits,
        split.labels[:, task],
        split.weights[:, task],
        split.impression,
        np.repeat(split.user, np.diff(split.candidates)),
        threshold=threshold,
        ndcg_at=ndcg_at,
        identity=split.item,
    )


def references(
    train: Split, split: Split, n_items: int, *, threshold: float = 0.5, ndcg_at: int = 10
) -> dict[str, dict[str, float]]:
    """What the first task's metrics on a split compare with: `popularity`, and `oracle` where its probability is known.

    Both are constants of the data, for labels in [0, 1]; graded labels have neither. `n_items` is V, rows of `Items`.
    """
    if train.labels[:, 0].max(initial=0) > 1:
        return {}
    scores = {"popularity": popularity_scores(train, split, n_items)}
    if split.oracle is not None:
        scores["oracle"] = split.oracle
    return {
        name: evaluate_split(logit(probabilities), split, threshold=threshold, ndcg_at=ndcg_at)
        for name, probabilities in scores.items()
    }


def mode(name: str, ndcg_at: int = 10) -> Literal["max", "min"]:
    """Which way the monitored metric `name` (or `task/name`) is better.

    Raises InputError with the nearest name where no metric of this name is reported.
    """
    modes = {f"ndcg@{ndcg_at}" if known_name == "ndcg" else known_name: way for known_name, way in MODES.items()}
    metric = name.rpartition("/")[2]
    if metric in modes:
        return modes[metric]
    nearest = difflib.get_close_matches(metric.lower(), modes, n=1, cutoff=0)[0]
    raise InputError(f"evaluate.monitor: found {name!r}, expected one of {', '.join(modes)}; did you mean {nearest!r}?")


def monitored(metrics: dict[str, float], name: str) -> float:
    """The monitored metric of an evaluation. Raises InputError with the reason where it is undefined on this split."""
    if name in metrics:
        return metrics[name]
    reason = UNDEFINED.get(name.rpartition("/")[2], "the labels of this split do not allow it")
    raise InputError(
        f"evaluate.monitor: {name} is undefined on the validation split ({reason}), expected one of "
        f"{', '.join(n for n in metrics if n.rpartition('/')[2].partition('@')[0] in MODES)}; monitor one of these"
    )


def table(columns: dict[str, dict[str, float]], title: str = "") -> Table:
    """Metrics side by side for people: the model first, then what it compares with.

    Args:
        columns: results of `evaluate` by name, such as `{"model": ..., **references(...)}`. With `popularity` and
            `oracle` among them, a last line says how much of the AUC between the two the model gains.
        title: stands above the table.
    """
    headings = {"popularity": "item popularity", "oracle": "best attainable"}
    shown = Table(title=title or None)
    shown.add_column("metric")
    for name in columns:
        shown.add_column(headings.get(name, name), justify="right")
    for metric in _rows(columns):
        shown.add_row(metric, *(_cell(metric, values) for values in columns.values()))
    model, *_ = columns.values()
    needed = [values.get("auc") for values in (model, columns.get("popularity", {}), columns.get("oracle", {}))]
    if None not in needed and not np.isnan(gap := gap_closed(*needed)):
        shown.caption = f"{gap:.1%} of the AUC between item popularity and the best attainable gained"
    return shown


def _rows(columns: dict[str, dict[str, float]]) -> list[str]:
    """The metrics that some column has, in order of the report, with those a click report lacks in all columns."""
    counts = ("_groups", "_pairs", "_covered")  # what each metric averages over: in the result, too much for a table
    names = list(dict.fromkeys(n for values in columns.values() for n in values if not n.endswith(counts)))
    if all(values.get("weight") == values.get("candidates") for values in columns.values()):
        names = [name for name in names if name != "weight"]
    if "log_loss" in names:
        names += [name for name in UNDEFINED if name not in names]
    order = [*MODES, "label_rate", "predicted_rate"]
    leading = sorted((n for n in names if n.partition("@")[0] in order), key=lambda n: order.index(n.partition("@")[0]))
    return leading + [name for name in names if name not in leading]


def _cell(name: str, values: dict[str, float]) -> str:
    metric = name.rpartition("/")[2]
    if name not in values:
        return f"undefined: {UNDEFINED[metric]}" if metric in UNDEFINED else "-"
    value = values[name]
    counted = metric in ("candidates", "impressions", "weight")
    return f"{value:,.0f}" if counted else f"{value:.4f}"

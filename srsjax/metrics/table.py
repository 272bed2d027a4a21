"""Every metric that is reported: one row each, in the order of a report."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np

from srsjax.metrics import classes, values
from srsjax.metrics.auc import auc, gauc
from srsjax.metrics.calibration import ece, log_loss, normalized_entropy, sigmoid
from srsjax.metrics.classes import confusion_matrix
from srsjax.metrics.pairwise import Pairs, pairwise_accuracy, significant_pairwise_accuracy
from srsjax.metrics.ranking import mrr, ndcg, top_1
from srsjax.metrics.sorting import GroupMean, group_sizes
from srsjax.metrics.threshold import Classification, classification

MAX_PAIRS = 100_000_000
"""Above this many pairs `pairwise_significant`, which visits each one, is left out (about ten seconds of one core)."""


@dataclass(frozen=True)
class Candidates:
    """The candidates of known label that metrics are taken over, and what several of them share."""

    logits: np.ndarray
    """[M] float64; [M, K] of classes; of a regression the predicted numbers."""
    labels: np.ndarray
    """[M] float64: >= 0, the number of a class, or any number."""
    weights: np.ndarray
    """[M] float64, > 0."""
    groups: np.ndarray
    """[M] int64, the impression of each candidate."""
    users: np.ndarray
    """[M] int64, the user of each candidate."""
    identity: np.ndarray | None
    """[M] int64, equal for candidates with the same text."""
    threshold: float
    """Probability from which on a candidate counts as predicted positive."""
    ndcg_at: int
    """k of NDCG@k."""

    @cached_property
    def confusion(self) -> np.ndarray:
        """[K, K], of classes."""
        return confusion_matrix(self.logits, self.labels, self.weights)

    @property
    def triple(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Logits, labels and weights."""
        return self.logits, self.labels, self.weights

    @cached_property
    def probabilities(self) -> np.ndarray:
        """[M] float64."""
        return sigmoid(self.logits)

    @cached_property
    def claimed(self) -> tuple[np.ndarray, np.ndarray]:
        """Probabilities [M] float64 and the labels [M] they are of: of a positive label; of classes that of the most
        probable one, and whether it is the right one (Guo et al. 2017, section 2)."""
        if self.logits.ndim == 1:
            return self.probabilities, self.labels
        return classes.confidence(self.logits), (self.logits.argmax(1) == self.labels).astype(np.float64)

    @cached_property
    def sizes(self) -> np.ndarray:
        """Candidates of each impression, [G] int64."""
        return group_sizes(self.groups)

    @cached_property
    def graded(self) -> bool:
        """Whether labels are grades rather than probabilities."""
        return bool(self.labels.max() > 1)

    @cached_property
    def by_user(self) -> GroupMean:
        """GAUC."""
        return gauc(self.logits, self.labels, self.weights, self.users)

    @property
    def accuracy(self) -> float:
        """Of the most probable class, or at the threshold."""
        return classes.accuracy(self.confusion) if self.logits.ndim == 2 else self.decided.accuracy

    @cached_property
    def decided(self) -> Classification:
        """Accuracy and the like at the threshold."""
        return classification(self.probabilities, self.labels, self.weights, self.threshold)

    @cached_property
    def gain(self) -> GroupMean:
        """NDCG@k."""
        return ndcg(self.logits, self.labels, self.weights, self.groups, self.ndcg_at)

    @cached_property
    def first(self) -> GroupMean:
        """Mean reciprocal rank."""
        return mrr(self.logits, self.labels, self.weights, self.groups)

    @cached_property
    def top(self) -> GroupMean:
        """Share of impressions with a positive first candidate."""
        return top_1(self.logits, self.labels, self.weights, self.groups)

    @cached_property
    def pairs(self) -> Pairs:
        """Pairs of an impression in the right order."""
        return pairwise_accuracy(self.logits, self.labels, self.weights, self.groups, self.identity)

    @cached_property
    def significant(self) -> Pairs | None:
        """Those whose rates differ significantly; None for grades, and where there are too many pairs."""
        if self.graded or (self.sizes * (self.sizes - 1) // 2).sum() > MAX_PAIRS:
            return None
        return significant_pairwise_accuracy(self.logits, self.labels, self.weights, self.groups, self.identity)


@dataclass(frozen=True)
class Metric:
    """One number of a report."""

    name: str
    """`ndcg` stands for `ndcg@k`."""
    family: Literal["click", "ranking", "retrieval", "class", "value", "count"]
    """Where it applies: `click` to probabilities of a positive label, `ranking` to the order within impressions of
    several candidates, `retrieval` to which of them is the first, `class` to a choice among classes, `value` to
    predicted numbers, `count` always."""
    value: Callable[[Candidates], float | None]
    """NaN or None where it is undefined."""
    better: Literal["max", "min", ""] = ""
    """Which way it is better; empty for what cannot choose a checkpoint."""
    undefined: str = ""
    """Why it may be undefined. A click report has a line for each such metric of clicks, defined or not."""
    shown: Literal["metric", "rate", "bound", "count", "hidden"] = "metric"
    """Its place in the table for people; what a mean averages over is hidden there."""
    headline: bool = False
    """Whether the line of a validation names it."""
    also: tuple[str, ...] = ()
    """Further families that have it."""
    of_probabilities: bool = False
    """Whether it measures how good probabilities are, which calibration changes, and not an order or a choice."""

    def applies(self, families: Collection[str]) -> bool:
        """Whether a task with these families has it."""
        return self.family == "count" or bool({self.family, *self.also} & {*families})

    def key(self, ndcg_at: int) -> str:
        """Its name in a report."""
        return f"ndcg@{ndcg_at}" if self.name == "ndcg" else self.name


def _ceiling(c: Candidates) -> float | None:
    """The AUC of rates themselves, where labels are rates."""
    return auc(c.labels, c.labels, c.weights) if np.any((c.labels > 0) & (c.labels < 1)) else None


def _no_order(reason: str) -> str:
    """Why a metric of the order within impressions may be undefined: the reason that all share, and its own."""
    return f"one candidate in each impression, or {reason}"


METRICS = (
    Metric("auc", "click", lambda c: auc(c.logits, c.labels, c.weights), "max", "one class", headline=True),
    Metric("gauc", "click", lambda c: c.by_user.value, "max", "no user with both classes", headline=True),
    Metric("gauc_covered", "click", lambda c: c.by_user.covered, shown="hidden"),
    Metric("auc_ceiling", "click", _ceiling, shown="bound"),
    Metric("log_loss", "click", lambda c: log_loss(*c.triple), "min", headline=True, of_probabilities=True),
    Metric(
        "normalized_entropy",
        "click",
        lambda c: normalized_entropy(*c.triple),
        "min",
        "one class",
        of_probabilities=True,
    ),
    Metric(
        "ece",
        "click",
        lambda c: ece(*c.claimed, c.weights),
        "min",
        headline=True,
        also=("class",),
        of_probabilities=True,
    ),
    Metric("accuracy", "click", lambda c: c.accuracy, "max", also=("class",)),
    Metric("precision", "click", lambda c: c.decided.precision, "max", "none predicted positive"),
    Metric("recall", "click", lambda c: c.decided.recall, "max", "no positives"),
    Metric("f1", "click", lambda c: c.decided.f1, "max", "no positives"),
    Metric("label_rate", "click", lambda c: c.weights @ c.labels / c.weights.sum(), shown="rate"),
    Metric(
        "predicted_rate",
        "click",
        lambda c: c.weights @ c.probabilities / c.weights.sum(),
        shown="rate",
        of_probabilities=True,
    ),
    Metric("ndcg", "ranking", lambda c: c.gain.value, "max", _no_order("no label above 0"), headline=True),
    Metric("ndcg_groups", "ranking", lambda c: c.gain.groups, shown="hidden"),
    Metric("mrr", "ranking", lambda c: c.first.value, "max", _no_order("no label of 0.5 or more")),
    Metric("mrr_groups", "ranking", lambda c: c.first.groups, shown="hidden"),
    Metric("top_1", "retrieval", lambda c: c.top.value, "max", _no_order("no label of 0.5 or more")),
    Metric("pairwise", "ranking", lambda c: c.pairs.accuracy, "max", _no_order("no different labels in one")),
    Metric("pairwise_pairs", "ranking", lambda c: c.pairs.pairs, shown="hidden"),
    Metric(
        "pairwise_significant",
        "ranking",
        lambda c: c.significant and c.significant.accuracy,
        "max",
        _no_order(f"no pair of significantly different rates, or more than {MAX_PAIRS:,} pairs"),
    ),
    Metric("pairwise_significant_pairs", "ranking", lambda c: c.significant and c.significant.pairs, shown="hidden"),
    Metric("macro_f1", "class", lambda c: classes.macro_f1(c.confusion), "max", headline=True),
    Metric("top_5", "class", lambda c: classes.top_accuracy(*c.triple, 5), "max", "five classes or fewer"),
    Metric(
        "cross_entropy",
        "class",
        lambda c: classes.cross_entropy(*c.triple),
        "min",
        headline=True,
        of_probabilities=True,
    ),
    Metric("rmse", "value", lambda c: values.rmse(*c.triple), "min", headline=True),
    Metric("mae", "value", lambda c: values.mae(*c.triple), "min", headline=True),
    Metric("r2", "value", lambda c: values.r2(*c.triple), "max", "all labels equal", headline=True),
    Metric("spearman", "value", lambda c: values.spearman(*c.triple), "max", "all labels or predictions equal"),
    Metric("label_mean", "value", lambda c: c.weights @ c.labels / c.weights.sum(), shown="rate"),
    Metric("predicted_mean", "value", lambda c: c.weights @ c.logits / c.weights.sum(), shown="rate"),
    Metric("candidates", "count", lambda c: len(c.logits), shown="count"),
    Metric("impressions", "count", lambda c: len(c.sizes), shown="count"),
    Metric("weight", "count", lambda c: c.weights.sum(), shown="count"),
)
"""In the order of a report."""

BY_NAME = {metric.name: metric for metric in METRICS}


def find(key: str) -> Metric | None:
    """The row of a report's key: `auc`, `ndcg@10`, `task/auc`; None where no metric has that name."""
    return BY_NAME.get(_name(key))


def row_of(key: str) -> Metric:
    """`find` of a key that is known to be a metric's. Raises KeyError for another."""
    return BY_NAME[_name(key)]


def _name(key: str) -> str:
    return key.rpartition("/")[2].partition("@")[0]

"""What is watched of rows: their features, texts, items and scores, and how true the scores are where labels are known.

Contexts count once for each impression, candidates once each; rows of one user (impression, without `data.user`) are a
cluster. Nothing is read from features of private columns, nor from the text of a side that has one: the texts of a side
are joined in a store. Of the ids of users no more is read than how many are unknown.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np

from srsjax.config import Categorical, Numeric, TrainConfig, Vector
from srsjax.data.batches.identity import candidate_hashes
from srsjax.data.kinds import is_text, kind_of
from srsjax.data.preparing.sources import Sources
from srsjax.data.reading import hashing
from srsjax.data.store.arrays import Items, Split
from srsjax.data.store.ragged import Ragged
from srsjax.data.store.tokenizer import TextEncoder
from srsjax.metrics import intervals, report
from srsjax.metrics.calibration import logit
from srsjax.metrics.drift import FEWEST
from srsjax.metrics.table import Candidates, row_of
from srsjax.model.spec import Outputs
from srsjax.objectives import objectives, predict

MOST = 400_000
"""Candidates that are looked at; of more, whole impressions by lot."""
SIDES = ("context", "candidate")
ITEMS = "items"
"""Name of what is watched of which items are shown."""

Named = Literal["category", "token", "item"]


@dataclass(frozen=True)
class Numbers:
    """A number a row."""

    name: str
    values: np.ndarray
    """[n] float64; NaN is missing."""
    clusters: np.ndarray
    """[n] int64."""


@dataclass(frozen=True)
class Mix:
    """A category a row, of any number of them."""

    name: str
    ids: np.ndarray
    """[n] uint64."""
    clusters: np.ndarray
    """[n] int64."""
    named: Named
    """What an id is: that of a category in the vocabulary of `feature`, of a token, or the hash of an item."""
    feature: str = ""


@dataclass(frozen=True)
class Share:
    """Whether a row is so."""

    name: str
    flags: np.ndarray
    """[n] bool."""
    clusters: np.ndarray
    """[n] int64."""


@dataclass(frozen=True)
class Mean:
    """An estimate with its standard error."""

    name: str
    value: float
    error: float
    scale: float
    """In units of which a change of it is large or small."""
    better: Literal["max", "min", ""] = ""
    """Which way is better; empty where any change is for the worse."""


Series = Numbers | Mix | Share | Mean


@dataclass(frozen=True)
class Rows:
    """Impressions to look at."""

    config: TrainConfig
    split: Split
    items: Items
    text: TextEncoder

    @classmethod
    def of(cls, config: TrainConfig, split: Split, items: Items, text: TextEncoder, most: int = MOST) -> Rows:
        """At most about so many candidates of a split."""
        return cls(config, split if len(split.item) <= most else split.take(by_lot(split, most)), items, text)

    @cached_property
    def sources(self) -> Sources:
        """Which column each feature reads."""
        return Sources(self.config.schema, self.config.data)

    @cached_property
    def of_context(self) -> np.ndarray:
        """The cluster of each impression, [N] int64."""
        return np.asarray(self.split.user)

    @cached_property
    def of_candidate(self) -> np.ndarray:
        """The cluster of each candidate, [M] int64."""
        return np.repeat(self.of_context, np.diff(self.split.candidates))

    @cached_property
    def _of_items(self) -> Ragged:
        return self.items.tokens.take(self.split.item)

    def tokens(self, side: str) -> tuple[Ragged, np.ndarray]:
        """The texts of a side, with separators between the fields, and their clusters."""
        if side == "context":
            return self.split.context, self.of_context
        return self._of_items, self.of_candidate

    def arrays(self, side: str) -> Iterator[tuple[Categorical | Numeric | Vector, np.ndarray, np.ndarray]]:
        """The features of a side that are watched: values [n, ...] and clusters [n]."""
        for feature in getattr(self.config.schema, side):
            if is_text(feature) or self.sources.is_private(feature) or kind_of(feature).training_only:
                continue
            if side == "context":
                yield feature, np.asarray(self.split.context_features[feature.name]), self.of_context
            elif feature.name in self.split.candidate_features:
                yield feature, np.asarray(self.split.candidate_features[feature.name]), self.of_candidate
            else:
                yield feature, np.asarray(self.items.features[feature.name])[self.split.item], self.of_candidate

    @cached_property
    def identities(self) -> np.ndarray:
        """Which item each candidate is, [M] uint64: those with the same text are the same, or, where there is no text,
        with the same categories."""
        if len(self.items.tokens.values):
            return candidate_hashes(self.split, self.items)
        ids = [v for feature, v, _ in self.arrays("candidate") if isinstance(feature, Categorical)]
        several = [values.reshape(len(values), -1).astype(np.uint64) for values in ids]
        return hashing.combine([column for values in several for column in values.T])


def by_lot(split: Split, most: int) -> np.ndarray:
    """Impressions [n] int64 in order, with about so many candidates."""
    count = max(int(len(split) * most / len(split.item)), 1)
    return np.sort(np.random.default_rng(0).permutation(len(split))[:count])


def reads_text(sources: Sources, side: str) -> bool:
    """Whether the text of a side is watched."""
    texts = [feature for feature in getattr(sources.schema, side) if is_text(feature)]
    return bool(texts) and not any(map(sources.is_private, texts))


def knows_items(sources: Sources) -> bool:
    """Whether which items are shown is watched: they are known by their text or, without, their categories."""
    features = sources.schema.candidate
    if any(map(is_text, features)):
        return reads_text(sources, "candidate")
    own = [feature for feature in features if isinstance(feature, Categorical) and not feature.training_only]
    return bool(own) and not any(map(sources.is_private, own))


def not_watched(sources: Sources) -> list[str]:
    """What is left out because it is private."""
    found = [feature.name for feature in sources.features if not is_text(feature) and sources.is_private(feature)]
    for side in SIDES:
        if any(map(is_text, getattr(sources.schema, side))) and not reads_text(sources, side):
            found.append(f"text of the {side}")
    return found


def mixes(rows: Rows) -> Iterator[Mix]:
    """Categories, words and items."""
    for side in SIDES:
        for feature, values, clusters in rows.arrays(side):
            if isinstance(feature, Categorical) and not rows.sources.is_of_users(feature):
                yield Mix(feature.name, *_flat(values, clusters), "category", feature.like or feature.name)
        if reads_text(rows.sources, side):
            yield Mix(f"{side} words", *_words(rows, side), "token")
    if knows_items(rows.sources):
        yield Mix(ITEMS, rows.identities, rows.of_candidate, "item")


def numbers(rows: Rows, means: Mapping[str, Sequence[float]]) -> Iterator[Numbers]:
    """Numbers, lengths of texts, candidates of an impression, and of vectors the length and the cosine with `means`,
    those of training by feature."""
    for side in SIDES:
        for feature, values, clusters in rows.arrays(side):
            if isinstance(feature, Numeric):
                yield Numbers(feature.name, values.astype(np.float64), clusters)
            elif isinstance(feature, Vector):
                length, mean = np.linalg.norm(values.astype(np.float64), axis=1), np.asarray(means[feature.name])
                yield Numbers(f"{feature.name} length", length, clusters)
                longest = np.maximum(length * np.linalg.norm(mean), 1e-30)
                yield Numbers(f"{feature.name} direction", values @ mean / longest, clusters)
        if reads_text(rows.sources, side):
            tokens, clusters = rows.tokens(side)
            yield Numbers(f"{side} tokens", tokens.lengths.astype(np.float64), clusters)
    counts = np.diff(rows.split.candidates)
    yield Numbers("candidates of an impression", counts.astype(np.float64), rows.of_context)


def shares(rows: Rows, seen: Mapping[str, np.ndarray], items: np.ndarray, limit: int) -> Iterator[Share]:
    """How much is unknown: words, categories and items.

    Args:
      seen: by side, which tokens training had, [V] bool.
      items: hashes of the items that training had, sorted, [n] uint64: all those of at most `limit`.
    """
    for side in SIDES:
        for feature, values, clusters in rows.arrays(side):
            if isinstance(feature, Categorical) and feature.max_values == 1:
                yield Share(f"{feature.name} unknown", values == 0, clusters)
        if reads_text(rows.sources, side):
            ids, clusters = _words(rows, side)
            yield Share(f"{side} words unknown", ~seen[side][ids.astype(np.int64)], clusters)
    if knows_items(rows.sources):
        told = rows.identities <= np.uint64(limit)  # whether training had an item is known of these alone
        yield Share(f"{ITEMS} new", ~np.isin(rows.identities[told], items), rows.of_candidate[told])


def scores(rows: Rows, outputs: Sequence[Outputs], logits: np.ndarray) -> Iterator[Numbers]:
    """The scores of every task; logits [M, K] are those that are reported."""
    found = predict(rows.config.schema.tasks, outputs, logits)
    for task, values in zip(rows.config.schema.tasks, found.T, strict=True):
        yield Numbers(f"{task.name} score", values.astype(np.float64), rows.of_candidate)


def truth(rows: Rows, outputs: Sequence[Outputs], logits: np.ndarray) -> Iterator[Mean]:
    """How true the scores of every task are, where its labels are known: calibration in the large and its slope, and
    the metric that chooses the best checkpoint of such a task. Arguments are those of `scores`."""
    settings = rows.config.evaluate
    for t, (made, own) in enumerate(objectives(rows.config.schema.tasks, outputs)):
        name = made.task.name
        of = report.of_split(
            made.measured(logits[:, own]), rows.split, t, threshold=settings.threshold, ndcg_at=settings.ndcg_at
        )
        if len(np.unique(of.users)) < FEWEST:
            continue
        if made.kind in ("binary", "multiclass"):
            predicted, labels = of.claimed
            unit = float(np.average(labels, weights=of.weights))
            yield from _calibration(name, predicted, labels, logit(predicted), predicted * (1 - predicted), of, unit)
        elif made.kind == "regression":
            unit = math.sqrt(np.cov(of.labels, aweights=of.weights, ddof=0))
            yield from _calibration(name, of.logits, of.labels, of.logits, np.ones(len(of.logits)), of, unit)
        key = row_of(made.monitor).key(settings.ndcg_at)
        values = report.measure(of, made.families)
        spread = intervals.intervals(intervals.spreads(of, [key] if key in values else [])).get(key)
        if spread is not None and spread.high > spread.low:
            error = (spread.high - spread.low) / 2 / intervals.Z
            better = row_of(key).better
            yield Mean(f"{name} {key}", values[key], error, abs(values[key]), better)


def _calibration(
    name: str,
    predicted: np.ndarray,
    labels: np.ndarray,
    score: np.ndarray,
    variance: np.ndarray,
    of: Candidates,
    unit: float,
) -> Iterator[Mean]:
    """Mean label less mean prediction, and the slope of the labels over the scores: 1 where they are as far apart as
    the labels say, less where they are too far apart (Cox 1958, "Two Further Applications of a Model for Binary
    Regression"), by one step of Newton's method from there.

    `variance` [M] is that of a label by its prediction; all are float64. `unit` is the scale of the first.
    """
    weights = of.weights / of.weights.sum()
    left = labels - predicted
    mean = float(weights @ left)
    yield Mean(f"{name} calibration", mean, _error(weights * (left - mean), of.users), unit)
    mass = weights * variance
    apart = score - mass @ score / mass.sum()
    total = float(mass @ apart**2)
    if total > 1e-12:
        slope = float(weights @ (left * apart)) / total
        rest = left - variance * (weights @ left / mass.sum() + slope * apart)
        yield Mean(f"{name} slope", 1 + slope, _error(weights * apart * rest, of.users) / total, 1.0)


def _error(parts: np.ndarray, users: np.ndarray) -> float:
    """Standard error of the sum of parts [M] whose mean is 0, users being independent."""
    sums = np.bincount(np.unique(users, return_inverse=True)[1], parts)
    return math.sqrt(len(sums) / (len(sums) - 1) * float(sums @ sums))


def _flat(values: np.ndarray, clusters: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Categories [n] or lists of them [n, k], without what is empty in a list, as ids and clusters."""
    if values.ndim == 1:
        return values.astype(np.uint64), clusters
    there = values > 0
    there[:, 0] |= ~there.any(axis=1)  # an empty list is a category too
    return values[there].astype(np.uint64), np.repeat(clusters, there.sum(axis=1))


def _words(rows: Rows, side: str) -> tuple[np.ndarray, np.ndarray]:
    """The tokens of a side without separators, as ids and clusters."""
    tokens, clusters = rows.tokens(side)
    first, last = int(tokens.offsets[0]), int(tokens.offsets[-1])
    ids, of = np.asarray(tokens.values[first:last]), np.repeat(clusters, tokens.lengths)
    kept = ids != rows.text.template.separator
    return ids[kept].astype(np.uint64), of[kept]

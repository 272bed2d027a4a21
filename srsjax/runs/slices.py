"""Metrics within parts of a split: how good, how sure and how true the scores are for whom, and the gaps between them.

A slice divides the candidates into groups: the categories of a feature (the largest ones), quarters of a number, or
what is known of every split: how often training had the item and the user, and how long the context's text is.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from rich.table import Table

from srsjax.config import Categorical, Numeric, Schema, TrainConfig
from srsjax.data.kinds import shown_by
from srsjax.data.preparing.sources import Sources
from srsjax.data.store.arrays import Items, Split
from srsjax.errors import InputError, did_you_mean
from srsjax.metrics import baselines, intervals, report
from srsjax.metrics.table import Candidates, row_of
from srsjax.model.spec import Outputs
from srsjax.objectives import objectives
from srsjax.runs.calibration import one_value_categories, slice_of
from srsjax.runs.monitor import resolve_monitor

LARGEST = 8
"""Categories of a feature that are groups of their own; the rest is one more."""
LEAST = 100
"""Rows of a group whose metrics are given: of fewer they say nothing."""
SEEN = ((0, "none"), (1, "1 to 9"), (10, "10 to 99"), (100, "100 or more"))
"""Groups by how often training had it: least count, and name."""


class Group(NamedTuple):
    """Some candidates of a split."""

    name: str
    rows: np.ndarray
    """[M] bool."""


@dataclass(frozen=True)
class Frame:
    """What slices are made of."""

    config: TrainConfig
    split: Split
    items: Items
    train: Split | None
    """The training split, for how often it had an item or a user; None leaves these slices out."""
    vocabularies: Mapping[str, Sequence[str]]
    """Category names by feature, in the order of their ids from 1."""


def check_slices(config: TrainConfig) -> None:
    """Raises InputError where `evaluate.slices` names no feature with categories or numbers, or a private one."""
    for name in config.evaluate.slices:
        _check_slice("evaluate.slices", config.schema, name)


def _check_slice(where: str, schema: Schema, name: str) -> None:
    names = [each.name for each in _sliceable(schema)]
    if name not in names:
        raise InputError(
            f"{where}: found {name!r}, expected a Categorical feature of one value or a Numeric one, not private"
            f"{did_you_mean(name, names)}" + (f": {', '.join(names)}" if names else ", of which there is none")
        )


def slices(frame: Frame) -> Iterator[tuple[str, list[Group]]]:
    """The groups of each slice: of those the config names, and of those that every split has."""
    for name in frame.config.evaluate.slices:
        yield name, feature_groups(frame, name)
    if frame.train is not None:
        home = Sources(frame.config.schema, frame.config.data).home
        # Without a catalogue the same text has several rows of `items`.
        pair = (frame.train, frame.split)
        shown = shown_by(frame.config.schema)
        numbered = pair if home else baselines.number_items(frame.items, *pair, shown)[:2]
        seen, own = (np.asarray(each.item) for each in numbered)
        yield "item in training", _seen_groups(seen, own)
        if frame.config.data.user:
            of_train, of_split = (np.repeat(each.user, np.diff(each.candidates)) for each in (frame.train, frame.split))
            yield "user in training", _seen_groups(of_train, of_split)
    if len(frame.split.context.values):
        lengths = np.repeat(frame.split.context.lengths, np.diff(frame.split.candidates))
        yield "tokens of the context", quarters(lengths, "{:.0f}")


def feature_groups(frame: Frame, name: str, largest: int = LARGEST) -> list[Group]:
    """The largest categories of a feature and the rest, or quarters of a number.

    Raises InputError where it is neither, or private.
    """
    _check_slice("slices", frame.config.schema, name)
    values = slice_of(frame.config.schema, name, frame.split, frame.items)
    if values.dtype.kind == "f":
        return quarters(values, "{:.4g}")
    vocabulary = frame.vocabularies.get(_vocabulary_of(frame.config.schema, name))
    numbers, counts = np.unique(values, return_counts=True)
    shown = numbers[np.argsort(-counts, kind="stable")[:largest]]
    found = []
    for number in shown.tolist():
        found.append(Group(category_name(vocabulary, number), values == number))
    rest = ~np.isin(values, shown)
    return [*found, Group("all others", rest)] if rest.any() else found


def category_name(vocabulary: Sequence[str] | None, number: int) -> str:
    """What a person calls a category: 0 is unknown, and hash buckets have no vocabulary."""
    if number == 0:
        return "unknown"
    return str(vocabulary[number - 1]) if vocabulary else f"#{number}"


def quarters(values: np.ndarray, form: str) -> list[Group]:
    """Four groups of about as many rows, by numbers [M]; equal numbers are in one group, NaN (missing) in its own."""
    missing, cuts = np.isnan(values), []
    if not missing.all():
        cuts = np.unique(np.nanquantile(values, [0.25, 0.5, 0.75], method="higher")).tolist()
    ends = [-math.inf, *cuts, math.inf]
    found = []
    for low, high in itertools.pairwise(ends):
        rows = (values >= low) & (values < high)
        names = {-math.inf: f"below {form.format(high)}", math.inf: f"{form.format(low)} or more"}
        name = names.get(low) or names.get(high) or f"{form.format(low)} to below {form.format(high)}"
        if rows.any():
            found.append(Group(name if cuts else "all", rows))
    return [*found, Group("missing", missing)] if missing.any() else found


def measure_slices(frame: Frame, outputs: Sequence[Outputs], logits: np.ndarray) -> dict[str, Any]:
    """Metrics of the first task within each group, as plain data; logits [M, K] are those that are reported.

    By slice: `groups`, each with its `name`, `rows`, `label` (mean label), `predicted` (mean prediction), the metric
    of `evaluate.monitor` (or another headline one) and `recall` where they are defined, with the ends of their
    intervals; and `gaps`, by metric the largest difference between two groups and the ends of its interval. The groups
    are different rows, so that variances add up; chance alone makes the largest of many differences large.
    """
    made, own = objectives(frame.config.schema.tasks, outputs)[0]
    scored = made.measured(logits[:, own])
    key = resolve_monitor(frame.config).key
    keys = dict.fromkeys((key if "/" not in key else "auc", "recall"))
    found = {}
    for name, groups in slices(frame):
        measured = [_measured(frame, made.families, scored, group, [*keys]) for group in groups]
        found[name] = {"groups": measured, "gaps": _gaps(measured, [*keys, "calibration"])}
    return found


def slice_scalars(frame: Frame, outputs: Sequence[Outputs], logits: np.ndarray) -> dict[str, float]:
    """What validation logs of the groups of `evaluate.slices`: the first task's metric of `evaluate.monitor` (or AUC)
    and mean prediction less mean label in each, as `by country/GB/auc` and `by country/GB/calibration`, and the largest
    differences, `gap by country/auc`. Without intervals, which take longer."""
    made, own = objectives(frame.config.schema.tasks, outputs)[0]
    key = resolve_monitor(frame.config).key
    keys = ["auc" if "/" in key else key, "calibration"]
    scored = made.measured(logits[:, own])
    found: dict[str, float] = {}
    for name in frame.config.evaluate.slices:
        groups = [
            _measured(frame, made.families, scored, group, keys[:1], ends=False)
            for group in feature_groups(frame, name)
        ]
        for metric in keys:
            values = {each["name"]: each[metric][0] for each in groups if metric in each}
            found |= {f"by {name}/{group}/{metric}": value for group, value in values.items()}
            if len(values) > 1:
                found[f"gap by {name}/{metric}"] = max(values.values()) - min(values.values())
    return found


def _measured(
    frame: Frame, families: Sequence[str], scored: np.ndarray, group: Group, keys: Sequence[str], ends: bool = True
) -> dict[str, Any]:
    settings, rows = frame.config.evaluate, group.rows
    of = report.of_split(scored[rows], frame.split, rows=rows, threshold=settings.threshold, ndcg_at=settings.ndcg_at)
    made: dict[str, Any] = {"name": group.name, "rows": len(of.logits)}
    if len(of.logits) < LEAST:
        return made
    values = report.measure(of, families)
    for label, predicted in (("label_rate", "predicted_rate"), ("label_mean", "predicted_mean")):
        if label in values and predicted in values:
            made |= {"label": values[label], "predicted": values[predicted]}
            made["calibration"] = [values[predicted] - values[label]]
            made["calibration"] += _calibration_ends(of, values) if ends else ()
    spreads = intervals.intervals(intervals.spreads(of, [key for key in keys if key in values])) if ends else {}
    for key in keys:
        if key in values:
            own = spreads.get(key)
            made[key] = [values[key], *((own.low, own.high) if own else (None, None))]
    return made


def _calibration_ends(of: Candidates, values: Mapping[str, float]) -> tuple[float, float]:
    """The ends of the interval of mean prediction less mean label, rows of one user together."""
    predicted = of.probabilities if "label_rate" in values else of.logits
    number = np.unique(of.users, return_inverse=True)[1]
    total = of.weights.sum()
    difference = (predicted - of.labels) * of.weights
    centred = np.bincount(number, difference) - np.bincount(number, of.weights) * difference.sum() / total
    half = intervals.Z * float(np.sqrt(centred @ centred)) / total
    value = float(difference.sum() / total)
    return value - half, value + half


def _gaps(groups: Sequence[Mapping[str, Any]], keys: Sequence[str]) -> dict[str, Any]:
    """By metric: the largest difference between two groups, its interval, and which are the best and the worst."""
    found = {}
    for key in keys:
        having = [each for each in groups if key in each and each[key][1] is not None]
        if len(having) < 2:
            continue
        ordered = sorted(having, key=lambda each: each[key][0])
        low, high = ordered[0], ordered[-1]
        value = high[key][0] - low[key][0]
        half = math.hypot(*((each[key][2] - each[key][1]) / 2 for each in (low, high)))
        better = row_of(key).better if key != "calibration" else None
        found[key] = {"gap": [value, value - half, value + half], "lowest": low["name"], "highest": high["name"]} | (
            {"better": better} if better else {}
        )
    return found


def _seen_groups(seen: np.ndarray, own: np.ndarray) -> list[Group]:
    """Groups by how often each number of `own` [M] is in `seen`."""
    numbers, inverse = np.unique(own, return_inverse=True)
    places = np.searchsorted(seen_sorted := np.sort(seen), numbers)
    counts = (np.searchsorted(seen_sorted, numbers, side="right") - places)[inverse]
    ends = [least for least, _ in SEEN[1:]] + [math.inf]
    found = [Group(name, (counts >= least) & (counts < end)) for (least, name), end in zip(SEEN, ends, strict=True)]
    return [group for group in found if group.rows.any()]


def _sliceable(schema: Schema) -> list[Categorical | Numeric]:
    both = (*schema.context, *schema.candidate)
    found: list[Categorical | Numeric] = [*one_value_categories(schema)]
    found += [each for each in both if isinstance(each, Numeric)]
    return [each for each in found if not each.private]


def _vocabulary_of(schema: Schema, name: str) -> str:
    """The feature whose vocabulary a feature has."""
    feature = next(each for each in _sliceable(schema) if each.name == name)
    return (feature.like or name) if isinstance(feature, Categorical) else name


def slice_table(name: str, of: Mapping[str, Any]) -> Table:
    """The groups of a slice and its gaps, for people."""
    headings, rows = slice_rows(of)
    shown = Table(title=f"by {name}", title_justify="left", show_edge=False, pad_edge=False, collapse_padding=True)
    for heading in headings:
        shown.add_column(heading, justify="left" if heading == "group" else "right")
    for row in rows:
        shown.add_row(*row)
    lines = gaps_said(of)
    shown.caption = "\n".join(["largest gaps", *lines]) if lines else None
    return shown


def slice_rows(of: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    """The headings and rows of a slice's table."""
    groups = of["groups"]
    metrics = [key for key in dict.fromkeys(key for each in groups for key in each) if key not in PLAIN]
    rows = [
        [each["name"], f"{each['rows']:,}"]
        + [f"{each[key]:.4f}" if key in each else "-" for key in ("label", "predicted")]
        + [with_ends(each.get(key)) for key in metrics]
        for each in groups
    ]
    return ["group", "rows", "label", "predicted", *metrics], rows


def gaps_said(of: Mapping[str, Any]) -> list[str]:
    """The gaps of a slice, a line each."""
    return [
        f"{GAPS.get(key, key)}: {with_ends(gap['gap'])} between {gap['lowest']} and {gap['highest']}"
        for key, gap in of["gaps"].items()
    ]


PLAIN = ("name", "rows", "label", "predicted", "calibration")
"""Entries of a group that are no metrics, or have a column of their own."""
GAPS = {"calibration": "predicted less label", "recall": "recall (opportunity)"}
"""What a person reads for a gap; equal recall is equal opportunity (Hardt et al. 2016)."""


def with_ends(of: Sequence[float | None] | None) -> str:
    """A number with its interval: `0.8300 [0.812, 0.848]`."""
    if of is None or of[0] is None:
        return "-"
    value, low, high = of
    ends = "" if low is None or high is None else f" {report.interval_text(low, high)}"
    return f"{value:.4f}{ends}"

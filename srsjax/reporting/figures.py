"""The figures of a task on a split, each with its numbers as a table."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from markupsafe import Markup

from srsjax.metrics.auc import auc, precision_recall_curve, roc_curve
from srsjax.metrics.calibration import calibration_bins, ece
from srsjax.metrics.report import cell
from srsjax.metrics.table import Candidates, row_of
from srsjax.reporting.svg import Axis, Line, bar_chart, line_chart, number, span

DECILES = 10
HISTOGRAM = 20
MOST_CONFUSED = 12
"""Pairs of classes that are shown."""
SHOWN_POINTS = 11
"""Points of a curve that its table has."""


@dataclass(frozen=True)
class Figure:
    """A chart, or a table alone where `svg` is empty."""

    title: str
    svg: Markup
    headings: Sequence[str]
    rows: Sequence[Sequence[str]]
    note: str = ""
    folded: bool = True
    """Whether the table is folded away below the chart."""
    words: int = 1
    """First columns of the table that hold words, not numbers."""


def figures(
    of: Candidates, families: Sequence[str], before: Candidates | None, names: Sequence[str]
) -> Iterator[Figure]:
    """The figures of one task.

    Args:
      of: rows of known label with the reported scores, at least one.
      before: the same rows before calibration; None where nothing was calibrated.
      names: of classes.
    """
    if "class" in families:
        yield confusion(of.confusion, names)
        yield reliability(of, before, ("probability of the class predicted", "share that is right"))
    elif "value" in families:
        yield from residuals(of)
    elif "click" in families and not of.graded:
        if 0 < of.weights @ of.labels < of.weights.sum():
            yield roc(of)
            yield precision_recall(of)
        yield reliability(of, before)
        yield lift(of)
        yield histogram(of)


def roc(of: Candidates) -> Figure:
    """The ROC curve."""
    false, true = roc_curve(*of.triple)
    area = auc(*of.triple)
    lines = [Line(f"AUC {area:.4f}", false, true), Line("", [0, 1], [0, 1])]
    chart = line_chart(
        f"ROC curve, AUC {area:.4f}", Axis("false positive rate", 0, 1), Axis("true positive rate", 0, 1), lines
    )
    at = np.linspace(0, 1, SHOWN_POINTS)
    rows = [[f"{x:.1f}", f"{y:.4f}"] for x, y in zip(at, np.interp(at, false, true), strict=True)]
    return Figure("ROC curve", Markup(chart), ("false positive rate", "true positive rate"), rows)


def precision_recall(of: Candidates) -> Figure:
    """The precision-recall curve."""
    precision, recall = precision_recall_curve(*of.triple)
    rate = float(of.weights @ of.labels / of.weights.sum())
    lines = [Line("model", recall, precision), Line("", [0, 1], [rate, rate])]
    chart = line_chart("precision by recall", Axis("recall", 0, 1), Axis("precision", 0, 1), lines)
    at = np.linspace(0.1, 1, SHOWN_POINTS - 1)
    rows = [[f"{x:.1f}", f"{y:.4f}"] for x, y in zip(at, np.interp(at, recall, precision), strict=True)]
    note = f"The grey line is the label rate, {rate:.4f}: the precision of any order that knows nothing."
    return Figure("Precision and recall", Markup(chart), ("recall", "precision"), rows, note)


def reliability(
    of: Candidates,
    before: Candidates | None,
    axes: tuple[str, str] = ("predicted probability", "share of positive labels"),
) -> Figure:
    """Mean label by mean prediction in bins of equal weight; of classes, how often the most probable one is right."""
    drawn = {"calibrated" if before else "model": of} | ({"before calibration": before} if before else {})
    bins = {name: calibration_bins(*each.claimed, each.weights) for name, each in drawn.items()}
    top = 1.05 * max(max(each.predicted.max(), each.observed.max()) for each in bins.values())
    errors = {name: ece(*each.claimed, each.weights) for name, each in drawn.items()}
    lines = [
        Line(f"{name}, ECE {errors[name]:.4f}", each.predicted, each.observed, marks=True)
        for name, each in bins.items()
    ]
    title = "reliability: " + ", ".join(line.name for line in lines)
    across, up = (Axis(each, 0, top) for each in axes)
    chart = line_chart(title, across, up, [*lines, Line("", [0, top], [0, top])])
    rows = [
        [name, f"{weight:,.0f}", f"{predicted:.4f}", f"{observed:.4f}"]
        for name, each in bins.items()
        for weight, predicted, observed in zip(*each, strict=True)
    ]
    headings = ("scores", "weight", "predicted", "observed")
    note = "True probabilities are on the grey line. Bins have equal weight."
    return Figure("Reliability", Markup(chart), headings, rows, note)


def lift(of: Candidates) -> Figure:
    """Tenths of the candidates by falling score: how many positives each has, beside drawing at random."""
    bins = calibration_bins(of.probabilities, of.labels, of.weights, DECILES)
    weight, predicted, observed = (each[::-1] for each in bins)
    rate = float(of.weights @ of.labels / of.weights.sum())
    share = np.cumsum(weight) / weight.sum()
    gained = np.cumsum(weight * observed) / max(float((weight * observed).sum()), 1e-300)
    above = observed / rate if rate else np.zeros_like(observed)
    rows = [
        [str(n), f"{w:,.0f}", f"{p:.4f}", f"{o:.4f}", f"{a:.2f}", f"{s:.1%}", f"{g:.1%}"]
        for n, (w, p, o, a, s, g) in enumerate(zip(weight, predicted, observed, above, share, gained, strict=True), 1)
    ]
    headings = ("tenth", "weight", "predicted", "observed", "lift", "of candidates", "of positives")
    edges = np.concatenate([[0], share])
    bars = [("observed", list(observed)), ("predicted", list(predicted))]
    y = Axis("share of positive labels", 0, 1.1 * float(max(observed.max(), predicted.max(), 1e-9)))
    chart = bar_chart("label rate by tenth of the scores", Axis("candidates, best first", 0, 1), y, edges, bars)
    note = f"Lift is the label rate of a tenth over that of all, {rate:.4f}."
    return Figure("Lift by tenth", Markup(chart), headings, rows, note, folded=False)


def histogram(of: Candidates) -> Figure:
    """Scores by label."""
    edges = np.linspace(0, max(float(of.probabilities.max()), 1e-9), HISTOGRAM + 1)
    found = {
        name: np.histogram(of.probabilities, edges, weights=of.weights * mass)[0]
        for name, mass in (("label 0", 1 - of.labels), ("label 1", of.labels))
    }
    shares = {name: each / max(each.sum(), 1e-300) for name, each in found.items()}
    y = Axis("share of the label", 0, 1.1 * float(max(each.max() for each in shares.values())))
    chart = bar_chart(
        "scores by label", Axis("score", 0, float(edges[-1])), y, list(edges), [(n, list(s)) for n, s in shares.items()]
    )
    rows = [
        [f"{low:.3f} to {high:.3f}", *(f"{each[n]:,.0f}" for each in found.values())]
        for n, (low, high) in enumerate(itertools.pairwise(edges))
    ]
    return Figure("Scores by label", Markup(chart), ("score", *(f"weight of {name}" for name in found)), rows)


def residuals(of: Candidates) -> Iterator[Figure]:
    """Prediction less label of a number, and the mean label by the prediction."""
    apart = of.logits - of.labels
    low, high = span(np.quantile(apart, [0.005, 0.995]))
    edges = np.linspace(low, high, HISTOGRAM + 1)
    counts = np.histogram(np.clip(apart, low, high), edges, weights=of.weights)[0]
    y = Axis("weight", 0, 1.1 * float(counts.max()))
    chart = bar_chart("residuals", Axis("prediction less label", low, high), y, list(edges), [("weight", list(counts))])
    rows = [
        [f"{number(a)} to {number(b)}", f"{count:,.0f}"]
        for a, b, count in zip(edges[:-1], edges[1:], counts, strict=True)
    ]
    note = "What is further out than 99 of 100 is in the last bars."
    yield Figure("Residuals", Markup(chart), ("prediction less label", "weight"), rows, note)

    bins = calibration_bins(of.logits, of.labels, of.weights, DECILES)
    ends = span(np.concatenate([bins.predicted, bins.observed]))
    lines = [Line("mean of a tenth", bins.predicted, bins.observed, marks=True), Line("", ends, ends)]
    chart = line_chart("label by prediction", Axis("prediction", *ends), Axis("mean label", *ends), lines)
    rows = [[f"{w:,.0f}", number(p), number(o)] for w, p, o in zip(*bins, strict=True)]
    yield Figure("Label by prediction", Markup(chart), ("weight", "prediction", "mean label"), rows)


def confusion(matrix: np.ndarray, names: Sequence[str]) -> Figure:
    """Which classes are taken for which, most often first."""
    wrong = np.where(np.eye(len(matrix), dtype=bool), 0, matrix)
    cells = [np.unravel_index(at, wrong.shape) for at in np.argsort(-wrong, axis=None, kind="stable")[:MOST_CONFUSED]]
    there = matrix.sum(1)
    rows = [
        [str(names[a]), str(names[b]), f"{wrong[a, b]:,.0f}", f"{wrong[a, b] / there[a]:.1%}"]
        for a, b in cells
        if wrong[a, b] > 0
    ]
    total = matrix.sum()
    note = f"{total - np.trace(matrix):,.0f} of {total:,.0f} are wrong; the {len(rows)} most frequent confusions."
    headings = ("class", "taken for", "weight", "of the class")
    return Figure("Confusions", Markup(""), headings, rows, note, folded=False, words=2)


def learning_curves(lines: Sequence[Mapping[str, Any]], monitor: str, best_step: int) -> Iterator[Figure]:
    """Loss and the monitored metric by step, from a run's `metrics.jsonl`."""

    def finite(kind: str, key: str) -> list[tuple[int, float]]:
        own = [line for line in lines if line.get("kind") == kind]
        return [(line["step"], line[key]) for line in own if isinstance(line.get(key), int | float)]  # else "nan"

    train, valid = finite("train", "loss"), finite("valid", monitor)
    if train:
        steps, losses = (list(each) for each in zip(*train, strict=True))
        axes = Axis("step", 0, max(steps)), Axis("training loss", *span(losses))
        chart = line_chart("training loss by step", *axes, [Line("training loss", steps, losses)])
        few = train[:: max(1, len(train) // SHOWN_POINTS)]
        yield Figure("Training loss", Markup(chart), ("step", "loss"), [[f"{s:,}", f"{v:.4f}"] for s, v in few])
    if valid:
        steps, values = (list(each) for each in zip(*valid, strict=True))
        axes = Axis("step", 0, max(steps)), Axis(monitor, *span(values))
        chart = line_chart(
            f"{monitor} of the validation split by step", *axes, [Line(monitor, steps, values, marks=True)]
        )
        rows = [[f"{s:,}", cell(monitor, {monitor: v})] for s, v in valid]
        better = "higher" if row_of(monitor).better == "max" else "lower"
        note = f"{better.capitalize()} is better; the best checkpoint is that of step {best_step:,}."
        yield Figure("Validation", Markup(chart), ("step", monitor), rows, note)

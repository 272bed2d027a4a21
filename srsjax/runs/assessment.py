"""All that is reported of a model on a split: metrics, before and after calibration, and what they compare with."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

import numpy as np
from rich.table import Table

from srsjax.config import TrainConfig
from srsjax.data.store.arrays import Items, Split
from srsjax.metrics import classes, intervals, report
from srsjax.metrics.table import row_of
from srsjax.model.spec import Outputs
from srsjax.objectives import objective
from srsjax.runs.calibration import Calibration
from srsjax.runs.evaluation import class_reports, split_candidates, split_metrics, split_references
from srsjax.runs.slices import Frame, measure_slices, slice_table

PARTS = ("references", "uncalibrated", "classes", "intervals", "differences", "slices")
"""Of `Assessment`, besides the model's metrics."""


@dataclass(frozen=True)
class Assessment:
    """The report of a split."""

    model: Mapping[str, float]
    """Metrics of the calibrated scores, those of further tasks as `task/metric`."""
    references: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    """Metrics of the first task by what it is compared with."""
    uncalibrated: Mapping[str, float] = field(default_factory=dict)
    """What the metrics of probabilities would be without calibration; empty where nothing is calibrated."""
    classes: Mapping[str, Mapping[str, classes.OfClass]] = field(default_factory=dict)
    """By multiclass task."""
    intervals: Mapping[str, Sequence[float]] = field(default_factory=dict)
    """Low and high ends of the 95 % intervals of `model` (`srsjax.metrics.intervals`)."""
    differences: Mapping[str, Mapping[str, Sequence[float]]] = field(default_factory=dict)
    """By what the model is compared with: the model's metric less the other's, and the ends of its interval."""

    slices: Mapping[str, Any] = field(default_factory=dict)
    """By slice, from `srsjax.runs.slices.measure_slices`."""

    def to_json(self) -> dict[str, Any]:
        """Metrics by whose they are (`model`, `popularity`, ...), and what else there is."""
        others = {part: getattr(self, part) for part in PARTS if part != "references"}
        return {"model": self.model, **self.references} | {name: made for name, made in others.items() if made}

    def of_split(self, name: str) -> dict[str, Any]:
        """The entries of a split in `report.json`."""
        return {name: self.model} | {f"{name}_{part}": getattr(self, part) for part in PARTS}

    @classmethod
    def read(cls, result: Mapping[str, Any], name: str) -> Assessment:
        """The inverse of `of_split`; reports of earlier versions have fewer entries."""
        return cls(result[name], **{part: result.get(f"{name}_{part}", {}) for part in PARTS})

    def slice_tables(self) -> Iterator[Table]:
        """Metrics by slice, which are too many for the end of a training."""
        for name, of in self.slices.items():
            yield slice_table(name, of)

    def differences_said(self) -> Iterator[str]:
        """The difference of the first headline metric to each reference, a line each."""
        for name, apart in self.differences.items():
            key = next((key for key in apart if row_of(key).headline), None)
            if key:
                value, *ends = apart[key]
                heading = report.HEADINGS.get(name, name)
                yield f"{key} less that of {heading}: {value:+.4f} {report.interval_text(*ends)}, paired"

    def tables(self, title: str) -> Iterator[Table | str]:
        """What a person reads."""
        yield report.table({"model": dict(self.model), **self.references}, title, self.uncalibrated, self.intervals)
        yield from self.differences_said()
        if self.intervals:
            yield "[low, high]: 95 % intervals for other users of the same kind; that of ece is corrected for its bias"
        for task, of in self.classes.items():
            yield report.class_table(task, of)


def assess(
    config: TrainConfig,
    outputs: Sequence[Outputs],
    calibration: Calibration,
    split: Split,
    items: Items,
    logits: np.ndarray,
    train: Split | None = None,
    say: Callable[[str], None] = lambda line: None,
    vocabularies: Mapping[str, Sequence[str]] = MappingProxyType({}),
) -> Assessment:
    """The report of a split.

    Args:
      outputs: of each task.
      calibration: is applied to the logits.
      logits: [M, K] float32 of the model itself.
      train: the training split that references are taken from; None compares with none.
      say: called with what is left out of the references, and why.
      vocabularies: category names by feature, for slices.
    """
    calibrated = calibration.apply(config.schema, outputs, split, items, logits)
    before = {} if calibrated is logits else split_metrics(config, outputs, split, logits)
    changed = [task.name for task in config.schema.tasks if calibration.changes(task.name)]
    metrics, spread = measured(config, outputs, split, calibrated)
    references, differences = {}, {}
    for name, scores in ({} if train is None else split_references(config, train, split, items, say)).items():
        families = objective(config.schema.tasks[0]).families
        of = report.of_split(scores, split, threshold=config.evaluate.threshold, ndcg_at=config.evaluate.ndcg_at)
        references[name] = report.measure(of, families)
        differences[name] = intervals.differences(spread, intervals.spreads(of, references[name]))
    return Assessment(
        metrics,
        references,
        {key: value for key, value in before.items() if _task(config, key) in changed and row_of(key).of_probabilities},
        class_reports(config, outputs, split, calibrated),
        {key: [each.low, each.high] for key, each in intervals.intervals(spread).items()},
        {name: {key: list(each) for key, each in apart.items()} for name, apart in differences.items()},
        measure_slices(Frame(config, split, items, train, vocabularies), outputs, calibrated),
    )


def measured(
    config: TrainConfig, outputs: Sequence[Outputs], split: Split, logits: np.ndarray
) -> tuple[dict[str, float], dict[str, intervals.Spread]]:
    """The metrics of every task (`split_metrics`), and how far other users would move each."""
    metrics: dict[str, float] = {}
    spread: dict[str, intervals.Spread] = {}
    for prefix, families, of in split_candidates(config, outputs, split, logits):
        values = report.measure(of, families)
        metrics |= {prefix + key: value for key, value in values.items()}
        spread |= {prefix + key: each for key, each in intervals.spreads(of, values).items()}
    return metrics, spread


def _task(config: TrainConfig, key: str) -> str:
    """The task of a report's key."""
    return key.rpartition("/")[0] or config.schema.tasks[0].name

"""All that is reported of a model on a split: metrics, before and after calibration, and what they compare with."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from rich.table import Table

from srsjax.config import TrainConfig
from srsjax.data.store.arrays import Items, Split
from srsjax.metrics import classes, report
from srsjax.metrics.table import row_of
from srsjax.model.spec import Outputs
from srsjax.runs.calibration import Calibration
from srsjax.runs.evaluation import class_reports, split_metrics, split_references


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

    def to_json(self) -> dict[str, Any]:
        """Metrics by whose they are (`model`, `popularity`, ...), and what else there is."""
        others = {"uncalibrated": self.uncalibrated, "classes": self.classes}
        return {"model": self.model, **self.references} | {name: made for name, made in others.items() if made}

    def of_split(self, name: str) -> dict[str, Any]:
        """The entries of a split in `report.json`."""
        return {
            name: self.model,
            f"{name}_references": self.references,
            f"{name}_uncalibrated": self.uncalibrated,
            f"{name}_classes": self.classes,
        }

    @classmethod
    def read(cls, result: Mapping[str, Any], name: str) -> Assessment:
        """The inverse of `of_split`; reports of earlier versions have fewer entries."""
        parts = {part: result.get(f"{name}_{part}", {}) for part in ("references", "uncalibrated", "classes")}
        return cls(result[name], **parts)

    def tables(self, title: str) -> Iterator[Table]:
        """What a person reads."""
        yield report.table({"model": dict(self.model), **self.references}, title, self.uncalibrated)
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
) -> Assessment:
    """The report of a split.

    Args:
      outputs: of each task.
      calibration: is applied to the logits.
      logits: [M, K] float32 of the model itself.
      train: the training split that references are taken from; None compares with none.
      say: called with what is left out of the references, and why.
    """
    calibrated = calibration.apply(config.schema, outputs, split, items, logits)
    before = {} if calibrated is logits else split_metrics(config, outputs, split, logits)
    changed = [task.name for task in config.schema.tasks if calibration.changes(task.name)]
    return Assessment(
        split_metrics(config, outputs, split, calibrated),
        {} if train is None else split_references(config, train, split, items, say),
        {key: value for key, value in before.items() if _task(config, key) in changed and row_of(key).of_probabilities},
        class_reports(config, outputs, split, calibrated),
    )


def _task(config: TrainConfig, key: str) -> str:
    """The task of a report's key."""
    return key.rpartition("/")[0] or config.schema.tasks[0].name

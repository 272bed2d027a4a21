"""The examples of a srsjax config, read with pyarrow and plain Python: for the PyTorch peer, which shares no code."""

from __future__ import annotations

import os
import runpy
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from srsjax.config import TrainConfig, columns

CONFIGS = Path(__file__).parents[2] / "configs"


@dataclass(frozen=True)
class Examples:
    """n candidates in the order of the log, of all splits."""

    context: list[list[str]]
    """[n][fields] texts of the context."""
    candidate: list[list[str]]
    """[n][fields] texts of the candidate."""
    labels: np.ndarray
    """[n] float64, 0 to 1: the share of clicks where the log holds counts."""
    weights: np.ndarray
    """[n] float64: the impressions where the log holds counts, else 1."""
    groups: np.ndarray
    """[n] int64, the impression a candidate belongs to."""
    split: np.ndarray
    """[n] str."""
    log: pa.Table
    """[n rows] the log as it is in the file."""

    def rows(self, split: str) -> np.ndarray:
        """Row numbers of a split, [m] int64."""
        return np.flatnonzero(self.split == split)


def load_config(name: str) -> TrainConfig:
    """The config `configs/<name>.py`."""
    return runpy.run_path(str(CONFIGS / f"{name}.py"))["get_config"]()


def read_examples(config: TrainConfig) -> Examples:
    """Reads the Parquet tables a config names and joins them; KeyError where a key is not in its catalogue."""
    data, task = config.data, config.schema.tasks[0]
    log = pq.read_table(os.path.expandvars(data.log.files))
    joined = {name: log[name].to_pylist() for name in log.column_names}
    for catalogue in data.catalogues:
        table = pq.read_table(os.path.expandvars(catalogue.files))
        row_of = {key: row for row, key in enumerate(_keys(table, columns(catalogue.key)))}
        rows = [row_of[key] for key in _keys(log, columns(catalogue.on) or columns(catalogue.key))]
        for name in table.column_names:
            values = table[name].to_pylist()
            joined[f"{catalogue.name}.{name}"] = [values[row] for row in rows]

    def texts(features):
        fields = [joined[feature.column or feature.name] for feature in features]
        return [[text or "" for text in row] for row in zip(*fields, strict=True)] or [[] for _ in range(len(log))]

    label = joined[task.column or task.name]
    labels = np.array([value == task.positive for value in label] if task.positive else label, np.float64)
    weights = np.array(joined[task.impressions], np.float64) if task.impressions else np.ones(len(log))
    if task.impressions:
        labels = labels / weights
    group_keys = _keys(log, columns(data.group_by)) if data.group_by else range(len(log))
    numbers: dict = {}
    groups = np.array([numbers.setdefault(key, len(numbers)) for key in group_keys], np.int64)
    split = np.array(joined[data.split.column])
    return Examples(texts(config.schema.context), texts(config.schema.candidate), labels, weights, groups, split, log)


def _keys(table: pa.Table, names: tuple[str, ...]) -> list[tuple]:
    return list(zip(*(table[name].to_pylist() for name in names), strict=True))

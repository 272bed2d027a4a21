"""What scores cost and what they are worth: size, speed and metrics of models on the same rows, as one table."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial

import numpy as np
from rich.table import Table as RichTable

from srsjax.data.store.arrays import Items, Split
from srsjax.inference.scorer import Scorer
from srsjax.metrics.values import spearman
from srsjax.objectives import predict
from srsjax.runs.evaluation import split_metrics
from srsjax.runs.quantization import size

COST = ("MiB", "pairs_per_second")
"""Columns that every table has first."""
SHOWN = ("auc", "gauc", "log_loss", "ndcg", "mrr", "accuracy", "f1", "rmse")
"""Metrics that are printed where a task has them."""
AGREEMENT = "rank_agreement"
"""Last column: smallest rank correlation of all tasks with the scores of the first row."""


def timed(scorer: Scorer, compute: Callable[[], np.ndarray]) -> tuple[np.ndarray, dict[str, float]]:
    """What `compute` gives, logits of M pairs [M, K], and `COST`: MiB of all parameters as the scorer holds them, and
    pairs a second of its second call, which compiles nothing."""
    compute()
    started = time.perf_counter()
    logits = compute()
    seconds = time.perf_counter() - started
    return logits, dict(zip(COST, (size(scorer.params) / 2**20, len(logits) / seconds), strict=True))


def agreement(scores: np.ndarray, expected: np.ndarray) -> float:
    """The smallest rank correlation (Spearman) of all tasks, of scores [M, T] of the same rows."""
    weights = np.ones(len(scores))
    return min(spearman(*columns, weights) for columns in zip(scores.T, expected.T, strict=True))


def cost_rows(variants: Mapping[str, Scorer], split: Split, items: Items) -> dict[str, dict[str, float]]:
    """By variant: `COST`, the metrics of the split, and the agreement with the first one."""
    table: dict[str, dict[str, float]] = {}
    expected: np.ndarray | None = None
    for name, scorer in variants.items():
        logits, row = timed(scorer, partial(scorer.logits, split, items))
        scores = predict(scorer.config.schema.tasks, scorer.session.spec.outputs, logits)
        expected = scores if expected is None else expected
        row |= split_metrics(scorer.config, scorer.session.spec.outputs, split, logits)
        table[name] = row | {AGREEMENT: agreement(scores, expected)}
    return table


def cost_table(rows: Mapping[str, Mapping[str, float]], title: str, head: str) -> RichTable:
    """Rows as `cost_rows` gives them, for the terminal; `head` says what the names of rows are."""
    columns = [*COST, *shown_metrics(list(next(iter(rows.values())))), AGREEMENT]
    made = RichTable(title=title, title_justify="left")
    for column in (head, *(name.replace("_", " ") for name in columns)):
        made.add_column(column, justify="left" if column == head else "right")
    for name, row in rows.items():
        cells = (f"{row[c]:.4f}" if c in row else "" for c in columns[2:])
        made.add_row(name, f"{row['MiB']:.1f}", f"{row['pairs_per_second']:,.0f}", *cells)
    return made


def shown_metrics(names: Sequence[str]) -> list[str]:
    """Those of these metrics, `task/metric@k`, that are printed."""
    return [name for name in names if name.rpartition("/")[2].partition("@")[0] in SHOWN]

"""The metric that chooses the best checkpoint and stops early, resolved once."""

from __future__ import annotations

from typing import NamedTuple

from srsjax.config import TrainConfig
from srsjax.errors import InputError, did_you_mean
from srsjax.metrics import report
from srsjax.metrics.table import METRICS, row_of
from srsjax.objectives import objective


class Monitor(NamedTuple):
    """A metric of a task."""

    key: str
    """Its name in the result of an evaluation: `auc`, or `task/auc` for further tasks."""
    mode: str
    """`max` or `min`: which way is better."""


def resolve_monitor(config: TrainConfig) -> Monitor:
    """What `evaluate.monitor` and `evaluate.mode` mean, by the config alone.

    The first task's metrics may be named with or without the task; empty means its own (`Objective.monitor`).
    Raises InputError for an unknown task or metric, and for a metric that the task never has.
    """
    settings, tasks = config.evaluate, config.schema.tasks
    names = [task.name for task in tasks]
    wanted, _, metric = settings.monitor.rpartition("/")
    if wanted and wanted not in names:
        raise InputError(
            f"evaluate.monitor: found task {wanted!r}, expected one of {', '.join(names)}{did_you_mean(wanted, names)}"
        )
    task = names.index(wanted) if wanted else 0
    made = objective(tasks[task])
    metric = metric or row_of(made.monitor).key(settings.ndcg_at)
    known = report.mode(metric, settings.ndcg_at)
    if not row_of(metric).applies(made.families):
        own = [m.key(settings.ndcg_at) for m in METRICS if m.better and m.applies(made.families)]
        raise InputError(
            f"evaluate.monitor: found {settings.monitor!r}, but task {names[task]!r} is {made.kind} and has only "
            f"{', '.join(own)}"
        )
    key = f"{names[task]}/{metric}" if task else metric
    return Monitor(key, known if settings.mode == "auto" else settings.mode)

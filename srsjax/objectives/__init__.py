"""What each kind of task trains and predicts: one module a kind, and the table of them."""

from __future__ import annotations

import numpy as np

from srsjax.config import Task
from srsjax.objectives.binary import Binary
from srsjax.objectives.listwise import Listwise
from srsjax.objectives.objective import Objective

KINDS: dict[str, type[Objective]] = {made.kind: made for made in (Binary, Listwise)}
"""By `Task.kind`."""


def objective(task: Task) -> Objective:
    """The objective of a task."""
    return KINDS[task.kind](task)


def objectives(tasks: tuple[Task, ...]) -> tuple[tuple[Objective, slice], ...]:
    """The objective of each task, and where its outputs are among the logits of all tasks, [R, C, K]."""
    found, first = [], 0
    for task in tasks:
        made = objective(task)
        found.append((made, slice(first, first + made.outputs)))
        first += made.outputs
    return tuple(found)


def predict(tasks: tuple[Task, ...], logits: np.ndarray) -> np.ndarray:
    """The scores of every task, [M, T] float64, from the logits of all of them, [M, K] float32."""
    return np.stack([made.predict(logits[..., outputs]) for made, outputs in objectives(tasks)], axis=-1)

"""What each kind of task trains and predicts: one module a kind, and the table of them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from srsjax.config import Distill, Fairness, Task
from srsjax.model.spec import Outputs, output_slices
from srsjax.objectives.binary import Binary
from srsjax.objectives.contrastive import Contrastive
from srsjax.objectives.listwise import Listwise
from srsjax.objectives.multiclass import Multiclass
from srsjax.objectives.objective import Objective
from srsjax.objectives.pairwise import Pairwise
from srsjax.objectives.regression import Regression

KINDS: dict[str, type[Objective]] = {
    made.kind: made for made in (Binary, Listwise, Pairwise, Contrastive, Multiclass, Regression)
}
"""By `Task.kind`."""


def objective(task: Task, known: Outputs | None = None) -> Objective:
    """The objective of a task; `known` is needed for all that depends on the training labels."""
    return KINDS[task.kind](task, known)


def objectives(
    tasks: tuple[Task, ...],
    outputs: Sequence[Outputs],
    distill: Distill | None = None,
    fairness: Fairness | None = None,
) -> tuple[tuple[Objective, slice], ...]:
    """The objective of each task, and where its outputs are among the logits of all tasks, [R, C, K].

    `outputs` are those of each task, `ModelSpec.outputs`; `distill` says how losses learn from a teacher,
    `fairness` what the first one pays for differences between groups; None is without.
    """
    asked = [fairness, *[None] * (len(tasks) - 1)]
    made = [KINDS[task.kind](task, known, distill, own) for task, known, own in zip(tasks, outputs, asked, strict=True)]
    return tuple(zip(made, output_slices(outputs), strict=True))


def columns(tasks: tuple[Task, ...], outputs: Sequence[Outputs], logits: np.ndarray) -> dict[str, np.ndarray]:
    """What a file of scores says of every task, for logits [M, K] float32: columns by name, of further tasks with the
    name of the task behind (`score_buy`)."""
    found: dict[str, np.ndarray] = {}
    for made, own in objectives(tasks, outputs):
        behind = f"_{made.task.name}" if own.start else ""
        found |= {name + behind: values for name, values in made.columns(logits[:, own]).items()}
    return found


def logit_columns(tasks: tuple[Task, ...], outputs: Sequence[Outputs], logits: np.ndarray) -> dict[str, np.ndarray]:
    """The logits of every task as `columns` names them: [M] float32, or [M, K] of classes."""
    return {
        "logit" + (f"_{made.task.name}" if own.start else ""): logits[:, own]
        if made.kind == "multiclass"
        else logits[:, own.start]
        for made, own in objectives(tasks, outputs)
    }


def predict(tasks: tuple[Task, ...], outputs: Sequence[Outputs], logits: np.ndarray) -> np.ndarray:
    """The scores of every task, [M, T] float64, from the logits of all of them, [M, K] float32."""
    return np.stack([made.predict(logits[..., own]) for made, own in objectives(tasks, outputs)], axis=-1)

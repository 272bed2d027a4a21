"""Training that treats the groups of a feature alike (`config.Fairness`)."""

from __future__ import annotations

from srsjax.config import TrainConfig
from srsjax.data.batches.cohorts import cohorts, reweighted, with_cohorts
from srsjax.data.store.arrays import Items, Split
from srsjax.errors import InputError, did_you_mean
from srsjax.runs.calibration import one_value_categories, slice_of


def check_fairness(config: TrainConfig) -> None:
    """Raises InputError where `fairness` names no feature with groups, or the first task is not binary or takes no
    weights."""
    asked, task = config.fairness, config.schema.tasks[0]
    if not asked.by:
        return
    names = [each.name for each in one_value_categories(config.schema)]
    if asked.by not in names:
        raise InputError(
            f"fairness.by: found {asked.by!r}, expected a Categorical feature of one value"
            f"{did_you_mean(asked.by, names)}" + (f": {', '.join(names)}" if names else ", of which there is none")
        )
    if task.kind != "binary":
        raise InputError(f"fairness.by: the first task {task.name!r} is {task.kind}, expected a binary one")
    if asked.method == "reweight" and not task.weight_power:
        raise InputError(f"fairness.method: 'reweight' needs weights, but weight_power of {task.name!r} is 0")


def with_fairness(config: TrainConfig, split: Split, items: Items) -> Split:
    """The training split with what `fairness` asks for: other weights, or the group of each candidate."""
    asked = config.fairness
    if not asked.by or not asked.strength:
        return split
    cohort = cohorts(slice_of(config.schema, asked.by, split, items))
    if asked.method == "reweight":
        return reweighted(split, cohort, asked.strength, config.schema.tasks[0].weight_power)
    return with_cohorts(split, cohort)

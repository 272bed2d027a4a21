"""Models for tests, from the fields of a config and the sizes of an encoder: the one place that makes them."""

from __future__ import annotations

import jax

from srsjax import config
from srsjax.data.batches.batch import PackedBatch
from srsjax.data.inputs import InputSpec
from srsjax.data.preparing.statistics import Fitted
from srsjax.model import ctr, flops
from srsjax.model.attention import Attend, attend
from srsjax.model.bert import BertConfig
from srsjax.model.compute import Compute
from srsjax.model.spec import ModelSpec, Outputs
from srsjax.objectives import objective, objectives
from srsjax.objectives.losses import Objectives


def make_spec(
    model: config.Model, bert: BertConfig, num_tasks: int = 1, features: tuple[InputSpec, ...] = (), **changes
) -> ModelSpec:
    """The spec of binary tasks; `changes` are further fields."""
    outputs = tuple(Outputs(f"task-{t}", "binary") for t in range(num_tasks))
    return ModelSpec.of(model, bert, outputs=outputs, features=features, **changes)


def goals(*tasks: config.Task, fitted: Fitted = Fitted()) -> Objectives:
    """What tasks train, by what was fitted on their labels."""
    return objectives(tasks, [objective(task).outputs(fitted) for task in tasks])


def build(model: config.Model, bert: BertConfig, num_tasks: int = 1, attention: Attend = attend):
    """`ctr.build` of a config."""
    return ctr.build(make_spec(model, bert, num_tasks), Compute.of(model, attention))


def init(model: config.Model, bert: BertConfig, num_tasks: int, key: jax.Array) -> ctr.Params:
    """`ctr.init` of a config."""
    return ctr.init(make_spec(model, bert, num_tasks), key)


def forward_flops(model: config.Model, bert: BertConfig, batch: PackedBatch) -> float:
    """`flops.forward_flops` of a config."""
    return flops.forward_flops(make_spec(model, bert), batch)

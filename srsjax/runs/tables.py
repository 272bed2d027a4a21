"""Embedding tables of ids, updated only in the rows that a batch touches.

A dense optimizer reads and writes every row of a table and of its moments at every step. Here a step takes the rows of
the ids that are in its batch, numbers the ids anew by their place among those rows, differentiates the rows alone, and
writes them back. The model does not know: it is given the rows as its table.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import optax

from srsjax.config import Optimizer
from srsjax.data.batches.batch import PackedBatch
from srsjax.model.features import table_path
from srsjax.model.spec import ModelSpec
from srsjax.runs.optimizers import make_optimizer, schedule

EPS = 1e-10
"""Added under the root of the accumulated squares."""
MOMENTS, ADAM_EPS = {"mean": 0.9, "square": 0.999}, 1e-8
"""What Adam's moments are multiplied by at each step, and what is added to the root."""


@dataclass(frozen=True)
class Tables:
    """Which parameters are tables of ids, and which features read each."""

    readers: Mapping[str, tuple[tuple[str, str], ...]]
    """By path: side and name of every feature that reads it."""
    rate: optax.Schedule
    """Learning rate by step."""
    name: str = "rowwise_adagrad"
    """`optimizer.tables`: `rowwise_adagrad`, `adam` or `sgd`."""

    def start(self, params: Mapping[str, jax.Array]) -> dict[str, Any]:
        """The state, zeros by path: sums of squares [V] of Adagrad, both moments [V, D] of Adam, {} of gradient
        descent."""
        match self.name:
            case "rowwise_adagrad":
                return {path: jnp.zeros(params[path].shape[0]) for path in self.readers}
            case "adam":
                return {moment: {path: jnp.zeros_like(params[path]) for path in self.readers} for moment in MOMENTS}
            case _:
                return {}

    def take(
        self, params: Mapping[str, jax.Array], batch: PackedBatch
    ) -> tuple[dict[str, jax.Array], dict[str, jax.Array], PackedBatch]:
        """The rows that a batch touches, [N, D] by path, their numbers in the tables [N] int32, and the batch with ids
        that count these rows. N is as many as the batch could touch; unused ones have the number V.

        The first row is always that of id 0, which the model takes for unknown values.
        """
        sides = {"context": dict(batch.context_features), "candidate": dict(batch.candidate_features)}
        rows, numbers = {}, {}
        for path, readers in self.readers.items():
            table = params[path]
            ids = [sides[side][name] for side, name in readers]
            flat = jnp.concatenate([jnp.zeros(1, jnp.int32), *(x.ravel() for x in ids)])
            size = min(len(flat), table.shape[0])
            number, place = jnp.unique(flat, size=size, fill_value=table.shape[0], return_inverse=True)
            start = 1
            for (side, name), x in zip(readers, ids, strict=True):
                sides[side][name] = place[start : start + x.size].reshape(x.shape).astype(jnp.int32)
                start += x.size
            # NaN for an id outside the table, as in `bert.Table`.
            rows[path] = jnp.take(table, number, axis=0, mode="fill", fill_value=jnp.nan)
            numbers[path] = number
        given = {"context_features": sides["context"], "candidate_features": sides["candidate"]}
        return rows, numbers, batch._replace(**given)

    def update(
        self,
        params: Mapping[str, jax.Array],
        state: Mapping[str, Any],
        numbers: Mapping[str, jax.Array],
        gradients: Mapping[str, jax.Array],
        step: jax.Array,
    ) -> tuple[dict[str, jax.Array], dict[str, Any]]:
        """Tables and state after a step, by path; `gradients` [N, D] are those of the rows of these `numbers`.

        Row-wise Adagrad (Gupta et al. 2014; the usual choice for tables of ids): s_r += mean_d g_rd^2 and
        table_rd -= rate g_rd / sqrt(s_r + eps). Adam as PyTorch's SparseAdam: the moments of a row decay only where it
        is touched. Neither clipped nor decayed.
        """
        tables, kept, rate = {}, {}, self.rate(step)
        if self.name == "adam":
            kept = {moment: dict(state[moment]) for moment in MOMENTS}
        for path, number in numbers.items():
            change = gradients[path]
            if self.name == "rowwise_adagrad":
                square = jnp.mean(change**2, axis=-1)
                kept[path] = state[path].at[number].add(square, mode="drop")
                change = change * jax.lax.rsqrt(state[path][number] + square + EPS)[:, None]
            if self.name == "adam":
                moments = []
                for moment, value in zip(MOMENTS, (change, change**2), strict=True):
                    decay = MOMENTS[moment]
                    found = decay * state[moment][path][number] + (1 - decay) * value
                    kept[moment][path] = state[moment][path].at[number].set(found, mode="drop")
                    moments.append(found / (1 - decay ** (step + 1.0)))
                change = moments[0] / (jnp.sqrt(moments[1]) + ADAM_EPS)
            tables[path] = params[path].at[number].add(-rate * change, mode="drop")
        return tables, kept


@dataclass(frozen=True)
class TableOptimizer:
    """An optimizer of Optax for all parameters but the tables, and `Tables` for these."""

    rest: optax.GradientTransformation
    tables: Tables

    def init(self, params: Mapping[str, jax.Array]) -> dict[str, Any]:
        """The state of both."""
        return {"rest": self.rest.init(self.without(params)), "tables": self.tables.start(params)}

    def without(self, params: Mapping[str, Any]) -> dict[str, Any]:
        """All but the tables."""
        return {path: x for path, x in params.items() if path not in self.tables.readers}


def optimizer_of(
    config: Optimizer, steps: int, paths: list[str], spec: ModelSpec
) -> optax.GradientTransformation | TableOptimizer:
    """The optimizer of the trained parameters `paths`; tables apart where `optimizer.tables` says so.

    Raises InputError as `make_optimizer` does.
    """
    readers = {path: own for path, own in table_readers(spec).items() if path in paths}
    if config.tables == "dense" or not readers:
        return make_optimizer(config, steps, paths)
    peak = config.table_learning_rate or config.learning_rate
    made = schedule(config, steps)
    share = peak / config.learning_rate
    tables = Tables(readers, lambda step: share * made(step), config.tables)
    rest = [path for path in paths if path not in readers]
    return TableOptimizer(make_optimizer(config, steps, rest), tables)


def table_readers(spec: ModelSpec) -> dict[str, tuple[tuple[str, str], ...]]:
    """Every table of ids of a model by path, and side and name of the features that read it."""
    by_name = {feature.name: feature for feature in spec.features}
    found: dict[str, list[tuple[str, str]]] = {}
    for feature in spec.features:
        if feature.kind == "categorical":
            owner = by_name[feature.like] if feature.like else feature
            found.setdefault(table_path(owner), []).append((feature.side, feature.name))
    return {path: tuple(readers) for path, readers in found.items()}

"""Metrics of a model on a split: predict every candidate, then the exact report."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

from srsjax.config import Feature, History, Text, TrainConfig
from srsjax.data.assembly import Layout
from srsjax.data.batch import PackedBatch
from srsjax.data.contexts import join_equal_contexts
from srsjax.data.loader import Batches, eval_batches
from srsjax.data.schema import Sources
from srsjax.data.store import Items, Split
from srsjax.data.tokenizer import TextEncoder
from srsjax.errors import InputError
from srsjax.metrics import report
from srsjax.training.predict import predict
from srsjax.training.sharding import row_divisor, row_share


@dataclass(frozen=True)
class BatchShape:
    """What the assembly of batches needs besides the data: fixed for a run."""

    layout: Layout
    tokens: int
    """Token slots L."""
    candidates: int
    """Candidate slots C."""
    eval_rows: int
    """Rows R of an evaluation batch."""


def evaluation_rows(config: TrainConfig, mesh: jax.sharding.Mesh) -> int:
    """Rows of an evaluation batch: `batch.eval_rows` or one micro-batch, rounded up to what the mesh divides."""
    rows = config.batch.eval_rows or config.batch.rows // config.batch.micro_batches
    return -(-rows // row_divisor(mesh)) * row_divisor(mesh)


def make_layout(config: TrainConfig, text: TextEncoder) -> Layout:
    """How the texts of a run become sequences.

    Raises InputError for an interaction other than `cross` where the schema has no context text: there is nothing to
    share then.
    """
    has_context, interaction = any(map(is_text, config.schema.context)), config.model.interaction
    start = None
    if interaction != "cross":
        if not has_context:
            raise InputError(f"model.interaction: found {interaction!r}, but schema.context has no text; use 'cross'")
        start = config.model.candidate_start
        if start < 0:
            start = most_tokens(config.schema.context) + len(text.template.prefix) + len(text.template.between)
    return Layout(text.template, text.pad_id, has_context, start)


def is_text(feature: Feature) -> bool:
    """Whether a feature becomes tokens."""
    return isinstance(feature, Text | History)


def most_tokens(features: Sequence[Feature]) -> int:
    """Most tokens of one side of a pair by its budgets, separators between fields included."""
    budgets = [feature.max_tokens for feature in features if is_text(feature)]
    return sum(budgets) + max(len(budgets) - 1, 0)


def longest_part(config: TrainConfig, layout: Layout) -> int:
    """Most tokens of a part of a row that sees itself alone in some layer, by the budgets; 0 where there is none."""
    context, candidate = most_tokens(config.schema.context), most_tokens(config.schema.candidate)
    match config.model.interaction:
        case "cross":
            return context + candidate + layout.special_tokens
        case "shared":
            return 0
        case _:
            context += len(layout.template.prefix) + len(layout.between)
            return max(context, candidate + len(layout.template.suffix))


def check_lengths(config: TrainConfig, layout: Layout, longest: int) -> None:
    """Raises InputError where the schema's budgets allow a pair longer than a row, or than the encoder's positions.

    `longest` is the number of positions. Checked by the budgets and not by the data at hand, so that a finished run can
    score whatever comes.
    """
    context, candidate = most_tokens(config.schema.context), most_tokens(config.schema.candidate)
    most = context + candidate + layout.special_tokens
    if most > config.batch.tokens:
        raise InputError(
            f"batch.tokens: found {config.batch.tokens}, but the budgets of the schema allow pairs of {most} tokens "
            f"(special ones included); raise it, or lower max_tokens of Text and History features"
        )
    last = max(most, (layout.candidate_start or 0) + candidate + len(layout.template.suffix))
    if last > longest:
        raise InputError(
            f"schema: the budgets allow pairs of {last} tokens (special ones included), but the encoder has {longest} "
            f"positions; lower max_tokens of Text and History features"
        )


def batch_shape(config: TrainConfig, layout: Layout, candidates: int, mesh: jax.sharding.Mesh) -> BatchShape:
    """The shape of a run's batches; C was chosen when training began."""
    return BatchShape(layout, config.batch.tokens, candidates, evaluation_rows(config, mesh))


def scoring_batches(split: Split, items: Items, shape: BatchShape, share: tuple[int, int] = (0, 1)) -> Batches:
    """Every candidate of a split once; `share` is this host's, from `row_share`."""
    return eval_batches(
        join_equal_contexts(split) if shape.layout.shares_context else split,
        items,
        shape.layout,
        rows=shape.eval_rows,
        tokens=shape.tokens,
        candidates=shape.candidates,
        process_index=share[0],
        process_count=share[1],
    )


def predict_split(
    step: Callable,
    params: dict,
    split: Split,
    items: Items,
    shape: BatchShape,
    mesh: jax.sharding.Mesh,
    progress: Callable[[int], None] = lambda candidates: None,
    complete: Callable[[PackedBatch, np.ndarray], Any] = lambda batch, numbers: batch,
) -> np.ndarray:
    """Logits [M, T] float32 of every candidate of a split.

    Args:
      step: (params, batch) -> logits, from `jit_predict_step`.
      complete: makes what `step` takes of a batch on the host and the candidate numbers [R, C] in its slots.
    """
    batches = scoring_batches(split, items, shape, row_share(mesh))
    small = len(batches) == 1 and jax.process_count() == 1
    given = (_without_empty_rows(*batch, row_divisor(mesh)) for batch in batches) if small else batches
    completed = ((complete(batch, numbers), numbers) for batch, numbers in given)
    return predict(step, params, completed, mesh, split.labels.shape, progress)


def _without_empty_rows(batch: PackedBatch, where: np.ndarray, divisor: int) -> tuple[PackedBatch, np.ndarray]:
    """Cuts empty rows off the end, down to a power of two times `divisor`: a small request is fast, shapes are few."""
    used = int(np.flatnonzero((where >= 0).any(axis=1)).max(initial=0)) + 1
    rows = divisor
    while rows < used:
        rows *= 2
    rows = min(rows, len(where))
    return jax.tree.map(lambda array: array[:rows], batch), where[:rows]


def split_metrics(config: TrainConfig, split: Split, logits: np.ndarray) -> dict[str, float]:
    """The report of every task: the first task's metrics by name, those of further tasks as `task/metric`."""
    settings = {"threshold": config.evaluate.threshold, "ndcg_at": config.evaluate.ndcg_at}
    metrics = {}
    for t, task in enumerate(config.schema.tasks):
        values = report.evaluate_split(logits[:, t], split, t, **settings)
        metrics |= values if t == 0 else {f"{task.name}/{name}": value for name, value in values.items()}
    return metrics


def split_references(config: TrainConfig, train: Split, split: Split, items: Items) -> dict[str, dict[str, float]]:
    """What the model is compared with on a split: item popularity, and the best attainable where it is known.

    Popularity needs items that recur, so it is given only where the candidates are the rows of a catalogue.
    """
    settings = {"threshold": config.evaluate.threshold, "ndcg_at": config.evaluate.ndcg_at}
    found = report.references(train, split, len(items.tokens), **settings)
    recurring = Sources(config.schema, config.data).home is not None
    return {name: values for name, values in found.items() if name != "popularity" or recurring}

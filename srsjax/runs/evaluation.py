"""Metrics of a model on a split: predict every candidate, then the exact report."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import numpy as np

from srsjax.config import TrainConfig
from srsjax.data.batches.batch import PackedBatch
from srsjax.data.batches.contexts import join_equal_contexts
from srsjax.data.batches.layout import BatchShape
from srsjax.data.batches.loader import Batches, eval_batches
from srsjax.data.kinds import shown_by
from srsjax.data.preparing.shared import shared_store
from srsjax.data.preparing.sources import Sources
from srsjax.data.store.arrays import Items, Split, Store
from srsjax.errors import InputError
from srsjax.metrics import baselines, classes, report
from srsjax.metrics.table import Candidates
from srsjax.model.spec import Outputs
from srsjax.objectives import objective, objectives
from srsjax.runs.predict import predict
from srsjax.runs.run_folder import RunFolder
from srsjax.runs.shapes import Shape, cut
from srsjax.runs.sharding import row_share


def run_store(folder: RunFolder, config: TrainConfig) -> Store:
    """The prepared data of a run, prepared again if need be. Raises InputError where they are no longer those."""
    store = shared_store(config)
    if store.manifest["fingerprint"] != folder.read(folder.manifest_file)["fingerprint"]:
        raise InputError(f"{folder.path}: the data changed since the run; evaluate files with --input")
    return store


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
    shapes: Sequence[Shape] = (),
) -> np.ndarray:
    """Logits [M, K] float32 of every candidate of a split.

    Args:
      step: (params, batch) -> logits, from `jit_predict_step`.
      complete: makes what `step` takes of a batch on the host and the candidate numbers [R, C] in its slots.
      shapes: what batches may be cut to (`request_shapes`); by default all have the shape of the run.
    """
    batches = scoring_batches(split, items, shape, row_share(mesh))
    given = (cut(*batch, shapes) for batch in batches) if shapes else batches
    completed = ((complete(batch, numbers), numbers) for batch, numbers in given)
    return predict(step, params, completed, mesh, (len(split.item), shape.outputs), progress)


def run_split(folder: RunFolder, config: TrainConfig, name: str) -> tuple[Store, Split]:
    """A split of a run's data, prepared again if need be, and its store.

    Raises InputError where the data are no longer those of the run, whose splits would then be others, and for a split
    without an impression.
    """
    store = run_store(folder, config)
    split = store.split(name)
    if not len(split):
        raise InputError(f"{store.folder}: the {name} split is empty")
    return store, split


def split_candidates(
    config: TrainConfig, outputs: Sequence[Outputs], split: Split, logits: np.ndarray
) -> Iterator[tuple[str, Sequence[str], Candidates]]:
    """Of every task: what its metrics are named with (`task/`, empty for the first), the families that it has, and the
    candidates with a known label."""
    threshold, ndcg_at = config.evaluate.threshold, config.evaluate.ndcg_at
    for t, (made, own) in enumerate(objectives(config.schema.tasks, outputs)):
        of = report.of_split(made.measured(logits[:, own]), split, t, threshold=threshold, ndcg_at=ndcg_at)
        yield f"{made.task.name}/" if t else "", made.families, of


def split_metrics(
    config: TrainConfig, outputs: Sequence[Outputs], split: Split, logits: np.ndarray
) -> dict[str, float]:
    """The report of every task: the first task's metrics by name, those of further tasks as `task/metric`."""
    return {
        prefix + name: value
        for prefix, families, of in split_candidates(config, outputs, split, logits)
        for name, value in report.measure(of, families).items()
    }


def class_reports(
    config: TrainConfig, outputs: Sequence[Outputs], split: Split, logits: np.ndarray
) -> dict[str, dict[str, classes.OfClass]]:
    """Precision, recall, F1 and support of every class, by multiclass task; {} without one."""
    found = {}
    for t, (made, own) in enumerate(objectives(config.schema.tasks, outputs)):
        known = split.weights[:, t] > 0
        if "class" in made.families and known.any():
            arrays = (logits[known, own], split.labels[known, t], split.weights[known, t])
            found[made.task.name] = classes.class_report(classes.confusion_matrix(*arrays), outputs[t].classes)
    return found


def split_references(
    config: TrainConfig, train: Split, split: Split, items: Items, say: Callable[[str], None] = lambda line: None
) -> dict[str, np.ndarray]:
    """What the model is compared with on a split, logits [M] by name: item popularity, with `data.user` item and user
    rates, and the best attainable where it is known.

    Rates need items (users) that recur: those of training must have half of the split's weight (`baselines.SEEN`); for
    the rows of a catalogue popularity is always given. `say` is called with what is left out, and why.
    """
    families = objective(config.schema.tasks[0]).families
    if not {"click", "ranking", "value"} & {*families}:
        return {}
    numbered, names = None, ["popularity", "oracle"]
    if Sources(config.schema, config.data).home is None:  # the same text has several rows of `items`
        numbered = baselines.number_items(items, train, split, shown_by(config.schema))
        if (share := baselines.share_seen(*numbered[:2], "item")) < baselines.SEEN:
            names.remove("popularity")
            say(f"item popularity is left out: {share:.0%} of the weight is on items that training has")
    if config.data.user and "popularity" in names:
        if (share := baselines.share_seen(train, split, "user")) >= baselines.SEEN:
            names.append("user_item")
        else:
            say(f"item and user rates are left out: {share:.0%} of the weight is on users that training has")
    return report.reference_logits(
        train,
        split,
        len(items.tokens),
        names=names,
        numbered=numbered,
        families=families,
    )

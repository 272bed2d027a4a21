"""Batches of padding in every shape that requests are computed in, so that their programs can be compiled ahead."""

from __future__ import annotations

import numpy as np

from srsjax.config import Categorical, Feature, History, Schema, Text, Vector
from srsjax.data.batches.batch import PackedBatch
from srsjax.data.batches.layout import BatchShape


def row_counts(eval_rows: int, divisor: int) -> list[int]:
    """Rows of a request's batch: powers of two times `divisor`, and at most those of an evaluation batch."""
    counts, rows = [], divisor
    while rows < eval_rows:
        counts.append(rows)
        rows *= 2
    return [*counts, eval_rows]


def padding(schema: Schema, shape: BatchShape, rows: int) -> PackedBatch:
    """A batch of empty rows with the shapes and dtypes of the run's own."""
    text, slot = (rows, shape.tokens), (rows, shape.candidates)
    tokens, zero = np.full(text, shape.layout.pad_id, np.int32), np.zeros(text, np.int32)
    empty, numbers = np.zeros(slot, np.int32), np.zeros((*slot, len(schema.tasks)), np.float32)
    return PackedBatch(
        tokens=tokens,
        positions=zero,
        token_types=zero,
        segment=zero,
        candidate=zero,
        context_readout=empty,
        readout=empty,
        context_of=empty,
        group=np.full(slot, -1, np.int32),
        labels=numbers,
        weights=numbers,
        context_features=_features(schema.context, slot),
        candidate_features=_features(schema.candidate, slot),
    )


def _features(features: tuple[Feature, ...], slot: tuple[int, int]) -> dict[str, np.ndarray]:
    return {
        feature.name: np.zeros(
            (*slot, feature.size) if isinstance(feature, Vector) else slot,
            np.int32 if isinstance(feature, Categorical) else np.float32,
        )
        for feature in features
        if not isinstance(feature, Text | History)
    }

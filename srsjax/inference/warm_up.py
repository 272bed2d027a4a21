"""Batches of padding in every shape that requests are computed in, so that their programs can be compiled ahead."""

from __future__ import annotations

import numpy as np

from srsjax.config import Feature, Schema
from srsjax.data.batches.batch import PackedBatch
from srsjax.data.batches.layout import BatchShape
from srsjax.data.kind import ArrayKind
from srsjax.data.kinds import of_kind


def padding(schema: Schema, shape: BatchShape, rows: int, tokens: int = 0) -> PackedBatch:
    """A batch of empty rows with the shapes and dtypes of the run's own; `tokens` is L where it is not the run's."""
    text, slot = (rows, tokens or shape.tokens), (rows, shape.candidates)
    ids, zero = np.full(text, shape.layout.pad_id, np.int32), np.zeros(text, np.int32)
    empty, numbers = np.zeros(slot, np.int32), np.zeros((*slot, len(schema.tasks)), np.float32)
    return PackedBatch(
        tokens=ids,
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
    return {kind.feature.name: np.zeros((*slot, *kind.row_shape), kind.dtype) for kind in of_kind(features, ArrayKind)}

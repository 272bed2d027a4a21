"""Contexts alone and candidates alone as arrays, for what computes one side of a pair without the other."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np
import pyarrow as pa

from srsjax.data.preparing.encode import Encoded, Encoder
from srsjax.data.preparing.values import Value
from srsjax.data.store.arrays import Items, Split


def encode_contexts(encoder: Encoder, contexts: Sequence[Value]) -> Encoded:
    """One impression for each context, with one candidate (item 0, of which there is none here) and no features of it.

    Values and errors are those of `Encoder.encode_values`.
    """
    unknown, cut, number = Counter[str](), Counter[str](), np.arange(len(contexts))
    columns, joined = encoder._value_columns("context", contexts, unknown)
    joined = encoder.joined | joined
    rows = pa.RecordBatch.from_pydict({"impression": pa.array(number)} | columns)
    features, tasks = encoder.sources.schema.context, len(encoder.sources.schema.tasks)
    labels = np.zeros((len(number), tasks), np.float32)
    split = Split(
        context=encoder._join(encoder._texts(features, rows, joined, cut), number),
        candidates=np.arange(len(number) + 1),
        item=np.zeros(len(number), np.int64),
        labels=labels,
        weights=labels,
        example=number,
        user=number,
        context_features=encoder._arrays(features, rows, joined),
    )
    return Encoded(split, Items(split.context.take(number[:0])), None, cut, unknown=unknown)


def encode_candidates(encoder: Encoder, candidates: Sequence[Value]) -> Items:
    """Texts and all features of each candidate, in the order given; values and errors as in `Encoder.encode_values`."""
    unknown, cut, number = Counter[str](), Counter[str](), np.arange(len(candidates))
    columns, joined = encoder._value_columns("candidate", candidates, unknown)
    joined = encoder.joined | joined
    rows = pa.RecordBatch.from_pydict({"impression": pa.array(number)} | columns)
    features = encoder.sources.schema.candidate
    texts = encoder._texts(features, rows, joined, cut)
    return Items(encoder._join(texts, number), encoder._arrays(features, rows, joined))

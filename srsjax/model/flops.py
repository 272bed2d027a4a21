"""The arithmetic that a batch needs: matrix products on real tokens only, so that padding counts as waste."""

from __future__ import annotations

import functools
import math

import jax
import numpy as np

from srsjax.data.batches.batch import PackedBatch
from srsjax.model import ctr
from srsjax.model.attention import Visibility
from srsjax.model.spec import ModelSpec

TRAINING = 3
"""A training step needs this many times the forward pass: each product has a gradient for both of its operands."""


def forward_flops(spec: ModelSpec, batch: PackedBatch) -> float:
    """Floating-point operations of one forward pass over a packed batch [R, ...] or [A, R / A, ...] on the host.

    With D the width, A that of all heads, F that of the feed-forward network, n real tokens, s pairs of a query and a
    key that it sees, and in the last layer r tokens that are read and s_r pairs of their queries,

        layer:       n (8 D A + 4 D F) + 4 A s
        last layer:  4 n D A + r (4 D A + 4 D F) + 4 A s_r

    where a product of m x k by k x n counts 2 m k n. Embeddings, normalisation, softmax, pooler and head are left out:
    together they are under 1 % of an encoder of BERT's size. A model without text has no encoder: for each of its
    candidates every weight of its matrices counts 2, for each value of a list those that read it. Only ids and lengths
    are counted, on the host: 0.1 ms for 4,000 token slots, 1 ms for 65,000.
    """
    if not spec.reads_text:
        return float((batch.group >= 0).sum()) * candidate_flops(spec)
    if batch.segment.ndim == 3:
        batch = jax.tree.map(lambda array: array.reshape(-1, *array.shape[2:]), batch)
    bert = spec.encoder
    layers, width, heads, wide = bert.num_layers, bert.hidden_size, bert.attention_width, bert.intermediate_size
    real, read = batch.segment > 0, read_tokens(spec, batch)
    total, seen, before = 0.0, np.zeros(real.shape, np.int64), None
    for layer, visibility in enumerate(
        spec.interaction.layer_visibility(spec.split_layers, layers, batch.segment, batch.candidate)
    ):
        if visibility is not before:
            seen, before = keys_seen(visibility), visibility
        if layer < layers - 1:
            total += real.sum() * (8 * width * heads + 4 * width * wide) + 4 * heads * seen[real].sum()
        else:
            total += 4 * real.sum() * width * heads + read.sum() * (4 * width * heads + 4 * width * wide)
            total += 4 * heads * seen[read].sum()
    return float(total)


@functools.cache
def candidate_flops(spec: ModelSpec) -> float:
    """Floating-point operations of the forward pass of one candidate of a model without text."""
    shapes = jax.eval_shape(functools.partial(ctr.init, spec), jax.random.key(0))
    values = {f"input_{feature.name}": feature.values for feature in spec.features}
    total = 0.0
    for path, shape in shapes.items():
        parts = path.split("/")
        if parts[-1] == "kernel":
            listed = "attention" in parts or "sequence" in parts
            total += 2 * math.prod(shape.shape) * (values[parts[2]] if listed else 1)
    return total


def keys_seen(visibility: Visibility) -> np.ndarray:
    """[R, Q] int64, the keys that each query sees: the sums of `visibility.mask()`, without making it. On the host."""
    seen = _equal_keys(visibility.query, visibility.key)
    if visibility.query_context is not None and visibility.key_context is not None:  # the two never overlap
        seen += _equal_keys(visibility.query_context, visibility.key_context)
    return seen


def _equal_keys(query: np.ndarray, key: np.ndarray) -> np.ndarray:
    """[R, Q], [R, L] int -> [R, Q] int64: in each row the keys with the id of the query, none for a query of id 0."""
    least = min(query.min(), key.min())
    ids = int(max(query.max(), key.max())) - int(least) + 1
    row = np.arange(len(query))[:, None] * ids - int(least)
    counts = np.bincount((key + row).ravel(), minlength=len(query) * ids)
    return np.where(query != 0, counts[query + row], 0)


def read_tokens(spec: ModelSpec, batch: PackedBatch) -> np.ndarray:
    """[R, L] bool, the tokens whose last hidden state the head reads."""
    if spec.readout == "mean":
        return batch.segment > 0
    row, slot = np.nonzero(batch.group >= 0)
    read = np.zeros(batch.segment.shape, bool)
    for side in spec.interaction.read(batch):
        read[row, side.slot[row, slot]] = True
    return read

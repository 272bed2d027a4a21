"""The packed batch: the contract between data and model.

R rows, L token slots, I context slots and C candidate slots per row, T tasks. All shapes are static for a run.
In a training step every array carries a leading axis A of micro-batches: [A, R / A, ...].
"""

from __future__ import annotations

from typing import Any, NamedTuple

Array = Any
"""A NumPy array on the host or a JAX array on devices; code for both takes its functions from `__array_namespace__`."""


class PackedBatch(NamedTuple):
    """Numpy arrays on the host, jax arrays on devices; a pytree either way."""

    tokens: Array
    """[R, L] int32, token ids; the pad id in empty slots."""
    positions: Array
    """[R, L] int32, position ids from 0 (an encoder adds its own offset). In `cross` the candidate's continue the
    context's."""
    token_types: Array
    """[R, L] int32, token type ids as the tokenizer's pair template gives them (BERT: 0 context, 1 candidate; a pair
    without context fields is a single sequence, all 0; RoBERTa: all 0)."""
    segment: Array
    """[R, L] int32, context slot + 1 of each token; 0 = pad. In `cross` each pair is a segment with its own copy of the
    context."""
    candidate: Array
    """[R, L] int32, candidate slot + 1; 0 = context token or pad."""
    context_readout: Array
    """[R, I] int32, slot of each context's first token; 0 in empty slots. In `cross` I = C."""
    readout: Array
    """[R, C] int32, slot of each candidate's first token; 0 in empty slots."""
    context_of: Array
    """[R, C] int32, context slot of each candidate; 0 in empty slots."""
    group: Array
    """[R, C] int32, an id shared by the candidates of one impression within the batch, whatever their row; -1 in
    empty slots."""
    labels: Array
    """[R, C, T] float32."""
    weights: Array
    """[R, C, T] float32; 0 = empty slot or unknown label."""
    context_features: dict[str, Array]
    """[R, I, ...] arrays by feature name."""
    candidate_features: dict[str, Array]
    """[R, C, ...] arrays by feature name."""

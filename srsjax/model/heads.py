"""From hidden states to logits: one vector a candidate, then a dense layer for all tasks."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx

from srsjax.model.dense import Dense
from srsjax.model.dropout import dropout


def segment_mean(hidden: jax.Array, segment: jax.Array, wanted: jax.Array) -> jax.Array:
    """Mean over the tokens of each wanted segment, in float32.

    Args:
      hidden: [R, L, D].
      segment: [R, L] int32.
      wanted: [R, C] int32.

    Returns:
      [R, C, D] in the dtype of `hidden`; 0 for a segment without tokens.
    """
    member = (wanted[:, :, None] == segment[:, None, :]).astype(jnp.float32)  # [R, C, L]
    total = jnp.einsum("rcl,rld->rcd", member, hidden.astype(jnp.float32))
    return (total / jnp.maximum(member.sum(-1, keepdims=True), 1)).astype(hidden.dtype)


class Head(nnx.Module):
    """Dropout and one dense layer: kernel [D, T] normal(0.02), bias 0 (training begins it at `training.priors`)."""

    def __init__(self, size_in: int, num_tasks: int, dropout_rate: float, rngs: nnx.Rngs):
        self.dense = Dense(size_in, num_tasks, 0.02, rngs)
        self.dropout_rate = dropout_rate

    def __call__(self, x: jax.Array, dropout_key: jax.Array | None) -> jax.Array:
        """[R, C, D] -> logits [R, C, T] float32, computed in float32."""
        return self.dense(dropout(x.astype(jnp.float32), self.dropout_rate, dropout_key))

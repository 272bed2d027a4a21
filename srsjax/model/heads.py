"""From hidden states to logits: one vector a candidate, then a dense layer for the outputs of all tasks."""

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
    """Dropout and one dense layer: kernel [D, K] normal(0.02), bias 0 (training starts it at `objectives.priors`)."""

    def __init__(self, size_in: int, num_outputs: int, dropout_rate: float, rngs: nnx.Rngs):
        self.dense = Dense(size_in, num_outputs, 0.02, rngs)
        self.dropout_rate = dropout_rate

    def __call__(self, x: jax.Array, dropout_key: jax.Array | None) -> jax.Array:
        """[R, C, D] -> logits [R, C, K] float32, computed in float32."""
        return self.dense(dropout(x.astype(jnp.float32), self.dropout_rate, dropout_key))


class ProductHead(nnx.Module):
    """Towers: a weighted inner product of two unit vectors, scale [D, K] and bias [K].

    logit_k = sum_d scale_dk u_d v_d + bias_k with u, v of length 1. Scales start at `SCALE`, so that the logit is at
    first a scaled cosine (Reimers and Gurevych 2019 fine-tune sentence encoders on it); with scale_k u as the query
    the best items are an inner product search over v.
    """

    SCALE = 10.0

    def __init__(self, size_in: int, num_outputs: int, dropout_rate: float, rngs: nnx.Rngs):
        del rngs
        self.dense = nnx.Dict(
            kernel=nnx.Param(jnp.full((size_in, num_outputs), self.SCALE)), bias=nnx.Param(jnp.zeros(num_outputs))
        )
        self.dropout_rate = dropout_rate

    def __call__(self, context: jax.Array, candidate: jax.Array, dropout_key: jax.Array | None) -> jax.Array:
        """[R, C, D] twice -> logits [R, C, K] float32, computed in float32."""
        context, candidate = (x.astype(jnp.float32) for x in (context, candidate))
        context, candidate = (
            x * jax.lax.rsqrt(jnp.square(x).sum(-1, keepdims=True) + 1e-12) for x in (context, candidate)
        )
        product = dropout(context * candidate, self.dropout_rate, dropout_key)
        return jnp.einsum("rcd,dt->rct", product, self.dense["kernel"][...]) + self.dense["bias"][...]

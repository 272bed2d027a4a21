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


class MixtureHead(nnx.Module):
    """Multi-gate mixture of experts (MMoE; Ma et al. 2018, "Modeling Task Relationships in Multi-task Learning with
    Multi-gate Mixture-of-Experts"): for each task t

        z_t = sum_e softmax(G_t x)_e relu(W_e x + b_e),  logits_t = kernel_t z_t + bias_t
    """

    def __init__(self, size_in: int, counts: tuple[int, ...], experts: int, dropout_rate: float, rngs: nnx.Rngs):
        """`counts`: outputs of each task."""
        self.experts, self.counts, self.dropout_rate = experts, counts, dropout_rate
        self.up = Dense(size_in, experts * size_in, size_in**-0.5, rngs)
        self.gate = Dense(size_in, experts * len(counts), 0.02, rngs)
        self.dense = Dense(size_in, sum(counts), 0.02, rngs)

    def __call__(self, x: jax.Array, dropout_key: jax.Array | None) -> jax.Array:
        """[R, C, D] -> logits [R, C, K] float32, computed in float32."""
        x = dropout(x.astype(jnp.float32), self.dropout_rate, dropout_key)
        experts = jax.nn.relu(self.up(x)).reshape(*x.shape[:2], self.experts, x.shape[2])
        gates = jax.nn.softmax(self.gate(x).reshape(*x.shape[:2], len(self.counts), self.experts), axis=-1)
        mixed = jnp.einsum("rcte,rced->rctd", gates, experts)
        task = jnp.repeat(jnp.arange(len(self.counts)), jnp.array(self.counts), total_repeat_length=sum(self.counts))
        kernel, bias = self.dense.kernel[...], self.dense.bias[...]
        return jnp.einsum("rckd,dk->rck", mixed[:, :, task], kernel) + bias


def both(first: jax.Array, second: jax.Array) -> jax.Array:
    """The logit of sigmoid(first) * sigmoid(second): -log(exp(-a) + exp(-b) + exp(-a - b))."""
    return -jax.nn.logsumexp(jnp.stack([-first, -second, -first - second]), axis=0)


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

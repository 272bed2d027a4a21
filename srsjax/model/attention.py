"""Which token sees which, and the attention that obeys it: the one function a faster backend replaces."""

from __future__ import annotations

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from srsjax.model.dense import contract
from srsjax.model.dropout import dropout

# Added to the score of an invisible key: exp(-1e9 - max) is exactly 0, and a token that sees nothing (padding)
# averages over everything instead of dividing by zero.
INVISIBLE = -1e9


class Visibility(NamedTuple):
    """Who sees whom, as ids of tokens: small, exact, and what block-sparse and flash kernels take."""

    query: jax.Array
    """[R, Q] int32, segment of each query token; 0 = pad."""
    key: jax.Array
    """[R, L] int32, segment of each key token; 0 = pad."""

    @classmethod
    def cross(cls, segment: jax.Array) -> Visibility:
        """`cross`: every token of a pair sees every token of the same pair, from `segment` [R, L]."""
        return cls(segment, segment)

    def at(self, slots: jax.Array) -> Visibility:
        """The same for the queries at `slots` [R, Q] int32 only."""
        return Visibility(jnp.take_along_axis(self.query, slots, axis=1), self.key)

    def mask(self) -> jax.Array:
        """[R, Q, L] bool, True where the query sees the key."""
        query, key = self.query[:, :, None], self.key[:, None, :]
        return (query == key) & (query > 0)


def attend(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    visibility: Visibility,
    dropout_rate: float = 0.0,
    dropout_key: jax.Array | None = None,
) -> jax.Array:
    """Multi-head scaled dot-product attention (Vaswani et al. 2017, equation 1) over visible keys.

    Args:
      query: [R, Q, H, Dh] float32 or bfloat16.
      key: [R, L, H, Dh], same dtype.
      value: [R, L, H, Dh], same dtype.
      visibility: of Q queries and L keys.
      dropout_rate: of the attention probabilities.
      dropout_key: None for no dropout.

    Returns:
      [R, Q, H, Dh] in the dtype of `query`. Scores, softmax and probabilities are float32 up to the product with
      `value`. A query that sees nothing gets finite numbers of no meaning.
    """
    # Heads before tokens: with the batch axes first XLA's CPU backend runs every one of these products, and the
    # bfloat16 ones fast; it fails on the gradient of some other orders.
    query, key, value = (x.swapaxes(1, 2) for x in (query * query.shape[-1] ** -0.5, key, value))  # [R, H, L, Dh]
    bias = jnp.where(visibility.mask(), 0.0, INVISIBLE)[:, None]  # [R, 1, Q, L]
    scores = contract("rhqd,rhld->rhql", query, key) + bias
    probabilities = _dropped_softmax(dropout_rate, query.dtype, scores, dropout_key)
    return contract("rhql,rhld->rhqd", probabilities, value).astype(query.dtype).swapaxes(1, 2)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _dropped_softmax(rate: float, dtype: jnp.dtype, scores: jax.Array, key: jax.Array | None) -> jax.Array:
    """Dropout of the softmax of float32 `scores` [R, H, Q, L] over the last axis, in `dtype`.

    Its gradient needs no dropout mask. With p the softmax, d = m p what is left of it (m: 0 or the scale) and g the
    cotangent of d, the scores' is p (m g - sum(p m g)) = d g - p sum(d g).
    """
    return dropout(jax.nn.softmax(scores), rate, key).astype(dtype)


def _dropped_softmax_forward(rate, dtype, scores, key):
    probabilities = jax.nn.softmax(scores)
    left = dropout(probabilities, rate, key).astype(dtype)
    return left, (probabilities.astype(dtype), left)


def _dropped_softmax_backward(rate, dtype, saved, gradient):
    probabilities, left, gradient = (x.astype(jnp.float32) for x in (*saved, gradient))
    product = left * gradient
    return product - probabilities * product.sum(-1, keepdims=True), None


_dropped_softmax.defvjp(_dropped_softmax_forward, _dropped_softmax_backward)

"""Which token sees which, and the attention that obeys it, in plain XLA: the one function a faster backend replaces."""

from __future__ import annotations

import abc
import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P

from srsjax.data.batches.batch import Array
from srsjax.model.dense import contract
from srsjax.model.dropout import dropout

# Added to the score of an invisible key: exp(-1e9 - max) is exactly 0, and a token that sees nothing (padding)
# averages over everything instead of dividing by zero.
INVISIBLE = -1e9

Attend = Callable[..., jax.Array]
"""A backend: arguments and result of `attend`, with a query at every token of a row."""


class Visibility(NamedTuple):
    """Who sees whom, as ids of tokens: small, exact, and what block-sparse and flash kernels take.

    A query sees the keys of its own part, and those of one context besides. The two never overlap, so that a kernel
    that knows only equal ids can compute them one after the other. Numpy arrays stay on the host: arithmetic is counted
    there while the devices work.
    """

    query: Array
    """[R, Q] int32, part that each query token belongs to; 0 = pad."""
    key: Array
    """[R, L] int32, part that each key token belongs to; 0 = pad."""
    query_context: Array | None = None
    """[R, Q] int32, context that each query token sees besides its part; 0 = none. None: no query sees one."""
    key_context: Array | None = None
    """[R, L] int32, context that each key token belongs to; 0 = none."""

    @classmethod
    def cross(cls, segment: jax.Array, candidate: jax.Array) -> Visibility:
        """Every token of a pair sees every token of the same pair. `segment`, `candidate` [R, L] int32: see
        `PackedBatch`."""
        del candidate
        return cls(segment, segment)

    @classmethod
    def towers(cls, segment: jax.Array, candidate: jax.Array) -> Visibility:
        """A context and each of its candidates see themselves alone."""
        xp = segment.__array_namespace__()
        part = xp.where(candidate > 0, candidate, -segment)
        return cls(part, part)

    @classmethod
    def shared(cls, segment: jax.Array, candidate: jax.Array) -> Visibility:
        """A context sees itself, each of its candidates itself and the context."""
        xp = segment.__array_namespace__()
        of_candidate, of_context = xp.where(candidate > 0, segment, 0), xp.where(candidate > 0, 0, segment)
        return cls.towers(segment, candidate)._replace(query_context=of_candidate, key_context=of_context)

    def at(self, slots: jax.Array) -> Visibility:
        """The same for the queries at `slots` [R, Q] int32 only."""
        context = self.query_context
        if context is not None:
            context = jnp.take_along_axis(context, slots, axis=1)
        return self._replace(query=jnp.take_along_axis(self.query, slots, axis=1), query_context=context)

    def mask(self) -> jax.Array:
        """[R, Q, L] bool, True where the query sees the key."""
        seen = _equal(self.query, self.key)
        if self.query_context is None or self.key_context is None:
            return seen
        return seen | _equal(self.query_context, self.key_context)


def _equal(query: jax.Array, key: jax.Array) -> jax.Array:
    """[R, Q], [R, L] -> [R, Q, L] bool: equal ids other than 0."""
    return (query[:, :, None] == key[:, None, :]) & (query[:, :, None] != 0)


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


def reference(query: jax.Array, key: jax.Array, value: jax.Array, visibility: Visibility) -> jax.Array:
    """What every backend computes, written to be read and in float32: `attend` without dropout."""
    query, key, value = (x.astype(jnp.float32) for x in (query, key, value))
    exact = jax.lax.Precision.HIGHEST
    scores = jnp.einsum("rqhd,rlhd->rhql", query, key, precision=exact) / query.shape[-1] ** 0.5
    probabilities = jax.nn.softmax(jnp.where(visibility.mask()[:, None], scores, INVISIBLE))
    return jnp.einsum("rhql,rlhd->rqhd", probabilities, value, precision=exact)


class Fused(abc.ABC):
    """A backend whose kernel computes whole rows: what all of them share. Called as `attend` is."""

    name = ""

    def __call__(self, query, key, value, visibility, dropout_rate=0.0, dropout_key=None) -> jax.Array:
        """Raises NotImplementedError for attention dropout, and for what the kernel does not do."""
        if dropout_key is not None and dropout_rate > 0:
            raise NotImplementedError(f"{self.name} has no attention dropout")
        return self.kernel(query, key, value, visibility)

    @abc.abstractmethod
    def kernel(self, query: jax.Array, key: jax.Array, value: jax.Array, visibility: Visibility) -> jax.Array:
        """[R, L, H, Dh] three times -> [R, L, H, Dh], without dropout."""


def on_mesh(kernel: Attend, mesh: jax.sharding.Mesh) -> Attend:
    """`kernel(query, key, value, visibility)`, run by every device on its own rows and heads.

    The compiler divides plain XLA by itself; a kernel it cannot look into must be told. Rows lie over `data` and
    `fsdp`, heads over `tensor`, as the shardings of batch and parameters leave them; what these do not divide is
    computed by each of their devices.
    """

    def run(query: jax.Array, key: jax.Array, value: jax.Array, visibility: Visibility) -> jax.Array:
        rows = None if query.shape[0] % (mesh.shape["data"] * mesh.shape["fsdp"]) else ("data", "fsdp")
        heads = None if query.shape[2] % mesh.shape["tensor"] else "tensor"
        tokens = P(rows, None, heads, None)
        inputs = (tokens, tokens, tokens, P(rows))
        # A Pallas call says nothing about which axes its results vary over.
        divided = jax.shard_map(kernel, mesh=mesh, in_specs=inputs, out_specs=tokens, check_vma=False)
        return divided(query, key, value, visibility)

    return run

"""From hidden states to logits: one vector a candidate, then a dense layer for the outputs of all tasks."""

from __future__ import annotations

import functools
import itertools
from typing import NamedTuple

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


class Experts(NamedTuple):
    """What the fields `model.experts`, `task_experts` and `expert_levels` say."""

    shared: int = 0
    """Experts of all tasks; 0 is one vector for all of them."""
    own: int = 0
    """Experts of each task besides."""
    levels: int = 1
    """Levels of them."""


class MixtureHead(nnx.Module):
    """Each task reads a mixture of experts of its own: MMoE (Ma et al. 2018, "Modeling Task Relationships in Multi-task
    Learning with Multi-gate Mixture-of-Experts"), and with experts of each task PLE (Tang et al. 2020, "Progressive
    Layered Extraction"). From the vector z of the last `Extraction` of task t its logits are kernel_t z + bias_t.
    """

    def __init__(self, size_in: int, counts: tuple[int, ...], experts: Experts, dropout_rate: float, rngs: nnx.Rngs):
        """`counts`: outputs of each task."""
        self.counts, self.dropout_rate = counts, dropout_rate
        last = experts.levels - 1
        self.levels = nnx.List(
            [Extraction(size_in, len(counts), experts, level < last, rngs) for level in range(experts.levels)]
        )
        self.dense = Dense(size_in, sum(counts), 0.02, rngs)

    def __call__(self, x: jax.Array, dropout_key: jax.Array | None) -> jax.Array:
        """[R, C, D] -> logits [R, C, K] float32, computed in float32."""
        shared = x = dropout(x.astype(jnp.float32), self.dropout_rate, dropout_key)
        tasks = [x] * len(self.counts)
        for level in self.levels:
            tasks, shared = level(tasks, shared)
        kernels = jnp.split(self.dense.kernel[...], list(itertools.accumulate(self.counts[:-1])), axis=1)
        logits = [z @ kernel for z, kernel in zip(tasks, kernels, strict=True)]
        return jnp.concatenate(logits, axis=-1) + self.dense.bias[...]


class Extraction(nnx.Module):
    """One level of experts. With x_t what task t reads, and x what all share, of the level below:

    shared experts relu(W_e x + b_e),  own experts of t relu(W_te x_t + b_te)
    z_t = sum over both of softmax(G_t x_t)_e expert_e,  z = sum over all experts of softmax(G x)_e expert_e
    """

    def __init__(self, width: int, tasks: int, experts: Experts, passes_on: bool, rngs: nnx.Rngs):
        """`passes_on`: whether a level above reads what all share."""

        def dense(count: int) -> Dense:
            return Dense(width, count * width, width**-0.5, rngs)

        self.shared = dense(experts.shared)
        self.own = nnx.List([dense(experts.own) for _ in range(tasks)] if experts.own else [])
        each = experts.own + experts.shared
        self.gates = nnx.List([Dense(width, each, 0.02, rngs) for _ in range(tasks)])
        if passes_on:
            self.gate = Dense(width, tasks * experts.own + experts.shared, 0.02, rngs)

    def __call__(self, tasks: list[jax.Array], shared: jax.Array) -> tuple[list[jax.Array], jax.Array]:
        """[R, C, D] for each task and one for all -> the same, float32."""

        def outputs(layer: Dense, x: jax.Array) -> jax.Array:
            return jax.nn.relu(layer(x)).reshape(*x.shape[:2], -1, x.shape[2])

        def mix(gate: Dense, x: jax.Array, experts: list[jax.Array]) -> jax.Array:
            return jnp.einsum("rce,rced->rcd", jax.nn.softmax(gate(x), axis=-1), jnp.concatenate(experts, axis=2))

        of_all = outputs(self.shared, shared)
        own = [[outputs(layer, x)] for layer, x in zip(self.own, tasks, strict=True)] if len(self.own) else []
        mixed = [
            mix(gate, x, [*(own[t] if own else ()), of_all])
            for t, (gate, x) in enumerate(zip(self.gates, tasks, strict=True))
        ]
        if hasattr(self, "gate"):
            shared = mix(self.gate, shared, [*(each for [each] in own), of_all])
        return mixed, shared


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def balanced(weights: tuple[float, ...], x: list[jax.Array]) -> tuple[list[jax.Array], ...]:
    """What T tasks read, once for each, so that each pulls at it equally hard: the gradient of task t arrives as

        T weight_t / (sum of weights) * m * g_t / |g_t|,  m the mean of all |g_t|

    over the whole batch: tasks whose losses differ by orders of magnitude, or shrink at other speeds, train what they
    share alike (the loss balancer of Defossez et al. 2022, "High Fidelity Neural Audio Compression", section 3.4; the
    aim is that of GradNorm, Chen et al. 2018). The tasks' own parameters get their gradients as they are.

    `x`: arrays of any shape, one or more.
    """
    return tuple(x for _ in weights)


def _balanced_forward(weights, x):
    return balanced(weights, x), None


def _balanced_backward(weights, _, gradients):
    norms = [
        jnp.sqrt(sum(jnp.sum(jnp.square(part.astype(jnp.float32))) for part in jax.tree.leaves(g))) for g in gradients
    ]
    mean = sum(norms) / len(norms)
    scales = [
        len(weights) * weight / sum(weights) * mean / jnp.maximum(norm, 1e-30)
        for weight, norm in zip(weights, norms, strict=True)
    ]

    def total(*parts: jax.Array) -> jax.Array:
        summed = sum(scale * part.astype(jnp.float32) for scale, part in zip(scales, parts, strict=True))
        return jnp.asarray(summed).astype(parts[0].dtype)

    return (jax.tree.map(total, *gradients),)


balanced.defvjp(_balanced_forward, _balanced_backward)


def both(first: jax.Array, second: jax.Array) -> jax.Array:
    """The logit of sigmoid(first) * sigmoid(second): -log(exp(-a) + exp(-b) + exp(-a - b))."""
    return -jax.nn.logsumexp(jnp.stack([-first, -second, -first - second]), axis=0)


class Pairs(NamedTuple):
    """What the product of every context with every candidate of a batch is made of (towers)."""

    queries: jax.Array
    """[R, C, K, D] float32, of the context of each candidate slot and each output; logits are products with `items`,
    but for the bias."""
    items: jax.Array
    """[R, C, D] float32, of each candidate."""
    cosines: jax.Array
    """[R, C] float32, between each candidate and its own context."""


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
        context, candidate = self.vectors(context, candidate)
        product = dropout(context * candidate, self.dropout_rate, dropout_key)
        return jnp.einsum("rcd,dt->rct", product, self.dense["kernel"][...]) + self.dense["bias"][...]

    def pairs(self, context: jax.Array, candidate: jax.Array) -> Pairs:
        """[R, C, D] twice -> what every context makes of every candidate."""
        context, candidate = self.vectors(context, candidate)
        queries = jnp.einsum("rcd,dk->rckd", context, self.dense["kernel"][...])
        return Pairs(queries, candidate, jnp.sum(unit(context) * unit(candidate), axis=-1))

    def vectors(self, context: jax.Array, candidate: jax.Array) -> tuple[jax.Array, jax.Array]:
        """What is multiplied, [R, C, D] float32 twice."""
        return unit(context), unit(candidate)


class BilinearHead(ProductHead):
    """Towers: logit_k = sum_d scale_dk (W1 z)_d (W2 w)_d + bias_k of a context's vector z and a candidate's w, neither
    of length 1: the two sides are mapped to one space, in which long vectors may stand for what is popular."""

    SCALE = 1.0

    def __init__(self, size_in: int, num_outputs: int, dropout_rate: float, rngs: nnx.Rngs):
        super().__init__(size_in, num_outputs, dropout_rate, rngs)
        self.context = Dense(size_in, size_in, size_in**-0.5, rngs)
        self.candidate = Dense(size_in, size_in, size_in**-0.5, rngs)

    def vectors(self, context: jax.Array, candidate: jax.Array) -> tuple[jax.Array, jax.Array]:
        """W1 z and W2 w, [R, C, D] float32."""
        return self.context(context.astype(jnp.float32)), self.candidate(candidate.astype(jnp.float32))


def unit(x: jax.Array) -> jax.Array:
    """Vectors of length 1 in float32, over the last axis; 0 stays 0."""
    x = x.astype(jnp.float32)
    return x * jax.lax.rsqrt(jnp.square(x).sum(-1, keepdims=True) + 1e-12)


PRODUCTS = {"cosine": ProductHead, "bilinear": BilinearHead}
"""By `model.product`."""

"""Features besides text as vectors of the encoder's width: one class a kind, called with the stored arrays, and with
a key in training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from srsjax.data.inputs import InputSpec
from srsjax.model.attention import Visibility, attend
from srsjax.model.bert import BertConfig, Layer, LayerNorm, Table
from srsjax.model.dense import Dense, plain_dot

LARGE = 4096
"""Ids from which on a table is divided by rows."""


class Shared(NamedTuple):
    """What a feature takes of the one that it is `like`."""

    table: Table
    target: jax.Array | None
    """[R, S, D] float32, the embedding of the candidate's value; None where it has none of its own there."""


def padded(size: int) -> int:
    """Rows of a table of so many ids: of a large one a multiple of 128, which meshes divide."""
    return size if size < LARGE else -(-size // 128) * 128


def table_path(feature: InputSpec) -> str:
    """Path of the parameter that holds the embeddings of a category with a table of its own."""
    return f"features/{feature.side}/input_{feature.name}/table/embedding"


class CategoricalInput(nnx.Module):
    """Embeddings of ids, [size, D], or shorter ones that are mapped to D; id 0 is missing or unknown, and in training a
    random share of all ids, so that it is trained where every value is known."""

    def __init__(self, feature: InputSpec, encoder: BertConfig, rngs: nnx.Rngs):
        width = feature.width or encoder.hidden_size
        own = replace(encoder, hidden_size=width, num_heads=1, head_size=0)
        if not feature.like:
            self.table = Table(padded(feature.size), own, rngs)
        if feature.width and not feature.along:
            self.dense = Dense(width, encoder.hidden_size, width**-0.5, rngs)
        self.several, self.dropout, self.fixed = feature.values > 1, feature.dropout, feature.fixed
        if feature.pooling == "attention":
            self.attention = TargetAttention(width, rngs)
        if feature.pooling == "transformer":
            self.sequence = ItemTransformer(feature.values, own, rngs)

    def __call__(
        self,
        ids: jax.Array,
        key: jax.Array | None = None,
        shared: Shared | None = None,
        along: Sequence[jax.Array] = (),
    ) -> jax.Array:
        """[R, S] int32 -> [R, S, D] float32; [R, S, k] of several values -> one vector of them, ids 0 left out. `along`
        are added to their embeddings: [R, S, k, width of the table] each."""
        vectors = self._vectors(ids, key, shared, along)
        return self.dense(vectors) if hasattr(self, "dense") else vectors

    def embedded(self, ids: jax.Array, key: jax.Array | None, shared: Shared | None) -> tuple[jax.Array, jax.Array]:
        """The ids after dropout, and their embeddings [..., width of the table]."""
        if key is None and self.fixed is not None:
            ids = jnp.full_like(ids, int(self.fixed))
        if key is not None and self.dropout:
            ids = jnp.where(jax.random.bernoulli(key, self.dropout, ids.shape), 0, ids)
        return ids, (self.table if shared is None else shared.table)(ids)

    def _vectors(
        self, ids: jax.Array, key: jax.Array | None, shared: Shared | None, along: Sequence[jax.Array]
    ) -> jax.Array:
        """[R, S, width of the table]."""
        ids, vectors = self.embedded(ids, key, shared)
        if not self.several:
            return vectors
        vectors = sum(along, vectors)
        known = (ids > 0)[..., None].astype(jnp.float32)
        if hasattr(self, "sequence"):
            return self.sequence(vectors, ids > 0, key)
        if shared is not None and shared.target is not None and hasattr(self, "attention"):
            return self.attention(vectors, known, shared.target)
        mean = jnp.sum(vectors * known, axis=-2) / jnp.maximum(known.sum(-2), 1)
        table = self.table if shared is None else shared.table
        return jnp.where(known.sum(-2) > 0, mean, table(jnp.zeros(ids.shape[:-1], jnp.int32)))


class TargetAttention(nnx.Module):
    """Deep Interest Network (Zhou et al. 2018): sum_j a(e_j, q) e_j over the items e_j of a list and the candidate's
    embedding q, with the weight a, which is not normalised, from a network over [e_j, q, e_j - q, e_j * q]."""

    def __init__(self, width: int, rngs: nnx.Rngs):
        self.up = Dense(4 * width, width, (4 * width) ** -0.5, rngs)
        self.down = Dense(width, 1, width**-0.5, rngs)

    def __call__(self, vectors: jax.Array, known: jax.Array, target: jax.Array) -> jax.Array:
        """[R, S, k, D], [R, S, k, 1] of 0 and 1, [R, S, D] -> [R, S, D] float32."""
        rows, slots, count, width = vectors.shape
        q = jnp.broadcast_to(target[:, :, None], vectors.shape)
        both = jnp.concatenate([vectors, q, vectors - q, vectors * q], axis=-1)
        hidden = jax.nn.sigmoid(self.up(both.reshape(rows, slots * count, 4 * width)))
        weights = self.down(hidden).reshape(rows, slots, count, 1)
        return jnp.sum(weights * known * vectors, axis=-2)


class ItemTransformer(nnx.Module):
    """A small transformer over the items of a list, newest first (SASRec, Kang and McAuley 2018, "Self-Attentive
    Sequential Recommendation", for one place of the sequence): embeddings with a learned vector of their place added,
    two layers of BERT's, and the state of the newest item. An empty list is the state of an unknown one."""

    LAYERS = 2

    def __init__(self, length: int, encoder: BertConfig, rngs: nnx.Rngs):
        width = encoder.hidden_size
        sizes = replace(encoder, intermediate_size=2 * width, attention_dropout=0.0)
        self.place = nnx.Param(encoder.initializer_range * jax.random.normal(rngs.params(), (length, width)))
        self.norm = LayerNorm(sizes)
        self.layers = nnx.List([Layer(sizes, rngs, attend, plain_dot) for _ in range(self.LAYERS)])

    def __call__(self, vectors: jax.Array, known: jax.Array, key: jax.Array | None) -> jax.Array:
        """[R, S, k, D] float32, [R, S, k] bool -> [R, S, D] float32; ids that are unknown are not seen."""
        rows, slots, length, width = vectors.shape
        x = self.norm(vectors + self.place[...]).reshape(rows * slots, length, width)
        seen = known | (jnp.arange(length) == 0)  # the newest is read even where it is unknown
        own = seen.reshape(rows * slots, length).astype(jnp.int32)
        first = jnp.zeros((rows * slots, 1), jnp.int32)
        for number, layer in enumerate(self.layers):
            site = None if key is None else jax.random.fold_in(key, number)
            x = layer(x, Visibility(own, own), at=first if number == self.LAYERS - 1 else None, dropout_key=site)
        return x.reshape(rows, slots, width)


class NumericInput(nnx.Module):
    """A number, or the logarithm of it, standardised by the training rows, times a vector; the embedding of its bucket;
    or, of a number within a period, a linear map of the sine and cosine of its angle. A missing one is a vector of its
    own."""

    def __init__(self, feature: InputSpec, encoder: BertConfig, rngs: nnx.Rngs):
        self.mean, self.deviation = feature.mean, feature.deviation or 1.0
        self.logarithm, self.edges, self.fixed = feature.scale == "log", feature.edges, feature.fixed
        self.period = feature.period
        if feature.scale == "quantile":
            self.table = Table(len(feature.edges) + 1, encoder, rngs)
        else:
            self.dense = Dense(2 if self.period else 1, encoder.hidden_size, encoder.initializer_range, rngs)
        if feature.may_be_missing:
            self.missing = nnx.Param(jnp.zeros(encoder.hidden_size))

    def __call__(self, numbers: jax.Array, key: jax.Array | None = None) -> jax.Array:
        """[R, S] float32, NaN where missing -> [R, S, D] float32."""
        if key is None and self.fixed is not None:
            numbers = jnp.full_like(numbers, self.fixed)
        absent = jnp.isnan(numbers)
        x = jnp.sign(numbers) * jnp.log1p(jnp.abs(numbers)) if self.logarithm else numbers
        x = jnp.where(absent, self.mean, x)
        if hasattr(self, "table"):
            vectors = self.table(jnp.searchsorted(jnp.array(self.edges, jnp.float32), x, side="right"))
        elif self.period:
            angle = 2 * jnp.pi / self.period * x
            vectors = self.dense(jnp.stack([jnp.sin(angle), jnp.cos(angle)], axis=-1))
        else:
            vectors = self.dense(((x - self.mean) / self.deviation)[..., None])
        return jnp.where(absent[..., None], self.missing[...], vectors) if hasattr(self, "missing") else vectors


class VectorInput(nnx.Module):
    """A linear map of a vector of `size` numbers; a missing one is a vector of its own."""

    def __init__(self, feature: InputSpec, encoder: BertConfig, rngs: nnx.Rngs):
        self.dense = Dense(feature.size, encoder.hidden_size, encoder.initializer_range, rngs)
        if feature.may_be_missing:
            self.missing = nnx.Param(jnp.zeros(encoder.hidden_size))

    def __call__(self, vectors: jax.Array, key: jax.Array | None = None) -> jax.Array:
        """[R, S, size] float32, NaN where missing -> [R, S, D] float32."""
        if not hasattr(self, "missing"):
            return self.dense(vectors)
        absent = jnp.isnan(vectors).any(-1, keepdims=True)
        return jnp.where(absent, self.missing[...], self.dense(jnp.where(absent, 0.0, vectors)))


INPUTS = {"categorical": CategoricalInput, "numeric": NumericInput, "vector": VectorInput}
"""By `InputSpec.kind`."""


class Features(nnx.Module):
    """The vectors of all features that a model reads of one side."""

    def __init__(self, features: tuple[InputSpec, ...], encoder: BertConfig, rngs: nnx.Rngs):
        self.names = tuple(feature.name for feature in features)
        self.along = tuple((feature.name, feature.along) for feature in features if feature.along)
        # A name of digits alone would be taken for the number of a layer.
        for feature in features:
            setattr(self, f"input_{feature.name}", INPUTS[feature.kind](feature, encoder, rngs))

    def __call__(
        self, arrays: dict[str, jax.Array], key: jax.Array | None = None, shared: Mapping[str, Shared] = {}
    ) -> list[jax.Array]:
        """[R, S, ...] by feature name -> [R, S, D] float32, one for each feature that is not along another one.

        `key` is for dropout; `shared` has, by the name of a feature, what it takes of the one that it is `like`.
        """
        split = [None] * len(self.names) if key is None else list(jax.random.split(key, max(len(self.names), 1)))
        keys, along = dict(zip(self.names, split, strict=False)), dict[str, list[jax.Array]]()
        for name, other in self.along:
            along.setdefault(other, []).append(self.of(name).embedded(arrays[name], keys[name], shared.get(name))[1])
        out = []
        for name in self.names:
            if name not in dict(self.along):
                given: dict[str, Any] = {"shared": shared[name]} if name in shared else {}
                given |= {"along": along[name]} if name in along else {}
                out.append(self.of(name)(arrays[name], keys[name], **given).astype(jnp.float32))
        return out

    def of(self, name: str) -> Any:
        """The input of a feature."""
        return getattr(self, f"input_{name}")

"""One vector of a text vector and those of the other features, or of the features alone.

A combination is called with the text's vector [R, S, D] (None where the model reads no text) and those of the
features, [R, S, D] each, and gives [R, S, `size`] float32, computed in float32.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import jax
import jax.numpy as jnp
from flax import nnx

from srsjax.errors import InputError
from srsjax.model.bert import gelu
from srsjax.model.dense import Dense
from srsjax.model.dropout import dropout


@dataclass(frozen=True)
class Settings:
    """What the fields `model.combine_*` say."""

    layers: tuple[int, ...] = ()
    """Widths of the hidden layers of `mlp` and `dcn`."""
    crosses: int = 3
    """Cross layers of `dcn`."""
    dropout: float = 0.0
    """After each hidden layer."""
    activation: str = "relu"
    """After each hidden layer: a name in `ACTIVATIONS`."""

    def __post_init__(self):
        if any(width < 1 for width in self.layers):
            raise InputError(f"model.combine_layers: found {self.layers}, expected widths of at least 1")


ACTIVATIONS = {"relu": jax.nn.relu, "gelu": gelu, "silu": jax.nn.silu, "tanh": jnp.tanh}
"""By the values of `model.combine_activation`."""


class Concat(nnx.Module):
    """x + W2 gelu(W1 [x, f_1, ..., f_n] + b1) + b2: a multi-layer perceptron over all vectors, added to the text's."""

    def __init__(self, width: int, vectors: int, settings: Settings, stddev: float, rngs: nnx.Rngs):
        self.size = width
        self.up = Dense(width * vectors, width, stddev, rngs)
        self.down = Dense(width, width, stddev, rngs)

    def __call__(self, text: jax.Array | None, features: list[jax.Array], key: jax.Array | None = None) -> jax.Array:
        """See the module."""
        added = self.down(gelu(self.up(joined(text, features))))
        return added if text is None else text.astype(jnp.float32) + added


class Deep(nnx.Module):
    """A multi-layer perceptron over all vectors, with dropout: [x, f_1, ..., f_n] through `layers`."""

    def __init__(self, width: int, vectors: int, settings: Settings, stddev: float, rngs: nnx.Rngs):
        widths = [width * vectors, *settings.layers]
        self.activation = ACTIVATIONS[settings.activation]
        # He et al. 2015: the variance of what a ReLU lets through is kept.
        self.layers = nnx.List([Dense(a, b, (2 / a) ** 0.5, rngs) for a, b in itertools.pairwise(widths)])
        self.size, self.dropout_rate = widths[-1], settings.dropout

    def __call__(self, text: jax.Array | None, features: list[jax.Array], key: jax.Array | None = None) -> jax.Array:
        """See the module."""
        x = joined(text, features)
        for number, layer in enumerate(self.layers):
            own = None if key is None else jax.random.fold_in(key, number)
            x = dropout(self.activation(layer(x)), self.dropout_rate, own)
        return x


class Wide(nnx.Module):
    """Wide & Deep (Cheng et al. 2016): the sum of all vectors, in which each value has a weight of its own in every
    logit, beside `Deep`."""

    def __init__(self, width: int, vectors: int, settings: Settings, stddev: float, rngs: nnx.Rngs):
        self.deep = Deep(width, vectors, settings, stddev, rngs)
        self.size = width + self.deep.size

    def __call__(self, text: jax.Array | None, features: list[jax.Array], key: jax.Array | None = None) -> jax.Array:
        """See the module."""
        return jnp.concatenate([stacked(text, features).sum(-2), self.deep(text, features, key)], axis=-1)


class Factorised(nnx.Module):
    """DeepFM (Guo et al. 2017): the sum of all vectors v_i, their products in pairs, and `Deep`:

    [sum_i v_i,  sum_{i<j} v_i * v_j = ((sum_i v_i)^2 - sum_i v_i^2) / 2,  Deep]
    """

    def __init__(self, width: int, vectors: int, settings: Settings, stddev: float, rngs: nnx.Rngs):
        self.deep = Deep(width, vectors, settings, stddev, rngs)
        self.size = 2 * width + self.deep.size

    def __call__(self, text: jax.Array | None, features: list[jax.Array], key: jax.Array | None = None) -> jax.Array:
        """See the module."""
        vectors = stacked(text, features)
        total = vectors.sum(-2)
        pairs = (total**2 - (vectors**2).sum(-2)) / 2
        return jnp.concatenate([total, pairs, self.deep(text, features, key)], axis=-1)


class Cross(nnx.Module):
    """DCN-V2 (Wang et al. 2021, "DCN V2: Improved Deep & Cross Network"), its parallel form:

    x_0 = [x, f_1, ..., f_n],  x_{l+1} = x_0 * (W_l x_l + b_l) + x_l,  and `Deep` of x_0 beside the last of them
    """

    def __init__(self, width: int, vectors: int, settings: Settings, stddev: float, rngs: nnx.Rngs):
        whole = width * vectors
        self.crosses = nnx.List([Dense(whole, whole, whole**-0.5, rngs) for _ in range(settings.crosses)])
        self.deep = Deep(width, vectors, settings, stddev, rngs)
        self.size = whole + (self.deep.size if settings.layers else 0)

    def __call__(self, text: jax.Array | None, features: list[jax.Array], key: jax.Array | None = None) -> jax.Array:
        """See the module."""
        first = x = joined(text, features)
        for layer in self.crosses:
            x = first * layer(x) + x
        return jnp.concatenate([x, self.deep(text, features, key)], axis=-1) if len(self.deep.layers) else x


class Attention(nnx.Module):
    """A weighted sum of all vectors, with weights that depend on them, and a multi-layer perceptron over it:

        v = [x, f_1, ..., f_n] with a learned vector of its place added to each,  a = softmax_i(q . tanh(W v_i + b)),
        z = sum_i a_i v_i,  result x + W2 gelu(W1 z + b1) + b2

    Additive attention (Bahdanau et al. 2015) over modalities; `weights` are a, to be read for each candidate.
    """

    def __init__(self, width: int, vectors: int, settings: Settings, stddev: float, rngs: nnx.Rngs):
        self.size = width
        self.place = nnx.Param(stddev * jax.random.normal(rngs.params(), (vectors, width)))
        self.query = nnx.Param(width**-0.5 * jax.random.normal(rngs.params(), (width,)))
        self.key = Dense(width, width, width**-0.5, rngs)
        self.up = Dense(width, width, width**-0.5, rngs)
        self.down = Dense(width, width, stddev, rngs)

    def __call__(self, text: jax.Array | None, features: list[jax.Array], key: jax.Array | None = None) -> jax.Array:
        """See the module."""
        vectors = self._vectors(text, features)
        z = jnp.einsum("rsv,rsvd->rsd", self.weights(text, features), vectors)
        z = z + self.down(gelu(self.up(z)))
        return z if text is None else text.astype(jnp.float32) + z

    def weights(self, text: jax.Array | None, features: list[jax.Array]) -> jax.Array:
        """[R, S, V] float32 that sum to 1: how much of each vector, the text's first, is taken."""
        vectors = self._vectors(text, features)
        rows, slots, count, width = vectors.shape
        keys = jnp.tanh(self.key(vectors.reshape(rows, slots * count, width))).reshape(vectors.shape)
        return jax.nn.softmax(jnp.einsum("rsvd,d->rsv", keys, self.query[...]), axis=-1)

    def _vectors(self, text: jax.Array | None, features: list[jax.Array]) -> jax.Array:
        return stacked(text, features) + self.place[...]


def joined(text: jax.Array | None, features: list[jax.Array]) -> jax.Array:
    """[R, S, D] each -> [R, S, D * number], the text's first, float32."""
    return jnp.concatenate(features if text is None else [text.astype(jnp.float32), *features], axis=-1)


def stacked(text: jax.Array | None, features: list[jax.Array]) -> jax.Array:
    """[R, S, D] each -> [R, S, number, D], the text's first, float32."""
    return jnp.stack(features if text is None else [text.astype(jnp.float32), *features], axis=-2)


COMBINATIONS = {
    "concat": Concat,
    "attention": Attention,
    "mlp": Deep,
    "wide_deep": Wide,
    "deepfm": Factorised,
    "dcn": Cross,
}
"""By the values of `model.combine` besides `text`, which reads no other feature."""

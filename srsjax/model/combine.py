"""One vector of a text vector and those of the other features."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx

from srsjax.model.bert import gelu
from srsjax.model.dense import Dense


class Concat(nnx.Module):
    """x + W2 gelu(W1 [x, f_1, ..., f_n] + b1) + b2: a multi-layer perceptron over all vectors, added to the text's."""

    def __init__(self, size: int, features: int, stddev: float, rngs: nnx.Rngs):
        self.up = Dense(size * (1 + features), size, stddev, rngs)
        self.down = Dense(size, size, stddev, rngs)

    def __call__(self, text: jax.Array, features: list[jax.Array]) -> jax.Array:
        """[R, S, D] and [R, S, D] for each feature -> [R, S, D] float32, computed in float32."""
        text = text.astype(jnp.float32)
        return text + self.down(gelu(self.up(jnp.concatenate([text, *features], axis=-1))))


COMBINATIONS = {"concat": Concat}
"""By the values of `model.combine` besides `text`, which reads no other feature."""

"""Features besides text as vectors of the encoder's width: one class a kind, called with the stored arrays."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx

from srsjax.data.kinds import InputSpec
from srsjax.model.bert import BertConfig, Table
from srsjax.model.dense import Dense


class CategoricalInput(nnx.Module):
    """Embeddings of ids, [size, D]; id 0 is missing or unknown."""

    def __init__(self, feature: InputSpec, encoder: BertConfig, rngs: nnx.Rngs):
        self.table = Table(feature.size, encoder, rngs)

    def __call__(self, ids: jax.Array) -> jax.Array:
        """[R, S] int32 -> [R, S, D] float32."""
        return self.table(ids)


class NumericInput(nnx.Module):
    """A number, standardised by the training rows, times a vector."""

    def __init__(self, feature: InputSpec, encoder: BertConfig, rngs: nnx.Rngs):
        self.mean, self.deviation = feature.mean, feature.deviation or 1.0
        self.dense = Dense(1, encoder.hidden_size, encoder.initializer_range, rngs)

    def __call__(self, numbers: jax.Array) -> jax.Array:
        """[R, S] float32 -> [R, S, D] float32."""
        return self.dense(((numbers - self.mean) / self.deviation)[..., None])


class VectorInput(nnx.Module):
    """A linear map of a vector of `size` numbers."""

    def __init__(self, feature: InputSpec, encoder: BertConfig, rngs: nnx.Rngs):
        self.dense = Dense(feature.size, encoder.hidden_size, encoder.initializer_range, rngs)

    def __call__(self, vectors: jax.Array) -> jax.Array:
        """[R, S, size] float32 -> [R, S, D] float32."""
        return self.dense(vectors)


INPUTS = {"categorical": CategoricalInput, "numeric": NumericInput, "vector": VectorInput}
"""By `InputSpec.kind`."""


class Features(nnx.Module):
    """The vectors of all features that a model reads of one side."""

    def __init__(self, features: tuple[InputSpec, ...], encoder: BertConfig, rngs: nnx.Rngs):
        self.names = tuple(feature.name for feature in features)
        # A name of digits alone would be taken for the number of a layer.
        for feature in features:
            setattr(self, f"input_{feature.name}", INPUTS[feature.kind](feature, encoder, rngs))

    def __call__(self, arrays: dict[str, jax.Array]) -> list[jax.Array]:
        """[R, S, ...] by feature name -> [R, S, D] float32, one for each feature."""
        return [getattr(self, f"input_{name}")(arrays[name]).astype(jnp.float32) for name in self.names]

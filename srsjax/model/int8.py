"""Weights in 8 bits for scoring: what is stored of them, and products and lookups with them.

A quantised weight is int8 values with one float32 scale for each output channel, symmetric: w ~ scale * q, q in
[-127, 127], scale = max |w| / 127 over what the product sums over (Jacob et al. 2018, "Quantization and Training of
Neural Networks for Efficient Integer-Arithmetic-Only Inference", without zero points). Activations are quantised where
they are multiplied, each token by its own largest magnitude, so that no token's result depends on the strangers it is
packed with; products are summed in int32, exactly. Nothing is trained in it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

Dimensions = tuple[tuple[tuple[int, ...], tuple[int, ...]], tuple[tuple[int, ...], tuple[int, ...]]]
"""Axes of both operands that a product sums over, and those of a batch, as `jax.lax.dot_general` has them."""

LARGEST = 127
"""Largest magnitude of a quantised number: -128 has no counterpart."""

VALUES, SCALE = "/int8_values", "/int8_scale"
"""What follows a parameter's path in files, for its two arrays."""


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Quantized:
    """A weight in 8 bits; where a parameter is one, the layers that read it compute with it."""

    values: Any
    """int8, shape of the weight."""
    scale: Any
    """float32, the same shape but 1 along the axes that a product sums over."""

    @property
    def shape(self) -> tuple[int, ...]:
        """That of the weight."""
        return self.values.shape

    @property
    def nbytes(self) -> int:
        """Bytes of both arrays."""
        return self.values.nbytes + self.scale.nbytes

    def __getitem__(self, at) -> Quantized:
        """Part of the weight, along axes that are not summed over."""
        return Quantized(self.values[at], self.scale[at])


def quantize(weight: np.ndarray, summed: Sequence[int]) -> Quantized:
    """A weight in 8 bits, on the host: half of an integer is rounded to even; a channel of zeros has scale 0.

    Args:
      weight: float32 of any shape.
      summed: the axes that products with it sum over; of a table none but the last, so that each row has a scale.
    """
    weight = np.asarray(weight, np.float32)
    scale = np.abs(weight).max(axis=tuple(summed), keepdims=True) / np.float32(LARGEST)
    values = np.rint(weight / np.where(scale > 0, scale, 1))
    return Quantized(values.astype(np.int8), scale)


def dequantize(weight: Quantized) -> np.ndarray:
    """The float32 weight that the numbers stand for."""
    return np.asarray(weight.values, np.float32) * np.asarray(weight.scale)


def int8_dot(a: jax.Array, b: Quantized, dimensions: Dimensions) -> jax.Array:
    """The product of activations with a weight, float32: axes of `a` that are not summed over, then those of `b`.

    scale_a scale_b sum_i q_a q_b, with one scale of `a` for each of its vectors that are summed over.

    Args:
      a: float32 or bfloat16.
      dimensions: as `jax.lax.dot_general` has them, without batch axes.
    """
    (a_summed, b_summed), _ = dimensions
    a = a.astype(jnp.float32)
    a_scale = jnp.max(jnp.abs(a), axis=a_summed, keepdims=True) / LARGEST
    quantized = jnp.round(a / jnp.where(a_scale > 0, a_scale, 1)).astype(jnp.int8)
    sums = jax.lax.dot_general(quantized, b.values, dimensions, preferred_element_type=jnp.int32)
    b_scale = jnp.squeeze(b.scale, b_summed)
    a_scale = jnp.squeeze(a_scale, a_summed)
    return sums.astype(jnp.float32) * a_scale.reshape(*a_scale.shape, *[1] * b_scale.ndim) * b_scale


def lookup(table: Quantized, ids: jax.Array) -> jax.Array:
    """Rows of a table, float32; NaN for an id outside of it."""
    values = jnp.take(table.values, ids, axis=0, mode="fill", fill_value=0).astype(jnp.float32)
    return values * jnp.take(table.scale, ids, axis=0, mode="fill", fill_value=jnp.nan)


def flat(params: Mapping[str, Any]) -> dict[str, Any]:
    """Parameters as arrays by name: of a quantised one, two."""
    made: dict[str, Any] = {}
    for path, value in params.items():
        if isinstance(value, Quantized):
            made |= {path + VALUES: value.values, path + SCALE: value.scale}
        else:
            made[path] = value
    return made


def from_flat(arrays: Mapping[str, Any]) -> dict[str, Any]:
    """Parameters from what `flat` made of them."""
    return {
        path.removesuffix(VALUES): Quantized(value, arrays[path.removesuffix(VALUES) + SCALE])
        if path.endswith(VALUES)
        else value
        for path, value in arrays.items()
        if not path.endswith(SCALE)
    }

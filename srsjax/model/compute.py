"""How a model is computed: what may differ between two uses of the same parameters."""

from __future__ import annotations

from dataclasses import dataclass

import jax
import jax.numpy as jnp

from srsjax import config
from srsjax.model.attention import Attend, attend
from srsjax.model.dense import Dot, plain_dot
from srsjax.model.float8 import float8_dot


@dataclass(frozen=True)
class Compute:
    """Compute type, attention, products and what gradients compute again."""

    dtype: jnp.dtype = jnp.dtype("float32")
    """Of the encoder's activations."""
    attention: Attend = attend
    remat: str = "none"
    """`model.remat`."""
    dot: Dot = plain_dot
    """Products with the encoder's weights."""

    @classmethod
    def of(cls, model: config.Model, attention: Attend = attend) -> Compute:
        """What a config asks for, with an attention that was chosen."""
        dot = float8_dot if model.dtype == "float8" else plain_dot
        return cls(compute_dtype(model), attention, model.remat, dot)


def compute_dtype(model: config.Model) -> jnp.dtype:
    """The compute dtype of `model.dtype`; `auto` is bfloat16 on GPU and TPU and float32 on CPU.

    What is not a product with a weight of the encoder is bfloat16 in `float8` too.
    """
    if model.dtype == "auto":
        return jnp.dtype("float32" if jax.default_backend() == "cpu" else "bfloat16")
    return jnp.dtype("bfloat16" if model.dtype == "float8" else model.dtype)

"""The state of a training run, and the model's function of it."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import optax

Parameters = dict[str, jax.Array]
Forward = Callable[..., jax.Array]
"""forward(params, batch, *, dropout_key=None) -> logits [R, C, T] float32."""


class TrainState(NamedTuple):
    """Everything a step changes; all of it is in a checkpoint, and with the seed it determines the rest of the run."""

    step: jax.Array
    """int32 scalar, optimizer steps done."""
    params: Parameters
    """float32."""
    opt: optax.OptState
    """Optimizer state, float32."""

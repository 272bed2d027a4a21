"""The state of a training run, and the model's function of it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import optax

Parameters = dict[str, jax.Array]
Forward = Callable[..., Any]
"""forward(params, batch, *, dropout_key=None) -> logits [R, C, K] float32, or (logits, pairs); `params` are trained and
frozen ones."""


class TrainState(NamedTuple):
    """Everything a step changes; all of it is in a checkpoint, and with the seed it determines the rest of the run."""

    step: jax.Array
    """int32 scalar, optimizer steps done."""
    params: Parameters
    """Trained parameters, float32."""
    opt: optax.OptState
    """Optimizer state of the trained parameters, float32."""
    frozen: Parameters = {}  # noqa: RUF012 (never changed)
    """Parameters that no step changes; with `params` they are the model's."""

    @property
    def all_params(self) -> Parameters:
        """The model's parameters, trained and frozen."""
        return {**self.params, **self.frozen}

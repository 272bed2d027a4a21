"""Regression tasks: a number as it is, such as a rating, a price or a demand."""

from __future__ import annotations

from collections.abc import Iterable

import jax
import numpy as np
import optax

from srsjax.data.preparing.statistics import Fitted
from srsjax.model.spec import Outputs
from srsjax.objectives import terms
from srsjax.objectives.objective import Objective, Term


class Regression(Objective):
    """Squared error, or the Huber loss, of labels standardised by the training rows: (label - mean) / deviation."""

    kind = "regression"
    families = ("value",)
    monitor = "rmse"

    def outputs(self, fitted: Fitted) -> Outputs:
        """One output, with mean and deviation of the training labels."""
        found = fitted.labels[self.task.name]
        return Outputs(self.task.name, self.kind, mean=found["mean"], deviation=found["std"])

    @property
    def terms(self) -> tuple[Term, ...]:
        """The loss in standard deviations of the label."""
        return (terms.pointwise(self.task, 1.0, self._error),)

    def _error(self, logits: jax.Array, labels: jax.Array) -> jax.Array:
        mean, deviation = self._scale()
        target = (labels - mean) / deviation
        if self.task.loss == "huber":
            return optax.huber_loss(logits[..., 0], target, delta=self.task.huber_delta)
        return optax.squared_error(logits[..., 0], target)

    def soft_term(self, share: float, temperature: float) -> Term:
        """Squared difference to the teacher's number, in standard deviations of the label."""
        return terms.soft(self.task, share, lambda logits, teacher: optax.squared_error(logits, teacher)[..., 0])

    def bias(self, chunks: Iterable[tuple[np.ndarray, np.ndarray]]) -> np.ndarray:
        """0: the mean of the training labels."""
        return np.zeros(1, np.float32)

    @property
    def scale(self) -> float:
        """1: outputs are in standard deviations of the label, and the first ones should not be ten of them away."""
        return 1.0

    def predict(self, logits: np.ndarray) -> np.ndarray:
        """The number, in the units of the label."""
        mean, deviation = self._scale()
        return mean + deviation * logits[..., 0].astype(np.float64)

    def scores(self, logits: jax.Array) -> jax.Array:
        """The number, in the units of the label."""
        mean, deviation = self._scale()
        return mean + deviation * logits[..., 0]

    def measured(self, logits: np.ndarray) -> np.ndarray:
        """The predicted numbers."""
        return self.predict(logits)

    def _scale(self) -> tuple[float, float]:
        assert self.known is not None, "a regression task without the scale of its labels"
        return self.known.mean, self.known.deviation

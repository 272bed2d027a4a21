"""Multiclass tasks: one of K classes (an intent, a topic, a star rating as a category)."""

from __future__ import annotations

from collections.abc import Iterable

import jax
import jax.numpy as jnp
import numpy as np
import optax

from srsjax.data.preparing.statistics import Fitted
from srsjax.model.spec import Outputs
from srsjax.objectives import terms
from srsjax.objectives.objective import Objective, Term


class Multiclass(Objective):
    """Cross-entropy of the softmax over K logits."""

    kind = "multiclass"
    families = ("class",)
    monitor = "accuracy"

    def outputs(self, fitted: Fitted) -> Outputs:
        """One output for each class."""
        classes = tuple(fitted.classes[self.task.name])
        return Outputs(self.task.name, self.kind, len(classes), classes)

    @property
    def terms(self) -> tuple[Term, ...]:
        """The cross-entropy."""
        return (terms.pointwise(self.task, 1.0, self._cross_entropy),)

    def _cross_entropy(self, logits: jax.Array, labels: jax.Array) -> jax.Array:
        count, smoothing = logits.shape[-1], self.task.label_smoothing
        target = jax.nn.one_hot(labels.astype(jnp.int32), count) * (1 - smoothing) + smoothing / count
        return optax.softmax_cross_entropy(logits, target)

    def soft_term(self, share: float, temperature: float) -> Term:
        """Cross-entropy with the teacher's probabilities."""
        return terms.soft(self.task, share, terms.multiclass_soft_loss(temperature))

    def bias(self, chunks: Iterable[tuple[np.ndarray, np.ndarray]]) -> np.ndarray:
        """Logarithms of the shares of the classes among the training weights w, half a candidate added to each:

        log((W_k + 1/2) / (W + K / 2)),  W_k = sum of w over class k,  W their sum
        """
        assert self.known is not None, "a multiclass task without its classes"
        mass = np.full(self.known.count, 0.5)
        for labels, weights in chunks:
            mass += np.bincount(labels.astype(np.int64), self.training_weights(weights), self.known.count)
        return np.log(mass / mass.sum()).astype(np.float32)

    def columns(self, logits: np.ndarray) -> dict[str, np.ndarray]:
        """The most probable class, its probability, and those of all classes."""
        assert self.known is not None, "a multiclass task without its classes"
        shares = probabilities(logits).astype(np.float32)
        return {
            "class": np.array(self.known.classes, object)[logits.argmax(-1)],
            "score": shares.max(-1),
            "probabilities": shares,
        }

    def measured(self, logits: np.ndarray) -> np.ndarray:
        """All logits."""
        return logits

    def scores(self, logits: jax.Array) -> jax.Array:
        """The probabilities of all classes."""
        return jax.nn.softmax(logits, axis=-1)

    def predict(self, logits: np.ndarray) -> np.ndarray:
        """The probability of the most probable class."""
        return probabilities(logits).max(-1)


def probabilities(logits: np.ndarray) -> np.ndarray:
    """The softmax over the last axis: [..., K] -> [..., K] float64."""
    shifted = np.exp(logits.astype(np.float64) - logits.max(-1, keepdims=True))
    return shifted / shifted.sum(-1, keepdims=True)

"""Listwise tasks: the order of the candidates of an impression, by labels that may be any grade of at least 0."""

from __future__ import annotations

from collections.abc import Iterable
from typing import ClassVar

import numpy as np

from srsjax.metrics.calibration import sigmoid
from srsjax.objectives import terms
from srsjax.objectives.objective import Objective, Term


class Listwise(Objective):
    """Softmax cross-entropy within each impression, or LambdaRank."""

    kind = "listwise"
    families: ClassVar[tuple[str, ...]] = ("ranking",)
    monitor = "ndcg"

    @property
    def terms(self) -> tuple[Term, ...]:
        """The loss of the task, averaged over impressions."""
        if self.task.loss == "lambdarank":
            return (terms.lambdarank(self.task, 1.0),)
        return (terms.listwise(self.task, 1.0),)

    def soft_term(self, share: float, temperature: float) -> Term:
        """Squared difference to the teacher's margins within an impression."""
        return terms.margins(self.task, share)

    def bias(self, chunks: Iterable[tuple[np.ndarray, np.ndarray]]) -> np.ndarray:
        """0: the loss does not see a bias."""
        return np.zeros(1, np.float32)

    def predict(self, logits: np.ndarray) -> np.ndarray:
        """The sigmoid of the logit: an order within an impression, in (0, 1), and no probability."""
        return sigmoid(logits[..., 0])

"""Binary tasks: a click, a purchase, a match; the logit's sigmoid is a probability."""

from __future__ import annotations

from collections.abc import Iterable

import jax
import numpy as np
import optax

from srsjax.data.preparing.statistics import Fitted
from srsjax.metrics.calibration import sigmoid
from srsjax.model.spec import Outputs
from srsjax.objectives import terms
from srsjax.objectives.objective import Objective, Term


class Binary(Objective):
    """Binary cross-entropy; with `Task.softmax` above 0, mixed with softmax cross-entropy within each impression."""

    kind = "binary"
    families = ("click", "ranking")
    monitor = "auc"

    def outputs(self, fitted: Fitted) -> Outputs:
        """One output, which may come after another task's."""
        return Outputs(self.task.name, self.kind, after=self.task.after)

    @property
    def terms(self) -> tuple[Term, ...]:
        """(1 - s) of the pointwise loss and s of the listwise one; a term without a share is not computed."""
        share = self.task.softmax
        listwise = terms.normalised_sigmoids if self.task.loss == "rcr" else terms.softmax_cross_entropy
        both = (
            terms.pointwise(self.task, 1.0 - share, self._cross_entropy),
            terms.listwise(self.task, share, listwise),
        )
        return tuple(term for term in both if term.share > 0)

    def _cross_entropy(self, logits: jax.Array, labels: jax.Array) -> jax.Array:
        """Of hard or soft labels in [0, 1], smoothed as the task says."""
        smoothing = self.task.label_smoothing
        labels = labels * (1.0 - smoothing) + 0.5 * smoothing
        if self.task.loss == "focal":
            return optax.sigmoid_focal_loss(logits[..., 0], labels, gamma=self.task.focal_gamma)
        return optax.sigmoid_binary_cross_entropy(logits[..., 0], labels)

    def soft_term(self, share: float, temperature: float) -> Term:
        """Cross-entropy with the teacher's probability."""
        return terms.soft(self.task, share, terms.binary_soft_loss(temperature))

    def fairness_term(self, share: float) -> Term:
        """Differences between the groups' mean probabilities of positive rows."""
        return terms.opportunity(self.task, share, self.scores)

    def bias(self, chunks: Iterable[tuple[np.ndarray, np.ndarray]]) -> np.ndarray:
        """Log-odds of the mean training label, [1] float32.

        With a bias of 0 every pair begins at probability 1/2, and where positives are rare the first hundred steps
        teach the encoder little but "no": its pooled vectors are pushed along the head's kernel, all alike, before any
        pair is told apart. The prior of Lin et al. 2017 ("Focal Loss for Dense Object Detection", section 4.1),
        taken from the data:

            log((P + 1/2) / (W - P + 1/2)),  W = sum of w,  P = sum of w * label

        over the candidates that are trained on, with the training weights w and smoothed labels of the loss. The halves
        keep it finite where all labels are equal.
        """
        total = positive = 0.0
        smoothing = self.task.label_smoothing
        for labels, weights in chunks:
            labels = np.asarray(labels, np.float64) * (1 - smoothing) + smoothing / 2
            used = self.training_weights(weights)
            total += used.sum()
            positive += (used * labels).sum()
        return np.log([(positive + 0.5) / (total - positive + 0.5)]).astype(np.float32)

    def predict(self, logits: np.ndarray) -> np.ndarray:
        """The probability of a positive label."""
        return sigmoid(logits[..., 0])

"""Contrastive tasks: the vectors of a context and its positive candidates are near each other, others are not (towers).

What retrieval needs: the nearest of all items by their vectors should be those that the user takes.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from srsjax.objectives import terms
from srsjax.objectives.listwise import Listwise
from srsjax.objectives.objective import Labels, Objective, Term


class Contrastive(Listwise):
    """The softmax over the candidates of the batch, or a loss of the cosine."""

    kind = "contrastive"
    families = ("ranking", "retrieval")
    monitor = "mrr"

    @property
    def terms(self) -> tuple[Term, ...]:
        """The mean over positives, or over all candidates."""
        total = self._cosines if self.task.loss == "cosine" else self._in_batch
        return (Term(1.0, lambda logits, known: total(known), self._weight, least=1e-30),)

    def soft_term(self, share: float, temperature: float) -> Term:
        """None: its impressions may be of one candidate, which has no margin. Raises InputError."""
        return Objective.soft_term(self, share, temperature)

    def _weight(self, known: Labels) -> jax.Array:
        weights = terms.training_weights(self.task, known.weights)
        return jnp.sum(weights if self.task.loss == "cosine" else weights * known.labels)

    @property
    def scale(self) -> float:
        """1 / temperature."""
        return 1 / self.task.temperature

    @property
    def in_batch(self) -> bool:
        """Always: cosines are read of it too."""
        return True

    def predict(self, logits: np.ndarray) -> np.ndarray:
        """The logit, a scaled product of both vectors: an order of candidates. Its sigmoid would be 1 in float32 for
        all that are near."""
        return logits[..., 0].astype(np.float64)

    def scores(self, logits: jax.Array) -> jax.Array:
        """The logit."""
        return logits[..., 0]

    def _in_batch(self, known: Labels) -> jax.Array:
        """Sum over positives i of w_i y_i [log(sum over j in A_i of exp(s_ij - log q_j)) - (s_ii - log q_i)], where

        s_ij  is the logit of i's context with candidate j of the batch, of all its rows and devices,
        q_j   is the share of j's item in the training rows (Yi et al. 2019, "Sampling-bias-corrected neural modeling
              for large corpus item recommendations"; Bengio & Senecal 2008), 1 without `sampling_correction`,
        A_i   is i and every candidate that is another item and no positive of the same impression.
        """
        assert known.pairs is not None and known.item is not None and known.log_share is not None
        items = known.pairs.items.reshape(-1, known.pairs.items.shape[-1])
        scores = known.pairs.queries[..., 0, :].reshape(items.shape) @ items.T
        positive, used = (known.labels > 0).ravel(), (known.weights > 0).ravel()
        if self.task.sampling_correction:
            scores = scores - known.log_share.ravel()
        item, group, own = known.item.ravel(), known.group.ravel(), jnp.arange(len(items))
        also = (group[:, None] == group) & positive
        among = ((item[:, None] != item) & ~also & used) | (own[:, None] == own)
        losses = jax.nn.logsumexp(scores, axis=1, where=among) - jnp.diagonal(scores)
        weights = (known.labels * terms.training_weights(self.task, known.weights)).ravel()
        return jnp.sum(jnp.where(weights > 0, weights * losses, 0.0))

    def _cosines(self, known: Labels) -> jax.Array:
        """Sum over candidates of w (y (1 - cos) + (1 - y) max(0, cos))."""
        assert known.pairs is not None
        cosine, weights = known.pairs.cosines, terms.training_weights(self.task, known.weights)
        return jnp.sum(weights * (known.labels * (1 - cosine) + (1 - known.labels) * jax.nn.relu(cosine)))

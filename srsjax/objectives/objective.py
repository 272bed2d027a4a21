"""What a kind of task has to answer: its outputs, loss, starting bias, prediction and metrics."""

from __future__ import annotations

import abc
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from srsjax.config import Distill, Fairness, Task
from srsjax.data.batches.batch import Array
from srsjax.data.preparing.statistics import Fitted
from srsjax.errors import InputError
from srsjax.model.heads import Pairs, ProductHead
from srsjax.model.spec import Outputs


class Labels(NamedTuple):
    """What a loss knows of the candidates of one task."""

    labels: Array
    """[..., R, C] float32."""
    weights: Array
    """[..., R, C] float32; 0 = empty slot or unknown label."""
    group: Array
    """[..., R, C] int32, equal within an impression."""
    item: Array | None = None
    """[..., R, C] int32, equal for equal items; None where no task compares the candidates of a batch."""
    log_share: Array | None = None
    """[..., R, C] float32, logarithm of the item's share of the training candidates; None as `item`."""
    pairs: Pairs | None = None
    """What makes logits of every context with every candidate of the batch; None as `item`, and in normalisers."""
    teacher: Array | None = None
    """[..., R, C, K] float32, the teacher's logits of the task; None without a teacher."""
    cohort: Array | None = None
    """[..., R, C] int32, which group of `config.Fairness` each candidate is in; None where no loss asks."""


@dataclass(frozen=True)
class Term:
    """One summand of a task's loss: `share` * `total` / max(`normaliser`, `least`).

    Both are sums, so that the micro-batches of a step add up exactly: the normaliser depends on labels alone and is
    taken over the whole batch before the first micro-batch.
    """

    share: float
    total: Callable[[jax.Array, Labels], jax.Array]
    """(logits [R, C, K] float32, labels) -> float32 scalar."""
    normaliser: Callable[[Labels], jax.Array]
    """labels -> float32 scalar."""
    least: float
    """Smallest divisor: what an empty batch is divided by."""
    whole_impressions: bool = False
    """Whether it compares the candidates of an impression, which then must lie in one row."""


@dataclass(frozen=True)
class Objective(abc.ABC):
    """What one task trains and predicts. There is one subclass for each kind of task, in a module of its own."""

    task: Task
    known: Outputs | None = None
    """Its outputs, with what was found in the training labels (`outputs`); None where only the kind is asked about."""
    distill: Distill | None = None
    """How it learns from a teacher; None without one."""
    fairness: Fairness | None = None
    """The penalty on differences between groups; None without one."""

    kind: ClassVar[str]
    """Value of `Task.kind`."""
    families: ClassVar[tuple[str, ...]]
    """Families of metrics that are reported (`srsjax.metrics.table`)."""
    monitor: ClassVar[str]
    """Metric that chooses the best checkpoint where `evaluate.monitor` names none; `ndcg` is `ndcg@k`."""

    def outputs(self, fitted: Fitted) -> Outputs:
        """The logits of a candidate, by what was fitted on the training labels. Raises KeyError where the task is not
        in it."""
        return Outputs(self.task.name, self.kind)

    @property
    @abc.abstractmethod
    def terms(self) -> tuple[Term, ...]:
        """The summands of the loss; those with share 0 may be left out."""

    def soft_term(self, share: float, temperature: float) -> Term:
        """The loss of the teacher's logits. Raises InputError for a kind that has none."""
        raise InputError(
            f"distill.teacher: task {self.task.name!r} is {self.kind}, which has no soft targets; expected binary, "
            "multiclass, regression, pairwise or listwise tasks"
        )

    def fairness_term(self, share: float) -> Term:
        """The penalty on differences between groups. Raises InputError for a kind that has none."""
        raise InputError(f"fairness.by: task {self.task.name!r} is {self.kind}, expected a binary one as the first")

    @property
    def summands(self) -> tuple[Term, ...]:
        """The terms of the labels; with a teacher, its own: shares 1 - w and w of `Distill.weight`; and penalties."""
        found = [*self.terms]
        if self.distill is not None:
            weight = self.distill.weight
            found = [replace(term, share=term.share * (1 - weight)) for term in found]
            found.append(self.soft_term(weight, self.distill.temperature))
        if self.fairness is not None:
            found.append(self.fairness_term(self.fairness.strength))
        return tuple(term for term in found if term.share > 0)

    @abc.abstractmethod
    def bias(self, chunks: Iterable[tuple[np.ndarray, np.ndarray]]) -> np.ndarray:
        """Where the head's bias starts, [K] float32.

        Args:
          chunks: labels [n] and weights [n], float32, of the training split, a part at a time.
        """

    def training_weights(self, weights: np.ndarray) -> np.ndarray:
        """`terms.training_weights` on the host, for `bias`: [n] float64."""
        weights = np.asarray(weights, np.float64)
        return np.where(weights > 0, np.maximum(weights, 1e-30) ** self.task.weight_power, 0.0)

    @abc.abstractmethod
    def predict(self, logits: np.ndarray) -> np.ndarray:
        """What is written as a score: [..., K] float32 -> [...] float64."""

    def scores(self, logits: jax.Array) -> jax.Array:
        """What is scored, inside of a program: [..., K] float32 -> [...] float32 as `predict` gives it, or [..., K] of
        classes. By default the sigmoid of the logit."""
        return jax.nn.sigmoid(logits[..., 0])

    def columns(self, logits: np.ndarray) -> dict[str, np.ndarray]:
        """What a file of scores says: columns of M values by name, for logits [M, K] float32."""
        return {"score": self.predict(logits).astype(np.float32)}

    def measured(self, logits: np.ndarray) -> np.ndarray:
        """What metrics are taken of: [M, K] float32 -> [M], or [M, K] of classes."""
        return logits[:, 0]

    @property
    def scale(self) -> float:
        """By what a cosine of towers is multiplied at first (`ProductHead`)."""
        return ProductHead.SCALE

    @property
    def in_batch(self) -> bool:
        """Whether the loss reads the pairs of every context with every candidate of the batch."""
        return False

    @property
    def whole_impressions(self) -> bool:
        """Whether the candidates of an impression must lie in one row."""
        return any(term.whole_impressions for term in self.terms)

    def normalisers(self, known: Labels) -> tuple[jax.Array, ...]:
        """The divisor of each term, of a whole batch."""
        return tuple(term.normaliser(known) for term in self.summands)

    def loss(self, logits: jax.Array, known: Labels, normalisers: tuple[jax.Array, ...]) -> jax.Array:
        """This (micro-)batch's share of the task's loss, a float32 scalar; `logits` [R, C, K] float32."""
        loss = jnp.float32(0)
        for term, normaliser in zip(self.summands, normalisers, strict=True):
            loss += term.share * term.total(logits, known) / jnp.maximum(normaliser, term.least)
        return self.task.loss_weight * loss

"""Re-ranking: diverse lists, and lists that explore with known propensities.

All take the candidates of one context by falling score. Diversity orders them anew by their vectors; exploration draws
a list from an order and says how probable each draw was, as off-policy estimators need (inverse propensity scoring:
Horvitz & Thompson 1952; Swaminathan & Joachims 2015).
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from srsjax.errors import InputError

SPAN = 1e-9
"""Squared distance of a unit vector from the span of others below which it counts as lying in it."""


@dataclass(frozen=True)
class MMR:
    """Maximal marginal relevance (Carbonell & Goldstein 1998, "The Use of MMR, Diversity-Based Reranking"): the next
    item is

        argmax_i  weight * r_i - (1 - weight) * max over chosen j of cos(v_i, v_j)
    """

    weight: float = 0.7
    """Of the relevance r, 0 to 1."""

    def __post_init__(self):
        if not 0 <= self.weight <= 1:
            raise InputError(f"MMR weight: found {self.weight}, expected 0 to 1")

    def order(self, relevance: np.ndarray, vectors: np.ndarray, count: int) -> np.ndarray:
        """The positions of the `count` items that are chosen, in this order, int64.

        Args:
          relevance: [n], best first; scaled to 0..1 here.
          vectors: [n, D], of any length above 0.
        """
        r, v = scaled(relevance), units(vectors)
        nearest, left = np.full(len(r), -np.inf), np.ones(len(r), bool)
        chosen: list[int] = []
        for _ in range(min(count, len(r))):
            penalty = nearest if chosen else np.zeros(len(r))
            value = np.where(left, self.weight * r - (1 - self.weight) * penalty, -np.inf)
            best = int(value.argmax())
            chosen.append(best)
            left[best] = False
            nearest = np.maximum(nearest, v @ v[best])
        return np.array(chosen, np.int64)


@dataclass(frozen=True)
class DPP:
    """The greedy most probable list of a determinantal point process (Chen, Zhang & Zhou 2018, "Fast Greedy MAP
    Inference for Determinantal Point Process to Improve Recommendation Diversity"): the next item is

        argmax_i  log det L_{Y + i} - log det L_Y,   L_ij = exp(a r_i) cos(v_i, v_j) exp(a r_j),  a = w / (2 (1 - w))

    so that (1 - w) log det L_Y = w * sum of r + (1 - w) * log det of the cosines. A Cholesky factor grows by a column
    an item: count^2 n operations. No more items than the vectors have dimensions can be independent; those after are
    taken by relevance.
    """

    weight: float = 0.7
    """w, from 0 to below 1."""

    def __post_init__(self):
        if not 0 <= self.weight < 1:
            raise InputError(f"DPP weight: found {self.weight}, expected at least 0 and below 1")

    def order(self, relevance: np.ndarray, vectors: np.ndarray, count: int) -> np.ndarray:
        """As `MMR.order`."""
        r, v = scaled(relevance), units(vectors)
        count = min(count, len(r))
        # Of the cosines alone: exp(a r_i) multiplies row i of the factor, and adds 2 a r_i to the logarithm.
        factor, rest = np.zeros((len(r), count)), np.ones(len(r))
        quality, left = self.weight / (1 - self.weight) * r, np.ones(len(r), bool)
        chosen: list[int] = []
        for step in range(count):
            free = left & (rest > SPAN)
            if not free.any():
                chosen += np.flatnonzero(left)[: count - step].tolist()
                break
            gain = np.where(free, quality + np.log(np.maximum(rest, SPAN)), -np.inf)
            best = int(gain.argmax())
            chosen.append(best)
            left[best] = False
            column = (v @ v[best] - factor[:, :step] @ factor[best, :step]) / np.sqrt(rest[best])
            factor[:, step], rest = column, rest - column**2
        return np.array(chosen, np.int64)


@dataclass(frozen=True)
class EpsilonGreedy:
    """Each place takes the next item of the order, or with a probability `epsilon` any item left, all alike."""

    epsilon: float = 0.1
    keeps_order = True

    def __post_init__(self):
        if not 0 <= self.epsilon <= 1:
            raise InputError(f"EpsilonGreedy epsilon: found {self.epsilon}, expected 0 to 1")

    def draw(self, utility: np.ndarray, count: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """Positions [k] of the items drawn, and the propensity of each: the probability of this item at this place,
        given the items before it; their product is that of the list. `utility` [n] is in the order that is followed."""
        left, chosen, propensity = list(range(len(utility))), [], []
        for _ in range(min(count, len(left))):
            at = int(rng.integers(len(left))) if rng.random() < self.epsilon else 0
            propensity.append((1 - self.epsilon) * (at == 0) + self.epsilon / len(left))
            chosen.append(left.pop(at))
        return np.array(chosen, np.int64), np.array(propensity)


@dataclass(frozen=True)
class PlackettLuce:
    """Draws by softmax without replacement (Plackett 1975; Luce 1959): each place takes item i of those left with the
    probability exp(u_i / temperature) / sum. Drawn at once as the order of u / temperature + Gumbel noise (Yellott
    1977). Like Thompson sampling, it shows an item about as often as it may be the best, if the temperature is that of
    the error of u."""

    temperature: float = 1.0
    """In units of the logit."""
    keeps_order = False

    def __post_init__(self):
        if not self.temperature > 0:
            raise InputError(f"PlackettLuce temperature: found {self.temperature}, expected above 0")

    def draw(self, utility: np.ndarray, count: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """As `EpsilonGreedy.draw`."""
        u = np.asarray(utility, np.float64) / self.temperature
        order = np.argsort(-(u + rng.gumbel(size=len(u))), kind="stable")
        sorted_u = u[order]
        log_left = np.logaddexp.accumulate(sorted_u[::-1])[::-1]  # log of the sum over this item and those after
        return order[:count], np.exp(sorted_u - log_left)[:count]


def within_limits(values: Mapping[str, Sequence[Hashable]], limits: Mapping[str, int], count: int) -> np.ndarray:
    """The positions of the first items of an order so that at most `limits[name]` have the same value of a column.

    Args:
      values: by column, of each of n items, the best first; None is a value like another.
      limits: items of each value, by column.
      count: how many are wanted at most.
    """
    number = len(next(iter(values.values()), ()))
    used: dict[tuple[str, Hashable], int] = {}
    kept: list[int] = []
    for position in range(number):
        if len(kept) == count:
            break
        own = [(name, column[position]) for name, column in values.items()]
        if all(used.get(each, 0) < limits[each[0]] for each in own):
            kept.append(position)
            used |= {each: used.get(each, 0) + 1 for each in own}
    return np.array(kept, np.int64)


def scaled(relevance: np.ndarray) -> np.ndarray:
    """Numbers moved and scaled to 0..1, float64, so that a weight means the same for any task; equal ones to 0."""
    relevance = np.asarray(relevance, np.float64)
    low, high = relevance.min(initial=np.inf), relevance.max(initial=-np.inf)
    return (relevance - low) / (high - low) if high > low else np.zeros(len(relevance))


def units(vectors: np.ndarray) -> np.ndarray:
    """Vectors of length 1, [n, D] float64; one of length 0 stays."""
    vectors = np.asarray(vectors, np.float64)
    return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)

"""How context and candidate meet in the encoder: one object for each interaction, which answers all that depends on it.

Arrays may be of numpy, on the host, or of jax.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import jax

from srsjax.data.batches.batch import Array, PackedBatch
from srsjax.model.attention import Visibility


class Side(NamedTuple):
    """S vectors to read of each row; S is I (contexts) or C (candidates)."""

    slot: Array
    """[R, S] int32, its first token."""
    member: Array
    """[R, L] int32, which one each token belongs to."""
    wanted: Array
    """[R, S] int32, the one that is read."""


def pair_side(batch: PackedBatch) -> Side:
    """Context and candidate as one sequence, for each candidate."""
    xp = batch.segment.__array_namespace__()
    of_context = xp.take_along_axis(batch.context_readout, batch.context_of, axis=1)
    return Side(of_context, batch.segment, batch.context_of + 1)


def context_of_candidate(batch: PackedBatch) -> Side:
    """The context alone, for each candidate."""
    pair = pair_side(batch)
    return pair._replace(member=context_side(batch).member)


def context_side(batch: PackedBatch) -> Side:
    """Each context alone."""
    xp = batch.segment.__array_namespace__()
    member = xp.where(batch.candidate > 0, 0, batch.segment)
    return Side(batch.context_readout, member, _numbers(batch.context_readout))


def candidate_side(batch: PackedBatch) -> Side:
    """Each candidate's own tokens."""
    return Side(batch.readout, batch.candidate, _numbers(batch.readout))


def _numbers(slots: jax.Array) -> jax.Array:
    xp = slots.__array_namespace__()
    return xp.broadcast_to(xp.arange(1, slots.shape[1] + 1), slots.shape)


@dataclass(frozen=True)
class Interaction:
    """Which tokens see which, and what is read of them."""

    name: str
    """Value of `model.interaction`."""
    lower: str
    """Visibility in the layers below `split_layers`, a constructor of `Visibility`."""
    upper: str
    """Visibility in the layers above."""
    candidate: str
    """What the head reads for each candidate: the `pair`, or the `candidate` alone."""
    reads_context: bool = False
    """Whether the head reads a vector of the context besides: it is then a product (`heads.PRODUCTS`)."""
    shares_context: bool = True
    """Whether candidates of an impression share one context in a row; else each pair has its own copy."""
    apart: bool = False
    """Whether context and candidate are a sequence each (`PairTemplate.apart`)."""
    stores_items: bool = False
    """Whether the lower layers of a candidate depend on the candidate alone, so that they can be stored."""
    centres_logits: bool = False
    """Whether the first logits of pre-trained weights are far from the prior of the head's bias (scaled cosines of any
    two texts are far above 0), so that training starts by taking off their mean."""
    classifier: bool = False
    """Whether the model is a sequence classifier as transformers knows it."""

    @property
    def visibilities(self) -> tuple[str, ...]:
        """The visibilities that some layer has, the widest last."""
        return tuple(dict.fromkeys((self.lower, self.upper)))

    def layer_visibility(
        self, split_layers: int, num_layers: int, segment: jax.Array, candidate: jax.Array
    ) -> tuple[Visibility, ...]:
        """Who sees whom in each layer; `segment` and `candidate` [R, L] int32 as in a `PackedBatch`."""
        made = {name: getattr(Visibility, name)(segment, candidate) for name in self.visibilities}
        below = split_layers if self.lower != self.upper else 0
        return (made[self.lower],) * below + (made[self.upper],) * (num_layers - below)

    def alone(self, side: str) -> bool:
        """Whether a `context` or a `candidate` sees itself alone in every layer."""
        return {"context": self.candidate != "pair", "candidate": self.upper == "towers"}[side]

    def candidate_side(self, batch: PackedBatch) -> Side:
        """What is read of each candidate."""
        return pair_side(batch) if self.candidate == "pair" else candidate_side(batch)

    def read(self, batch: PackedBatch) -> tuple[Side, ...]:
        """What the head reads for each candidate, in the order of its arguments."""
        own = self.candidate_side(batch)
        return (context_of_candidate(batch), own) if self.reads_context else (own,)

    def longest_part(self, context: int, candidate: int) -> int:
        """Most tokens of a part of a row that sees itself alone in some layer; 0 where there is none.

        Args:
          context, candidate: most tokens of each, special ones included.
        """
        return {"cross": context + candidate, "towers": max(context, candidate), "shared": 0}[self.lower]


INTERACTIONS = {
    made.name: made
    for made in (
        Interaction("cross", "cross", "cross", candidate="pair", shares_context=False, classifier=True),
        Interaction("shared", "shared", "shared", candidate="candidate"),
        Interaction("split", "towers", "shared", candidate="candidate", stores_items=True),
        Interaction(
            "towers",
            "towers",
            "towers",
            candidate="candidate",
            reads_context=True,
            apart=True,
            centres_logits=True,
        ),
    )
}
"""By the values of `model.interaction`."""

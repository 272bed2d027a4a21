"""Pairwise tasks: of two candidates of an impression, the one with the higher label should have the higher score."""

from __future__ import annotations

from srsjax.objectives import terms
from srsjax.objectives.listwise import Listwise
from srsjax.objectives.objective import Term


class Pairwise(Listwise):
    """A loss of the difference of two scores: logistic (RankNet, Burges et al. 2005; BPR, Rendle et al. 2009) or with a
    margin."""

    kind = "pairwise"
    monitor = "pairwise"

    @property
    def terms(self) -> tuple[Term, ...]:
        """The mean over pairs of different labels."""
        return (terms.pairs(self.task, 1.0),)

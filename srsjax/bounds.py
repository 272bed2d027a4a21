"""Bounds of numbers in a config, written in the type of the field: `rows: AtLeast1 = 32`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

MOST = 2**31 - 1
"""The largest of all counts: what is counted has indices of 32 bits."""


@dataclass(frozen=True)
class Bounds:
    """What a number may be, besides the values in `also`."""

    least: float | None = None
    """The smallest."""
    above: float | None = None
    """It is larger than this."""
    most: float | None = None
    """The largest."""
    below: float | None = None
    """It is smaller than this."""
    also: float | None = None
    """A value with a meaning of its own (-1: the default)."""

    def allow(self, value: float) -> bool:
        """Whether a number is within them."""
        return value == self.also or (
            (self.least is None or value >= self.least)
            and (self.above is None or value > self.above)
            and (self.most is None or value <= self.most)
            and (self.below is None or value < self.below)
        )

    def wanted(self, value: float) -> str:
        """What is expected instead of a number that is not allowed."""
        return f"at most {MOST:,}" if self.most == MOST and value > MOST else str(self)

    def __str__(self) -> str:
        # MOST goes without saying.
        most = None if self.most == MOST else self.most
        words = {"at least": self.least, "more than": self.above, "at most": most, "less than": self.below}
        said = " and ".join(f"{word} {_plain(bound)}" for word, bound in words.items() if bound is not None)
        return said if self.also is None else f"{self.also:g}, or {said}"


def _plain(bound: float) -> str:
    return f"{bound:,.0f}" if float(bound).is_integer() and abs(bound) >= 10_000 else f"{bound:g}"


AtLeast0 = Annotated[int, Bounds(least=0, most=MOST)]
AtLeast1 = Annotated[int, Bounds(least=1, most=MOST)]
AtLeast100 = Annotated[int, Bounds(least=100, most=MOST)]
DefaultOrAtLeast0 = Annotated[int, Bounds(least=0, most=MOST, also=-1)]
RestOrAtLeast1 = Annotated[int, Bounds(least=1, most=MOST, also=-1)]
Positive = Annotated[float, Bounds(above=0)]
NotNegative = Annotated[float, Bounds(least=0)]
DefaultOrShare = Annotated[float, Bounds(least=0, below=0.99, also=-1)]
Share = Annotated[float, Bounds(least=0, most=1)]
PositiveShare = Annotated[float, Bounds(above=0, most=1)]
ShareBelow1 = Annotated[float, Bounds(least=0, below=1)]
OffOrSeconds = Annotated[float, Bounds(least=1, most=7 * 24 * 3600, also=0)]
"""Seconds of a time-out, at most a week; 0 is none."""
Seed = Annotated[int, Bounds(least=0, most=2**32 - 1)]
"""What all generators of random numbers take."""
MOST_STEPS = 100_000_000
"""Steps of a run: of each one the host keeps a few numbers."""
Steps = Annotated[int, Bounds(least=0, most=MOST_STEPS)]
AnyFloat = Annotated[float, Bounds()]
"""A number without bounds: what a missing one becomes."""

"""What is asked of a kind of feature by reading, preparing, storing and batching; the kinds are in `kinds`."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
import pyarrow as pa

from srsjax.config import Categorical, Feature, Numeric, Text, Vector
from srsjax.data.preparing.statistics import FITTED_POLICIES, Fitted, Seen, Statistic
from srsjax.data.reading.vectors import Place


@dataclass(frozen=True)
class Kind:
    """A feature and what its kind means. The defaults are those of a kind that has no missing values."""

    feature: Feature
    reads: ClassVar[Literal["text", "texts", "number", "time", "times", "vector"]]
    """How the column is read (`catalogue.read_values`)."""
    is_text: ClassVar[bool] = False
    """Whether it becomes tokens (`budget`); else it becomes an array (`ArrayKind`)."""
    sides: ClassVar[tuple[str, ...]] = ("context", "candidate")
    """Sides of the schema that it may describe."""
    policies: ClassVar[tuple[str, ...]] = ()
    """What `missing` may be."""
    advised: ClassVar[str] = "constant"
    """The policy that is advised where a value is missing."""

    @property
    def budget(self) -> int:
        """Tokens at most; 0 where it is no text."""
        return 0

    @property
    def length(self) -> int:
        """Numbers in a value of its column, where that is a vector; else 0."""
        return 0

    @property
    def items(self) -> str | None:
        """The catalogue whose keys its column lists; None where it lists none."""
        return None

    @property
    def item_fields(self) -> tuple[str, ...]:
        """The text columns of that catalogue that are read."""
        return ()

    @property
    def since(self) -> str:
        """The column of times that is taken off its own; empty where none is."""
        return ""

    def place(self, kept: str) -> Place | None:
        """Where its vectors are, if its column does not hold them; those of pictures are kept below `kept`."""
        return None

    @property
    def policy(self) -> str:
        """What happens to a missing value (`missing`); empty where none can be missing."""
        return ""

    @property
    def training_only(self) -> bool:
        """Whether evaluation and scoring take a fixed value instead."""
        return False

    @property
    def statistics(self) -> frozenset[Statistic]:
        """What must be known of the training rows."""
        return frozenset()

    @property
    def advice(self) -> str:
        """What was expected where a value is missing, and what to do."""
        feature = self.feature
        return f'a value; clean it or set {type(feature).__name__}("{feature.name}", missing="{self.advised}")'

    def problem(self) -> str:
        """What is wrong with the feature's settings, whatever the tables hold; empty where nothing is."""
        return ""

    def keep(self, seen: Seen, fitted: Fitted) -> None:
        """Adds to `fitted` what is kept of the training rows' values. Raises InputError where there are none to fit."""

    def fill(self, fitted: Fitted) -> str | float:
        """What a missing value becomes."""
        return ""

    def became(self, fitted: Fitted) -> str:
        """The same in words, for the manifest."""
        return ""


@dataclass(frozen=True)
class Filled(Kind):
    """A kind with a policy for missing values."""

    feature: Text | Categorical | Numeric | Vector

    @property
    def policy(self) -> str:
        return self.feature.missing

    @property
    def statistics(self) -> frozenset[Statistic]:
        return frozenset({"counts"} if self.policy == "most_frequent" else ())

    def problem(self) -> str:
        if self.policy in self.policies:
            return ""
        expected = ", ".join(self.policies)
        return f"found missing={self.policy!r}, expected one of {expected} for {type(self.feature).__name__}"

    def keep(self, seen: Seen, fitted: Fitted) -> None:
        if self.policy in FITTED_POLICIES:
            fitted.fills[self.feature.name] = seen.fill(self.policy)

    def fill(self, fitted: Fitted) -> str | float:
        """Where `drop` or `error` let no missing value through, the config's `fill` never shows."""
        return fitted.fills.get(self.feature.name, self.feature.fill)

    def became(self, fitted: Fitted) -> str:
        match self.policy:
            case "error":
                return "set aside"
            case "drop":
                return "left out"
            case "constant":
                return f"the constant {self.feature.fill!r}"
            case "indicator":
                return "a vector of the model"
            case policy:
                return f"the {policy.replace('_', ' ')} value {fitted.fills[self.feature.name]!r}"


@dataclass(frozen=True)
class ArrayKind(Filled, ABC):
    """A kind that is stored as an array, one value a context or candidate, and read by an input of the model."""

    name: ClassVar[str]
    """By which the model finds its input (`InputSpec.kind`)."""
    dtype: ClassVar[type]
    """Of the stored array."""

    @property
    def row_shape(self) -> tuple[int, ...]:
        """Shape of one value; the stored array is [n, *row_shape]."""
        return ()

    @abstractmethod
    def array(self, values: pa.Array, fitted: Fitted) -> np.ndarray:
        """Values [n] as `read_values` gives them, null where missing, as an array [n, *row_shape] of `dtype`."""

    def size(self, fitted: Fitted) -> int:
        """Rows of the vocabulary, the unknown id 0 included, or the length of a vector; 1 for a number."""
        return 1

    def moments(self, fitted: Fitted) -> tuple[float, float]:
        """Mean and standard deviation of the training rows by which the model scales it; 0 and 1 leave it as it is."""
        return 0.0, 1.0

    def options(self, fitted: Fitted) -> dict[str, Any]:
        """Further fields of its `InputSpec`."""
        return {}

"""What a feature is: one class a kind of feature, which answers all that reading, preparing, storing and batching ask.

A new kind is a dataclass in the config, a class here (and its line in `KINDS`) and, for the model, an input.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from srsjax.config import Categorical, Feature, History, Numeric, Schema, Text, Vector
from srsjax.data.kind import ArrayKind, Filled, Kind
from srsjax.data.preparing.statistics import Fitted, Seen, Statistic
from srsjax.data.reading import hashing
from srsjax.data.reading.vectors import Place

# ---------------------------------------------------------------------------------------------- text


@dataclass(frozen=True)
class TextKind(Filled):
    """A text, tokenised."""

    feature: Text
    reads = "text"
    is_text = True
    policies = ("error", "drop", "constant", "most_frequent")

    @property
    def budget(self) -> int:
        return self.feature.max_tokens


@dataclass(frozen=True)
class HistoryKind(Kind):
    """A list of catalogue items, whose texts are read. A missing list is an empty one, which is an ordinary history."""

    feature: History
    reads = "texts"
    is_text = True
    sides = ("context",)

    @property
    def budget(self) -> int:
        return self.feature.max_tokens

    @property
    def items(self) -> str:
        return self.feature.catalogue

    @property
    def item_fields(self) -> tuple[str, ...]:
        return self.feature.fields

    def problem(self) -> str:
        return "" if self.item_fields else f"no fields, expected the text columns of {self.items!r} to read"


# ---------------------------------------------------------------------------------------------- arrays


@dataclass(frozen=True)
class CategoricalKind(ArrayKind):
    """Ids; 0 where missing and not filled, or unknown."""

    feature: Categorical
    name = "categorical"
    policies = ("error", "drop", "constant", "most_frequent")
    dtype = np.int32

    @property
    def reads(self) -> Literal["text", "texts", "times"]:  # type: ignore[override]  # by the feature, not by its kind
        if self.feature.times:
            return "times"
        return "texts" if self.feature.max_values > 1 else "text"

    @property
    def since(self) -> str:
        return self.feature.until

    @property
    def row_shape(self) -> tuple[int, ...]:
        return (self.feature.max_values,) if self.feature.max_values > 1 else ()

    @property
    def items(self) -> str | None:
        return self.feature.of.partition(".")[0] if self.feature.of else None

    @property
    def item_fields(self) -> tuple[str, ...]:
        return (self.feature.of.partition(".")[2],) if self.feature.of else ()

    def problem(self) -> str:
        feature = self.feature
        if feature.max_values == 1 and (
            feature.of or feature.along or feature.times or feature.pooling == "transformer"
        ):
            return "found max_values=1, expected more: `of`, `along`, `times` and pooling='transformer' are for lists"
        if bool(feature.until) != (feature.times == "recency"):
            return f"found until={feature.until!r}, expected a column with times='recency', and with that alone"
        if feature.times and (feature.of or feature.like):
            return "found times with `of` or `like`, expected neither: times are no keys, and have their own embeddings"
        if feature.along and feature.pooling != "mean":
            return f"found pooling={feature.pooling!r} with `along`, expected that of the other list alone"
        if self.feature.max_values > 1 and self.policy not in ("constant", "drop", "error"):
            return f"found missing={self.policy!r}, expected constant, drop or error for a list of categories"
        if self.training_only and self.feature.max_values > 1:
            return "found training_only=True, expected a single value and not a list"
        return super().problem()

    @property
    def training_only(self) -> bool:
        return self.feature.training_only

    @property
    def statistics(self) -> frozenset[Statistic]:
        # A hash needs no vocabulary; the commonest value to fill with is counted all the same.
        own = not (self.feature.hash_buckets or self.feature.like)
        return frozenset({"counts"}) if own else super().statistics

    def keep(self, seen: Seen, fitted: Fitted) -> None:
        super().keep(seen, fitted)
        if not self.feature.like:
            fitted.vocabularies[self.feature.name] = seen.vocabulary(self.feature.min_count)

    def array(self, values: pa.Array, fitted: Fitted) -> np.ndarray:
        fill = self.fill(fitted)
        if self.feature.max_values == 1:
            return self._ids(pc.fill_null(values, fill) if fill else values, fitted)
        out = np.zeros((len(values), self.feature.max_values), np.int32)
        lengths = np.asarray(pc.fill_null(pc.list_value_length(values), 0), np.int64)
        row = np.repeat(np.arange(len(values)), lengths)
        at = np.arange(len(row)) - np.repeat(np.cumsum(lengths) - lengths, lengths)
        read = at < self.feature.max_values
        out[row[read], at[read]] = self._ids(pc.list_flatten(values), fitted)[read]
        if fill:
            out[np.asarray(values.is_null()), 0] = self._ids(pa.array([fill]), fitted)[0]
        return out

    def _ids(self, values: pa.Array, fitted: Fitted) -> np.ndarray:
        """Ids [n] of texts [n], 0 where null or unknown."""
        if self.feature.hash_buckets:
            ids = 1 + (hashing.hash_texts(values) % np.uint64(self.feature.hash_buckets)).astype(np.int32)
            return np.where(np.asarray(values.is_null()), 0, ids).astype(np.int32)
        vocabulary = fitted.vocabularies.get(self.feature.like or self.feature.name, [])
        known = pc.index_in(values, pa.array(vocabulary, values.type))
        return np.where(np.asarray(values.is_null()), 0, pc.add(known, 1).fill_null(0).to_numpy()).astype(np.int32)

    def options(self, fitted: Fitted) -> dict[str, Any]:
        feature = self.feature
        fill = pa.array([self.fill(fitted) or None], pa.string())
        return {
            "fixed": float(self._ids(fill, fitted)[0]) if feature.training_only else None,
            "values": feature.max_values,
            "width": feature.width,
            "dropout": feature.dropout,
            "like": feature.like,
            "along": feature.along,
            "pooling": feature.pooling,
        }

    def size(self, fitted: Fitted) -> int:
        return 1 + (self.feature.hash_buckets or len(fitted.vocabularies[self.feature.like or self.feature.name]))


@dataclass(frozen=True)
class NumericKind(ArrayKind):
    """A number as it is; the model scales it by the training rows."""

    feature: Numeric
    name = "numeric"
    policies = ("error", "drop", "constant", "mean", "median", "most_frequent", "indicator")
    advised = "median"
    dtype = np.float32

    @property
    def reads(self) -> Literal["number", "time"]:  # type: ignore[override]  # by the feature, not by its kind
        return "time" if self.feature.scale == "cyclic" or self.since else "number"

    @property
    def since(self) -> str:
        return self.feature.since

    @property
    def statistics(self) -> frozenset[Statistic]:
        own: set[Statistic] = {"log_moments" if self.feature.scale == "log" else "moments"}
        own |= {"quantiles"} if self.feature.scale == "quantile" else set()
        own |= {"median"} if self.policy == "median" else set()
        return super().statistics | own

    def problem(self) -> str:
        if self.feature.scale == "log" and self.policy == "mean":
            return "found missing='mean' with scale='log', expected another policy: the mean kept is that of logarithms"
        if self.training_only and self.policy == "indicator":
            return "found missing='indicator' with training_only, expected a value that scoring can take"
        return super().problem()

    def keep(self, seen: Seen, fitted: Fitted) -> None:
        super().keep(seen, fitted)
        fitted.numbers[self.feature.name] = seen.moments()
        if self.feature.scale == "quantile":
            fitted.edges[self.feature.name] = seen.quantiles(self.feature.buckets)

    def array(self, values: pa.Array, fitted: Fitted) -> np.ndarray:
        fill = float("nan") if self.policy == "indicator" else float(self.fill(fitted))
        numbers = pc.fill_null(values.cast(pa.float64()), fill).to_numpy()
        # Seconds since 1970 are too large for float32: the hour would be rounded to two minutes.
        return (numbers % self.feature.period if self.feature.scale == "cyclic" else numbers).astype(np.float32)

    def options(self, fitted: Fitted) -> dict[str, Any]:
        edges = tuple(fitted.edges[self.feature.name]) if self.feature.scale == "quantile" else ()
        missing = self.policy == "indicator"
        fill = float("nan") if missing else float(self.fill(fitted))
        fixed = fill if self.training_only else None
        period = self.feature.period if self.feature.scale == "cyclic" else 0.0
        scale = self.feature.scale
        return {"scale": scale, "may_be_missing": missing, "edges": edges, "fixed": fixed, "period": period}

    @property
    def training_only(self) -> bool:
        return self.feature.training_only

    def moments(self, fitted: Fitted) -> tuple[float, float]:
        found = fitted.numbers[self.feature.name]
        return found["mean"], found["std"]


@dataclass(frozen=True)
class VectorKind(ArrayKind):
    """A vector of `size` numbers."""

    feature: Vector
    name = "vector"
    reads = "vector"
    policies = ("error", "drop", "constant", "indicator")
    dtype = np.float32

    @property
    def length(self) -> int:
        return self.feature.size

    def place(self, kept: str) -> Place | None:
        return Place(self.feature.files, self.feature.encoder, kept) if self.feature.files else None

    @property
    def row_shape(self) -> tuple[int, ...]:
        return (self.length,)

    def problem(self) -> str:
        if self.feature.encoder and not self.feature.files:
            return "found an encoder without files, expected the folder of the pictures that it reads"
        return super().problem() if self.length else "found size=0, expected the length of its vectors"

    def array(self, values: pa.Array, fitted: Fitted) -> np.ndarray:
        fill = float("nan") if self.policy == "indicator" else self.fill(fitted)
        out = np.full((len(values), self.length), fill, np.float32)
        out[np.asarray(values.is_valid())] = values.flatten().to_numpy().reshape(-1, self.length)
        return out

    def size(self, fitted: Fitted) -> int:
        return self.length

    def options(self, fitted: Fitted) -> dict[str, Any]:
        return {"may_be_missing": self.policy == "indicator"}


KINDS: dict[type, type[Kind]] = {
    Text: TextKind,
    History: HistoryKind,
    Categorical: CategoricalKind,
    Numeric: NumericKind,
    Vector: VectorKind,
}


def kind_of(feature: Feature) -> Kind:
    """What a feature is."""
    return KINDS[type(feature)](feature)


def of_kind[K: Kind](features: Iterable[Feature], kind: type[K]) -> list[K]:
    """Those of the features that are of a kind (`ArrayKind`: all that are stored as arrays), in their order."""
    return [each for each in map(kind_of, features) if isinstance(each, kind)]


def is_text(feature: Feature) -> bool:
    """Whether a feature becomes tokens."""
    return kind_of(feature).is_text


def shown_by(schema: Schema) -> frozenset[str]:
    """Names of the features that say how a candidate was shown and not what it is (`training_only`)."""
    both = (*schema.context, *schema.candidate)
    return frozenset(feature.name for feature in both if kind_of(feature).training_only)


def has_text(schema: Schema) -> bool:
    """Whether any feature becomes tokens."""
    return any(map(is_text, (*schema.context, *schema.candidate)))

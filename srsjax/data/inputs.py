"""What a model must know of the features besides text: made from the schema and the manifest of a store."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from srsjax.config import Feature, Schema
from srsjax.data.kind import ArrayKind
from srsjax.data.kinds import of_kind
from srsjax.data.preparing.statistics import Fitted
from srsjax.errors import InputError

Side = Literal["context", "candidate"]


@dataclass(frozen=True)
class InputSpec:
    """A feature besides text as a model may read it: what is in `context_features` or `candidate_features`."""

    name: str
    side: Side
    kind: str
    """`ArrayKind.name`: `categorical`, `numeric` or `vector`."""
    size: int
    """Rows of the vocabulary, the unknown id 0 included, or the length of a vector; 1 for a number."""
    mean: float = 0.0
    """Of a number in the training rows."""
    deviation: float = 1.0
    """Standard deviation of a number in the training rows; 0 where all are equal or none is there."""
    scale: str = "standard"
    """Of a number: `Numeric.scale`; mean and deviation are those of the logarithms for `log`."""
    period: float = 0.0
    """Of a number with `scale="cyclic"`: after which it begins again; 0 of others."""
    edges: tuple[float, ...] = ()
    """Numbers between which the buckets of `scale="quantile"` lie, ascending."""
    may_be_missing: bool = False
    """Whether a number or a vector may be NaN, which is then a vector of its own."""
    values: int = 1
    """Ids of one value of a category."""
    width: int = 0
    """Length of the embeddings of a category, which are then mapped to that of the model; 0 is that of the model."""
    dropout: float = 0.0
    """Share of ids that become 0 in training."""
    fixed: float | None = None
    """Value (of a category its id) that is read outside of training instead of the feature's; None reads it always."""
    like: str = ""
    """The feature whose embeddings it shares; empty where it has its own."""
    along: str = ""
    """The list to whose embeddings its own are added; empty where it has a vector of its own."""
    pooling: str = "mean"
    """Of several ids: `Categorical.pooling`."""


def input_specs(schema: Schema, manifest: dict[str, Any]) -> tuple[InputSpec, ...]:
    """All features besides text, context first, in schema order; `manifest` is that of the prepared store, or the copy
    in a run folder.

    Raises InputError where the manifest holds no statistics of a feature: it is that of another schema, or of labelled
    files (`labelled_store`), which fit nothing.
    """
    fitted, out = Fitted(**manifest.get("fitted", {})), []
    sides: dict[Side, tuple[Feature, ...]] = {"context": schema.context, "candidate": schema.candidate}
    for side, features in sides.items():
        for kind in of_kind(features, ArrayKind):
            try:
                mean, deviation = kind.moments(fitted)
                size, options = kind.size(fitted), kind.options(fitted)
                out.append(InputSpec(kind.feature.name, side, kind.name, size, mean, deviation, **options))
            except KeyError:
                raise InputError(
                    f"schema.{side} feature {kind.feature.name!r}: the manifest has no statistics of it, expected the "
                    "manifest of a store prepared with this schema; prepare the data again"
                ) from None
    return tuple(out)

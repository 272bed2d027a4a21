"""Contexts and candidates given as Python values instead of files: as a chunk of rows, with the same checks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa

from srsjax.config import Text
from srsjax.data.preparing.sources import Column, Sources
from srsjax.data.reading.tables import Chunk
from srsjax.errors import InputError, did_you_mean, nearest

# Values by column name of the log or of a catalogue, or the text itself where that side has exactly one Text feature.
Value = str | Mapping[str, object]


def chunk_of(sources: Sources, side: str, values: Sequence[Value]) -> Chunk:
    """The values of one side (`context` or `candidate`) as a chunk: a column for each name that any of them has, null
    where one has not. In error messages their file is `context` or `candidate`.

    Raises InputError for a value that is neither a text nor a mapping, a plain text where the side has not exactly one
    Text feature, and columns of mixed types.
    """
    for row, value in enumerate(values):
        if not isinstance(value, str | Mapping):
            raise InputError(
                f"{side} values: found {value!r} as number {row + 1}, expected a text or a mapping of column names to "
                "values; a missing value is None within a mapping"
            )
    rows = [{_only_text(sources, side): value} if isinstance(value, str) else dict(value) for value in values]
    out = {}
    for name in dict.fromkeys(name for row in rows for name in row):
        try:
            out[name] = pa.array([row.get(name) for row in rows])
        except (pa.ArrowInvalid, pa.ArrowTypeError) as error:
            raise InputError(f"{side} values, column {name}: values of different types ({error})") from error
    out = out or {"": pa.nulls(len(rows))}
    return Chunk(Path(side), 0, pa.RecordBatch.from_pydict(out))


def own_rows(sources: Sources, name: str, chunk: Chunk) -> tuple[np.ndarray, dict[Column, str]]:
    """Which values bring the columns of a catalogue themselves, [n] bool, and in which columns; the others are looked
    up by the key.

    Raises InputError where they hold neither key nor columns, or only some of its columns.
    """
    given, on = set(chunk.batch.schema.names), set(sources.on(name))
    own = sources.own_columns(name, given)
    more = [column for column in own.values() if column not in on]
    if not given & set(more):
        if not on <= given:
            expected = [*on, *more]
            near = next((hint for each in sorted(given) if (hint := did_you_mean(each, expected))), "")
            raise InputError(
                f"{chunk.path} values: found {_listed(given)}, expected the key of catalogue {name!r} "
                f"({', '.join(sources.on(name))}) or its columns {', '.join(more)}{near}"
            )
        return np.zeros(len(chunk), bool), own
    for column in own.values():
        require(chunk, column)
    if not on <= given:
        return np.ones(len(chunk), bool), own
    return np.any([_there(chunk, column) for column in more if column in given], axis=0) | ~np.all(
        [_there(chunk, column) for column in on], axis=0
    ), own


def require(chunk: Chunk, column: str) -> None:
    """Raises InputError where no value has this column."""
    given = chunk.batch.schema.names
    if column not in given:
        near = nearest(column, given)
        hint = f"; for {near!r}, did you mean {column!r}?" if near else ""
        raise InputError(f"{chunk.path} values: no column {column!r}, found {_listed(given)}{hint}")


def _there(chunk: Chunk, column: str) -> np.ndarray:
    return np.asarray(chunk.batch[column].is_valid())


def _only_text(sources: Sources, side: str) -> str:
    features = getattr(sources.schema, side)
    if len(features) != 1 or not isinstance(features[0], Text):
        names = sorted({sources.column(feature).name for feature in features})
        raise InputError(f"{side} values: found a text, expected a mapping with {_listed(names)}")
    return sources.column(features[0]).name


def _listed(names) -> str:
    return ", ".join(repr(name) for name in names if name) or "nothing"

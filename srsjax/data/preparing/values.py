"""Contexts and candidates given as Python values instead of files: as a chunk of rows, with the same checks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import pyarrow as pa

from srsjax.data.kinds import TextKind, of_kind
from srsjax.data.preparing.catalogue import Catalogue, find_items, history_advice, read_values
from srsjax.data.preparing.sources import Sources
from srsjax.data.reading.tables import Chunk
from srsjax.errors import InputError, did_you_mean, nearest

# Values by column name of the log or of a catalogue, or the text itself where that side has exactly one Text feature.
Value = str | Mapping[str, object]


def chunk_of(sources: Sources, side: str, values: Sequence[Value]) -> Chunk:
    """The values of one side (`context` or `candidate`) as a chunk: a column for each name that any of them has, null
    where one has not. In error messages their file is `context` or `candidate`.

    Raises InputError for a value that is neither a text nor a mapping, for a plain text where the side has not exactly
    one Text feature, and for columns of mixed types.
    """
    for number, value in enumerate(values, 1):
        if not isinstance(value, str | Mapping):
            raise InputError(
                f"{side} values: found {value!r} as number {number}, expected a text or a mapping of column names to "
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


def stand_in(
    sources: Sources, name: str, chunk: Chunk, given_as: Sequence[Value], catalogues: dict[str, Catalogue]
) -> Catalogue | None:
    """A catalogue made of the values themselves, row for row, where they hold its columns; None where just its key.

    Raises InputError where they hold neither, or only some of its columns, or some values hold just the key. `chunk` is
    `chunk_of` the values `given_as`.
    """
    spec, side = sources.catalogues[name], chunk.path.name
    given = set(chunk.batch.schema.names)
    read = {column for feature in getattr(sources.schema, side) for column in sources.read(feature)}
    wanted = [column for column in sources.catalogue_columns(name, splitting=False) if column in read]
    on = set(sources.on(name))
    if not given & ({column.name for column in wanted} - on):
        if not on <= given:
            columns = ", ".join(column.name for column in wanted)
            expected = [*on, *(column.name for column in wanted)]
            hint = next((hint for each in sorted(given) if (hint := did_you_mean(each, expected))), "")
            raise InputError(
                f"{side} values: found {_listed(given)}, expected the key of catalogue {name!r} "
                f"({', '.join(sources.on(name))}) or its columns {columns}{hint}"
            )
        return None
    own = {column.name for column in wanted} - on
    for number, value in enumerate(given_as, 1):
        if isinstance(value, Mapping) and not own & set(value):
            raise InputError(
                f"{side} values: number {number} has {_listed(value)} and others columns of catalogue {name!r}, "
                f"expected all by their key or all by {_listed(sorted(own))}; score the two in two calls"
            )
    problems = sources.problems(name)
    values = {}
    for column in wanted:
        require(chunk, column.name)
        values[column] = read_values(chunk, column, problems)
        if column.items:
            items = catalogues[column.items]
            values[column], lost = find_items(values[column], column, items)
            if items.spec.unknown == "error":
                problems.report(chunk, lost > 0, column.name, history_advice(items.spec))
    return Catalogue.of_values(spec, values)


def require(chunk: Chunk, column: str) -> None:
    """Raises InputError where no value has this column."""
    given = chunk.batch.schema.names
    if column not in given:
        near = nearest(column, given)
        hint = f"; for {near!r}, did you mean {column!r}?" if near else ""
        raise InputError(f"{chunk.path} values: no column {column!r}, found {_listed(given)}{hint}")


def _only_text(sources: Sources, side: str) -> str:
    features = getattr(sources.schema, side)
    if len(features) != 1 or not of_kind(features, TextKind):
        names = sorted({sources.column(feature).name for feature in features})
        raise InputError(f"{side} values: found a text, expected a mapping with {_listed(names)}")
    return sources.column(features[0]).name


def _listed(names) -> str:
    return ", ".join(repr(name) for name in names if name) or "nothing"

"""Catalogues: tables of items, users or queries, read whole and joined to log rows by key.

A catalogue is held in memory (the log never is): its columns as Arrow arrays and its keys as sorted 64-bit hashes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from srsjax import config
from srsjax.config import columns
from srsjax.data.kinds import kind_of
from srsjax.data.preparing.sources import Column, Sources
from srsjax.data.reading import cells, hashing, tables
from srsjax.data.reading.vectors import open_vectors
from srsjax.errors import InputError

SetAside = Callable[[cells.Problem], None]


@dataclass(frozen=True)
class Catalogue:
    """V rows with unique keys."""

    spec: config.Catalogue
    hashes: np.ndarray
    """[V] uint64, hashes of the keys, sorted."""
    order: np.ndarray
    """[V] int64, row of each hash."""
    values: dict[Column, pa.Array]
    """Columns of V values each, null where missing."""
    draws: np.ndarray | None = None
    """[V] float64, the sums up to each row of `data.negatives_by`; None where rows are drawn all alike."""

    @classmethod
    def of_values(cls, spec: config.Catalogue, values: dict[Column, pa.Array]) -> Catalogue:
        """Rows without keys: they are known by their number only."""
        return cls(spec, np.zeros(0, np.uint64), np.zeros(0, np.int64), values)

    def __len__(self) -> int:
        return len(self.hashes)

    def find(self, hashes: np.ndarray) -> np.ndarray:
        """Rows of these key hashes, [n] int64; -1 where the key is not here."""
        place = np.minimum(np.searchsorted(self.hashes, hashes), len(self.hashes) - 1)
        return np.where(self.hashes[place] == hashes, self.order[place], -1)

    def missing(self, column: Column) -> np.ndarray:
        """[V + 1] bool, where a column has no value; the last is true, for a row that is not here (number -1)."""
        return np.append(np.asarray(self.values[column].is_null()), True)


def read_catalogues(sources: Sources, set_aside: SetAside, splitting: bool = True) -> dict[str, Catalogue]:
    """Reads every catalogue that the schema uses or, with `splitting`, that decides the split.

    `set_aside` takes the bad rows under `on_bad_row="skip"`.

    Raises InputError for a key that is missing or appears twice, and for a value that cannot be read.
    """
    used = set(sources.joined(splitting))
    histories = {column for column in map(sources.column, sources.features) if column.items}
    used |= {column.items for column in histories}
    places: dict[str, list[tables.Chunk]] = {}
    found = {name: _read(sources, name, splitting, places.setdefault(name, []), set_aside) for name in used}
    for column in histories:
        if column.table:
            _resolve_history(column, found, places[column.table])
    return found


def add_rows(sources: Sources, catalogue: Catalogue, table: config.Table) -> Catalogue:
    """A catalogue with the rows of a log whose keys it lacks, the first of each key, where the log has all columns that
    are read from the catalogue; else the catalogue itself. Histories are not read from a log."""
    on = sources.on(catalogue.spec.name)
    wanted = {*on, *(column.name for column in catalogue.values)}
    if not wanted <= set(tables.column_names(table)) or any(column.kind == "texts" for column in catalogue.values):
        return catalogue
    hashes, parts = [], {column: [array] for column, array in catalogue.values.items()}
    known = catalogue.hashes
    for chunk in tables.read(table, sorted(wanted)):
        problems = sources.problems()
        hashed, missing = key_hashes(chunk, on, problems)
        unique, first = np.unique(hashed, return_index=True)
        new = np.sort(first[~np.isin(unique, known) & ~missing[first]])
        if len(new):
            hashes.append(hashed[new])
            known = np.union1d(known, hashed[new])
            for column, part in parts.items():
                part.append(read_values(chunk, column, problems).take(pa.array(new)))
    if not hashes:
        return catalogue
    own = np.empty(len(catalogue), np.uint64)
    own[catalogue.order] = catalogue.hashes
    hashed = np.concatenate([own, *hashes])
    order = np.argsort(hashed, kind="stable")
    values = {column: pa.concat_arrays(part) for column, part in parts.items()}
    return Catalogue(catalogue.spec, hashed[order], order, values)


def key_hashes(chunk: tables.Chunk, names: tuple[str, ...], problems: cells.Problems) -> tuple[np.ndarray, np.ndarray]:
    """Hashes of a key of one or several columns, [n] uint64, and where a part of it is missing, [n] bool."""
    parts = [cells.texts(chunk, name, problems) for name in names]
    missing = np.any([np.asarray(part.is_null()) for part in parts], axis=0)
    return hashing.combine([hashing.hash_texts(part) for part in parts]), missing


def read_values(chunk: tables.Chunk, column: Column, problems: cells.Problems) -> pa.Array:
    """A column as its kind says, null where missing: text, list of texts, float64 (of times, in seconds), list of such
    times or fixed-size list of float32."""
    match column.kind:
        case "text":
            found = cells.texts(chunk, column.name, problems).cast(pa.large_string())
            return hashing.pseudonyms(found, column.secret) if column.secret else found
        case "texts":
            return cells.text_lists(chunk, column.name, problems).cast(pa.large_list(pa.large_string()))
        case "times":
            return cells.time_lists(chunk, column.name, problems)
        case "number" | "time":
            read = cells.times if column.kind == "time" else cells.numbers
            numbers, missing = read(chunk, column.name, problems)
            return pa.array(numbers, mask=missing)
        case _:
            if column.place:
                files = open_vectors(column.place)
                vectors, missing, bad = files.read(cells.texts(chunk, column.name, problems), column.size)
                problems.report(chunk, bad, column.name, files.expected)
            else:
                vectors, missing = cells.vectors(chunk, column.name, column.size, problems)
            flat = pa.array(vectors.reshape(-1))
            return pa.FixedSizeListArray.from_arrays(flat, column.size, mask=pa.array(missing))


def find_items(lists: pa.Array, column: Column, catalogue: Catalogue) -> tuple[pa.Array, np.ndarray]:
    """What a column of lists of keys reads, keys that are not in the catalogue left out; and how many each list lost.

    Returns ([n] large_list<int64>, rows of the catalogue; or, where a column of it stands for each key,
    large_list<large_string>, null where the list is missing), ([n] int64).
    """
    lengths = np.asarray(pc.fill_null(pc.list_value_length(lists), 0), np.int64)
    rows = catalogue.find(hashing.combine([hashing.hash_texts(pc.list_flatten(lists))]))
    known = np.concatenate([[0], np.cumsum(rows >= 0)])
    ends = np.cumsum(lengths)
    offsets = np.append(known[ends - lengths], known[-1])
    lost, rows = lengths - np.diff(offsets), rows[rows >= 0]
    if not column.of:
        return pa.LargeListArray.from_arrays(offsets, rows), lost
    values = catalogue.values[Column(column.items, column.of, "text")].take(pa.array(rows))
    return pa.LargeListArray.from_arrays(pa.array(offsets), values, mask=lists.is_null()), lost


def _read(sources: Sources, name: str, splitting: bool, places: list[tables.Chunk], set_aside: SetAside) -> Catalogue:
    spec = sources.catalogues[name]
    key, wanted = columns(spec.key), sources.catalogue_columns(name, splitting)
    own = [feature for feature in sources.features if sources.column(feature).table == name]
    strict = [kind for kind in map(kind_of, own) if kind.policy == "error"]
    hashes: list[np.ndarray] = []
    parts: dict[Column, list[pa.Array]] = {column: [] for column in wanted}
    for chunk in tables.read(spec, [*dict.fromkeys([*key, *(column.name for column in wanted)])]):
        problems = sources.problems(name, sources.data.on_bad_row)
        hashed, missing = key_hashes(chunk, key, problems)
        problems.report(chunk, missing, key[0], "a key; every row of a catalogue needs one")
        values = {column: read_values(chunk, column, problems) for column in wanted}
        for kind in strict:
            column = sources.column(kind.feature)
            problems.report(chunk, np.asarray(values[column].is_null()), column.name, kind.advice)
        good = np.flatnonzero(~problems.mask(chunk))
        for problem in problems.by_row.values():
            set_aside(problem)
        hashes.append(hashed[good])
        for column, array in values.items():
            parts[column].append(array if len(good) == len(chunk) else array.take(pa.array(good)))
        places.append(_place(chunk, good))
    hashed = np.concatenate(hashes)
    if not len(hashed):
        raise InputError(f"catalogue {name!r}: every row was set aside, expected at least one that can be read")
    order = np.argsort(hashed, kind="stable")
    _check_unique(spec, hashed[order], order, places)
    values = {column: pa.concat_arrays(part) for column, part in parts.items()}
    draws = None
    if sources.drawn_by in values:
        draws = _draws(values[sources.drawn_by], sources.drawn_by, spec)
        if sources.drawn_by not in map(sources.column, own):  # read for this alone
            del values[sources.drawn_by]
    return Catalogue(spec, hashed[order], order, values, draws)


def _draws(values: pa.Array, column: Column, spec: config.Catalogue) -> np.ndarray:
    """`Catalogue.draws`; a missing number is 0.

    Raises InputError for a number below 0, and where fewer than two rows can be drawn.
    """
    numbers = pc.fill_null(values, 0.0).to_numpy()
    if (numbers < 0).any() or (numbers > 0).sum() < 2:
        found = f"{numbers.min():g}" if (numbers < 0).any() else f"{(numbers > 0).sum()} rows above 0"
        raise InputError(
            f"data.negatives_by: found {found} in column {column.name!r} of {spec.files}, expected numbers of at least "
            "0, two of them above it"
        )
    return np.cumsum(numbers)


def _check_unique(spec: config.Catalogue, hashes: np.ndarray, order: np.ndarray, places: list[tables.Chunk]) -> None:
    twice = np.flatnonzero(hashes[1:] == hashes[:-1])
    if len(twice):
        at = twice[np.argmin(order[twice + 1])]  # the first row of the file that repeats a key
        first, second = _where(places, int(order[at])), _where(places, int(order[at + 1]))
        raise InputError(
            f"{second}: the same key ({', '.join(columns(spec.key))}) as {first}, expected unique keys; "
            f"remove one of the rows or add a column to the key of catalogue {spec.name!r}"
        )


def _resolve_history(column: Column, catalogues: dict[str, Catalogue], places: list[tables.Chunk]) -> None:
    """Turns the keys in a catalogue's history column into rows of the catalogue they name."""
    items, owner = catalogues[column.items], catalogues[column.table]
    found, lost = find_items(owner.values[column], column, items)
    if items.spec.unknown == "error" and lost.any():
        raise InputError(
            f"{_where(places, int(np.argmax(lost > 0)))}, column {column.name}: {history_advice(items.spec)}"
        )
    owner.values[column] = found


def history_advice(catalogue: config.Catalogue) -> str:
    """What was expected of the keys in a history."""
    return (
        f'keys of catalogue {catalogue.name!r}; add them to {catalogue.files} or set unknown="drop" there '
        "to leave such items out of histories"
    )


def _place(chunk: tables.Chunk, rows: np.ndarray) -> tables.Chunk:
    """Where rows of a chunk come from, without their values."""
    kept = chunk if len(rows) == len(chunk) else chunk.take(rows)
    return replace(kept, batch=pa.RecordBatch.from_arrays([pa.nulls(len(rows))], ["nothing"]))


def _where(places: list[tables.Chunk], row: int) -> str:
    for place in places:
        if row < len(place):
            return place.where(row)
        row -= len(place)
    raise IndexError(row)

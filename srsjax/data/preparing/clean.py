"""Log rows checked and joined: the one place where a row is refused, left out or set aside.

What comes out are *clean rows*, one a candidate, as a self-contained record batch (it can be spilled to disk,
filtered and sorted, and nothing in it can be wrong any more):

    example             int64, number of the candidate in the input
    impression          int64, number of its impression (log row); the rows of one are adjacent
    row:CATALOGUE       int64, row of the catalogue; -1 where the key is unknown and `unknown="missing"`
    feature:NAME        values of a feature that the log holds (`catalogue.read_values`; a history: list of int64 rows)
    label:TASK          float32, or the name of a class; weight:TASK float32, 0 where the label is missing
    user                int64; oracle float32
    split int8, time float64, group uint64, unique uint64    what decides where the row goes (`order.py`)
"""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from srsjax import config
from srsjax.config import Table, Task, columns
from srsjax.config_data import LABELS
from srsjax.data.kinds import kind_of
from srsjax.data.preparing.catalogue import (
    Catalogue,
    SetAside,
    find_items,
    history_advice,
    key_hashes,
    read_values,
)
from srsjax.data.preparing.sources import Column, Sources
from srsjax.data.reading import cells, hashing, listed_times, tables

# Rows held at a time, in a few copies: 16 MB each where a row has 2 kB. An exploded row repeats its context for each
# candidate, so these are fewer.
BATCH_ROWS, EXPLODED_BATCH_ROWS = 8192, 1024


@dataclass(frozen=True)
class Cleaned:
    """What became of one chunk of the log. It depends on nothing but the chunk, so chunks can be cleaned in any order,
    by any thread or machine; `Cleaner.add` puts them together again."""

    chunk: tables.Chunk | None
    """The rows as they were read (exploded); None where they stay on the machine that read them."""
    rows: pa.RecordBatch
    """Clean rows whose `example` and `impression` begin at 0; `user` is null where a row has none."""
    rows_read: int
    impressions_read: int
    left_out: Counter[str]
    missing: Counter[str]
    lost_items: Counter[str]
    unknown_keys: Counter[str]
    problems: tuple[cells.Problem, ...]
    """What the rows set aside have, in the order of the rows."""


class Cleaner:
    """Reads log rows; counts what it saw and left out."""

    def __init__(
        self,
        sources: Sources,
        catalogues: dict[str, Catalogue],
        set_aside: SetAside,
        *,
        labels: bool = True,
        splitting: bool = True,
        on_bad_row: Literal["error", "skip"] = "error",
        leave_out: bool = True,
        keep: Sequence[str] = (),
    ):
        """`labels`: read labels, weights and the oracle. `splitting`: read what decides duplicates, impressions and the
        split. `leave_out`: whether `drop` policies leave rows out; else such a row is an error (scoring). `keep`:
        further columns that are read, for the file of scores."""
        self.sources, self.catalogues, self.set_aside = sources, catalogues, set_aside
        self.labels, self.splitting, self.on_bad_row, self.leave_out = labels, splitting, on_bad_row, leave_out
        self.keep = tuple(keep)
        self.joined = sources.joined(splitting, user=labels or splitting)
        self.rows_read = 0
        """Candidates read, those left out included."""
        self.impressions_read = 0
        """Log rows read."""
        self.left_out: Counter[str] = Counter()
        """Candidates left out, by reason."""
        self.missing: Counter[str] = Counter()
        """Candidates with a missing value, by feature."""
        self.lost_items: Counter[str] = Counter()
        """Items left out of histories because their key is not in the catalogue, by feature."""
        self.unknown_keys: Counter[str] = Counter()
        """Candidates whose key is not in the catalogue, by catalogue; those left out too."""

    def read(self, table: Table) -> Iterator[tuple[tables.Chunk, pa.RecordBatch]]:
        """Streams a log: each chunk (exploded, with nothing left out unless it is bad) and its clean rows."""
        for chunk in tables.read(table, self.stored_columns(table), self.batch_rows):
            cleaned = self.clean(chunk)
            assert cleaned.chunk is not None  # it stays away only where another machine read it
            yield cleaned.chunk, self.add(cleaned)

    @property
    def batch_rows(self) -> int:
        """Log rows of a chunk."""
        return EXPLODED_BATCH_ROWS if self.sources.data.explode else BATCH_ROWS

    def stored_columns(self, table: Table) -> list[str] | None:
        """The columns of the log to read; None for all. Raises InputError where one is not there."""
        if self.splitting and self.sources.whole_row:
            return None
        explode = self.explode(tables.table_schema(table))
        wanted = dict.fromkeys([*self.sources.log_columns(self.labels, self.splitting), *self.keep])
        fixed = not self.labels
        return tables.require_columns(table, [*wanted], explode, fixed)

    def explode(self, names: Collection[str]) -> tuple[str, ...]:
        """The columns to explode of a log with the columns `names`: to score, lists of labels need not be there."""
        explode = columns(self.sources.data.explode)
        if self.labels:
            return explode
        return tuple(name for name in explode if name in names) or explode

    def fresh(self) -> Cleaner:
        """One that cleans in the same way and has seen nothing; safe to send to another process."""
        return Cleaner(
            self.sources,
            self.catalogues,
            _nowhere,
            labels=self.labels,
            splitting=self.splitting,
            on_bad_row=self.on_bad_row,
            leave_out=self.leave_out,
            keep=self.keep,
        )

    def clean(self, chunk: tables.Chunk) -> Cleaned:
        """Clean rows of a chunk. Changes nothing here: safe to call from several threads."""
        own = self.fresh()
        found: list[cells.Problem] = []
        rows, parents = chunk, np.arange(len(chunk))
        if explode := self.explode(chunk.batch.schema.names):
            problems = self.sources.problems(on_bad_row=self.on_bad_row)
            rows, parents = cells.explode(chunk, explode, problems)
            found += problems.by_row.values()
            own.left_out["bad row"] += len(problems.by_row)
        copy = np.zeros(len(rows), np.int64)
        if self.labels and (drawn := self.sources.data.negatives):
            copy = np.tile(np.arange(1 + drawn), len(rows))
            every = np.repeat(np.arange(len(rows)), 1 + drawn)
            rows, parents = rows.take(every), parents[every]
        clean = own._clean(rows, parents, copy, found)
        counts = own.left_out, own.missing, own.lost_items, own.unknown_keys
        return Cleaned(rows, clean, len(rows), len(chunk), *counts, tuple(found))

    def count(self, chunk: tables.Chunk) -> int:
        """The candidates of a chunk, those of bad rows included: `rows_read` of what `clean` gives without drawn ones.
        Changes nothing here: safe to call from several threads."""
        if not (explode := self.explode(chunk.batch.schema.names)):
            return len(chunk)
        return len(cells.explode(chunk, explode, self.sources.problems(on_bad_row=self.on_bad_row))[0])

    def add(self, cleaned: Cleaned) -> pa.RecordBatch:
        """Counts the next chunk of the input and numbers its rows. Chunks are added in input order."""
        for problem in cleaned.problems:
            self.set_aside(problem)
        rows = cleaned.rows
        example = rows["example"].to_numpy() + self.rows_read
        numbers = {"example": example, "impression": rows["impression"].to_numpy() + self.impressions_read}
        if "user" in rows.schema.names:  # a row without one is a user of its own
            alone = pa.array(hashing.mix(example.astype(np.uint64)).view(np.int64))
            numbers["user"] = pc.coalesce(rows["user"], alone)
        for name, values in numbers.items():
            rows = rows.set_column(rows.schema.get_field_index(name), name, pa.array(values))
        self.rows_read += cleaned.rows_read
        self.impressions_read += cleaned.impressions_read
        self.left_out.update(cleaned.left_out)
        self.missing.update(cleaned.missing)
        self.lost_items.update(cleaned.lost_items)
        self.unknown_keys.update(cleaned.unknown_keys)
        return rows

    def _clean(
        self, chunk: tables.Chunk, impression: np.ndarray, copy: np.ndarray, found: list[cells.Problem]
    ) -> pa.RecordBatch:
        """Clean rows of an exploded chunk; `impression` [n] are the numbers of their impressions, `copy` [n] is 0 for a
        row of the log and 1, 2, ... for the items drawn for it."""
        problems = self.sources.problems(on_bad_row=self.on_bad_row)
        dropped: dict[str, np.ndarray] = {}
        out: dict[str, np.ndarray | pa.Array] = {"example": np.arange(len(chunk)), "impression": impression}
        rows = {name: self.join(chunk, name, problems, dropped) for name in self.joined}
        self.unknown_keys.update({name: int((row < 0).sum()) for name, row in rows.items()})
        if home := self.sources.home if copy.any() else None:
            rows[home] = np.where(copy > 0, self._draw(chunk, copy, rows[home], home), rows[home])
        out |= {f"row:{name}": row for name, row in rows.items()}
        for feature in self.sources.features:
            self.feature(chunk, feature, rows, problems, dropped, out)
        if self.labels:
            self._labels(chunk, problems, out)
            for task in self.sources.schema.tasks if copy.any() else ():
                out[f"label:{task.name}"] = np.where(copy > 0, np.float32(0), out[f"label:{task.name}"])
        if (user := self.sources.user) and (self.labels or self.splitting):
            out["user"] = self._user(chunk, user, rows, problems)
        if self.splitting:
            self._splitting(chunk, rows, problems, dropped, out)
            if "unique" in out:
                out["unique"] = np.where(copy > 0, hashing.combine([out["unique"], _unsigned(copy)]), out["unique"])
        found += problems.by_row.values()
        dropped = {"bad row": problems.mask(chunk)} | dropped
        keep = np.ones(len(chunk), bool)
        for reason, mask in dropped.items():
            self.left_out[reason] += int((keep & mask).sum())
            keep &= ~mask
        batch = pa.RecordBatch.from_pydict({name: pa.array(value) for name, value in out.items()})
        return batch if keep.all() else batch.filter(pa.array(keep))

    def _draw(self, chunk: tables.Chunk, copy: np.ndarray, own: np.ndarray, home: str) -> np.ndarray:
        """Rows of the catalogue `home` [n] int64, never the row's `own`, all alike or as `data.negatives_by` says: by
        hashes of file, row and copy."""
        file = np.full(len(chunk), hashing.hash_texts(pa.array([chunk.path.name]))[0])
        size = len(self.catalogues[home])
        place = hashing.uniform(hashing.combine([file, *map(_unsigned, (chunk.file_rows, own, copy))]), 0)
        if (draws := self.catalogues[home].draws) is not None:
            return draw_by(draws, place, own)
        drawn = np.minimum((place * (size - 1)).astype(np.int64), max(size - 2, 0))
        return (drawn + (drawn >= own) * (own >= 0)) % size

    # ------------------------------------------------------------------------------------------ parts of a row

    def join(self, chunk, name: str, problems: cells.Problems, dropped: dict[str, np.ndarray]) -> np.ndarray:
        """Rows of a catalogue, [n] int64; -1 where the key is missing or not there."""
        spec, on = self.catalogues[name].spec, self.sources.on(name)
        hashes, missing = key_hashes(chunk, on, problems)
        rows = np.where(missing, -1, self.catalogues[name].find(hashes))
        unknown = rows < 0
        if spec.unknown == "drop" and self.leave_out:
            dropped[f"key not in catalogue {name}"] = unknown
        elif spec.unknown != "missing":
            problems.report(
                chunk,
                unknown,
                on[-1],
                f"a key of catalogue {name!r} ({', '.join(columns(spec.key))}); add it to {_shown(spec.files)} or "
                + ('set unknown="drop" or "missing" there' if self.leave_out else "give the item by its own columns"),
            )
        return rows

    def feature(self, chunk, feature: config.Feature, rows, problems, dropped, out) -> None:
        """Reads a feature that the log holds, and applies the policy for its missing values."""
        column, kind = self.sources.column(feature), kind_of(feature)
        if kind.training_only and not self.labels:
            out[f"feature:{feature.name}"] = pa.nulls(
                len(chunk), pa.float64() if kind.reads in ("number", "time") else pa.string()
            )
            return
        if column.table:
            missing = self.catalogues[column.table].missing(column)[rows[column.table]]
            shown = self.sources.on(column.table)[0]
        else:
            values = read_values(chunk, column, problems)
            missing = np.asarray(values.is_null())
            shown = column.name
            if kind.items:
                values = self._items(chunk, feature, column, values, problems)
            since = self.sources.since(feature)
            if other := self.sources.along(feature):
                self._check_along(chunk, column, values, other, problems)
            if column.kind == "times":
                assert isinstance(feature, config.Categorical)
                until = self._values(chunk, since, rows, problems) if since else None
                values = listed_times.categories(values, feature.times, until)
            elif since:
                values = pc.subtract(values, self._values(chunk, since, rows, problems))
                missing = np.asarray(values.is_null())
                problems.report(chunk, _beyond(values), column.name, f"a time near that of column {since.name}")
            out[f"feature:{feature.name}"] = values
        if kind.policy and missing.any():
            self.missing[feature.name] += int(missing.sum())
            if kind.policy == "drop" and self.leave_out:
                dropped[f"{feature.name} missing"] = missing
            elif kind.policy in ("error", "drop"):
                problems.report(chunk, missing, shown, kind.advice)

    def _check_along(self, chunk, column: Column, lists: pa.Array, other: Column, problems: cells.Problems) -> None:
        """Reports lists that are not as long as those which they say more of."""
        lengths = [
            np.asarray(pc.fill_null(pc.list_value_length(each), 0), np.int64)
            for each in (lists, read_values(chunk, other, problems))
        ]
        problems.report(
            chunk,
            lengths[0] != lengths[1],
            column.name,
            f"as many values as in column {other.name}, none of them missing there",
        )

    def _items(self, chunk, feature: config.Feature, column: Column, lists, problems: cells.Problems) -> pa.Array:
        items = self.catalogues[column.items]
        found, lost = find_items(lists, column, items)
        if items.spec.unknown == "error":
            problems.report(chunk, lost > 0, column.name, history_advice(items.spec))
        self.lost_items[feature.name] += int(lost.sum())
        return found

    def _labels(self, chunk, problems: cells.Problems, out) -> None:
        for task in self.sources.schema.tasks:
            label, weight, missing = read_label(chunk, task, problems)
            if task.weight:
                weights, no_weight = cells.non_negative(chunk, task.weight, problems)
                problems.report(chunk, no_weight, task.weight, "a weight >= 0 in every row")
                weight = weight * weights
                problems.report(chunk, cells.overflows(weight), task.weight, "a weight whose product is below 3.4e38")
            out[f"label:{task.name}"] = label if isinstance(label, pa.Array) else label.astype(np.float32)
            out[f"weight:{task.name}"] = np.where(missing, 0, weight).astype(np.float32)
        if self.sources.data.oracle:
            oracle, missing = cells.labels(chunk, self.sources.data.oracle, problems)
            problems.report(chunk, missing, self.sources.data.oracle, "a probability in every row")
            out["oracle"] = oracle

    def _user(self, chunk, column: Column, rows, problems: cells.Problems) -> pa.Array:
        """Users as numbers, [n] int64; null where a row has none."""
        users = self._values(chunk, column, rows, problems)
        return pa.array(hashing.hash_texts(users).view(np.int64), mask=np.asarray(users.is_null()))

    def _splitting(self, chunk, rows, problems, dropped, out) -> None:
        data = self.sources.data
        whole = functools.cache(lambda: self._whole_row(chunk, problems))
        if data.split.by == "time":
            (column,) = self.sources.split
            out["time"], missing = cells.times(chunk, column.name, problems)
            problems.report(chunk, missing, column.name, "a time in every row, to split by")
        elif data.split.by == "column":
            says = self._values(chunk, self.sources.split[0], rows, problems)
            out["split"] = np.full(len(chunk), -1, np.int8)
            for code, value in enumerate(data.split.values):
                if value:
                    out["split"][np.asarray(pc.equal(says, value).fill_null(False))] = code
            dropped[f"{data.split.column} is none of {', '.join(filter(None, data.split.values))}"] = out["split"] < 0
        else:
            held_out = data.split.valid + data.split.test
            share = np.zeros(len(chunk))
            if 0 < held_out < 1:
                parts = [
                    hashing.hash_texts(self._values(chunk, column, rows, problems)) for column in self.sources.split
                ]
                share = hashing.uniform(hashing.combine(parts) if parts else whole(), data.split.seed)
            out["split"] = np.select([share < data.split.test, share < held_out], [2, 1], 0).astype(np.int8)
        if group := columns(data.group_by):
            out["group"], missing = key_hashes(chunk, group, problems)
            problems.report(chunk, missing, group[0], "a value in every row, to group impressions by")
        if unique := columns(data.unique):
            parts = [hashing.hash_texts(cells.texts(chunk, name, problems)) for name in unique if name != "*"]
            out["unique"] = whole() if "*" in unique else hashing.combine(parts)

    def _values(self, chunk, column: Column, rows, problems: cells.Problems) -> pa.Array:
        """A column of the log or, by row, of a catalogue, as `read_values` gives it; null where missing."""
        if not column.table:
            return read_values(chunk, column, problems)
        values, row = self.catalogues[column.table].values[column], rows[column.table]
        return values.take(pa.array(row, mask=row < 0))

    def _whole_row(self, chunk, problems: cells.Problems) -> np.ndarray:
        """Hashes of all columns of the log, whatever their order in the file."""
        parts = []
        for name in sorted(chunk.batch.schema.names):
            values = chunk.batch[name]
            if not (pa.types.is_nested(values.type) or pa.types.is_binary(values.type)):
                values = cells.texts(chunk, name, problems)
            parts.append(hashing.hash_column(values))
        return hashing.combine(parts)


def draw_by(ends: np.ndarray, place: np.ndarray, own: np.ndarray) -> np.ndarray:
    """Items [n] int64 drawn as often as they have a share of `ends` [V] float64 (`Catalogue.draws`), but never a row's
    `own` [n] (-1 is none): those at the places [n], in [0, 1), of what is left without it."""
    known = own >= 0
    starts = np.where(own > 0, ends[own - 1], 0.0)
    gone = np.where(known, ends[own] - starts, 0.0)
    at = place * (ends[-1] - gone)
    at += np.where(known & (at >= starts), gone, 0.0)
    last = np.searchsorted(ends, ends[-1])  # rounding must not reach the items that are never drawn
    return np.minimum(np.searchsorted(ends, at, side="right"), last)


def read_label(
    chunk: tables.Chunk, task: Task, problems: cells.Problems
) -> tuple[np.ndarray | pa.Array, np.ndarray, np.ndarray]:
    """Labels [n] (names of classes are text, null where missing), their weights [n] before any weight column, and where
    the label is missing [n] bool."""
    column = task.column or task.name
    match LABELS[task.kind]:
        case "class":
            names = cells.texts(chunk, column, problems)
            if task.classes:
                bad = np.asarray(pc.invert(pc.is_in(names, pa.array(task.classes, pa.string()))))
                bad &= np.asarray(names.is_valid())
                problems.report(chunk, bad, column, f"one of the classes {', '.join(task.classes)}")
                names = pc.if_else(pa.array(bad), pa.scalar(None, pa.string()), names)
            return names, np.ones(len(chunk)), np.asarray(names.is_null())
        case "number":
            number, missing = cells.numbers(chunk, column, problems)
            return number, np.ones(len(chunk)), missing
    if task.impressions:
        rate, shown, missing = cells.click_rates(chunk, column, task.impressions, problems)
        return rate, shown, missing
    if LABELS[task.kind] == "grade" and not task.positive:
        grade, missing = cells.non_negative(chunk, column, problems)
        return grade, np.ones(len(chunk)), missing
    if task.positive == "*":
        return np.ones(len(chunk)), np.ones(len(chunk)), np.zeros(len(chunk), bool)
    label, missing = cells.labels(chunk, column, problems, task.positive)
    return label, np.ones(len(chunk)), missing


def _beyond(values: pa.Array) -> np.ndarray:
    """[n] bool, where a number is larger than the store can hold."""
    return cells.overflows(pc.fill_null(values, 0.0).to_numpy())


def _unsigned(numbers: np.ndarray) -> np.ndarray:
    return numbers.astype(np.uint64)


def _nowhere(problem: cells.Problem) -> None:
    """Takes no problem: a fresh cleaner hands over what it finds (`Cleaned.problems`)."""
    raise AssertionError(f"a fresh cleaner adds nothing, but has {problem}")


def _shown(files: str | tuple[str, ...]) -> str:
    return files if isinstance(files, str) else ", ".join(files)

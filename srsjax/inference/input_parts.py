"""The rows to score in parts: each part becomes one file of scores, whichever process makes it, and whenever.

A part is up to `size` consecutive log rows of one file, so that where it begins depends on the input alone. What is
complete already, or the work of another process, is not read where that can be told without reading it: whole files
whose parts are complete, row groups of Parquet files. Other rows are read and counted, nothing else.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path

import numpy as np
import pyarrow as pa

from srsjax.config import Table
from srsjax.data.reading import files, tables
from srsjax.errors import InputError


@dataclass(frozen=True)
class Part:
    """A part, read to its end."""

    number: int
    file: int
    """Index of its file among those of the input (`files.expand`)."""
    first_row: int
    """Log row of the file (from 0) at which it begins."""
    rows: int
    """Its log rows."""
    examples: int
    """Its candidates, those of bad rows included."""
    ends_file: bool
    """Whether its file has no further rows."""
    scores: int = 0
    """Its candidates that have a score."""
    set_aside: int = 0
    """Its candidates that have none, because their rows are bad."""
    unknown: dict[str, int] = field(default_factory=dict)
    """Its candidates whose key a catalogue lacks, by catalogue."""


@dataclass(frozen=True)
class Piece:
    """Some log rows of a part, in order."""

    number: int
    """Of the part."""
    file: int
    first_row: int
    """Log row of the file (from 0) at which the piece begins."""
    rows: int
    chunk: tables.Chunk | None
    """The rows; None where nothing has to be read."""
    wanted: bool
    """Whether it is to be scored, or only its candidates counted."""
    ends_part: bool
    ends_file: bool
    examples: int | None = None
    """Its candidates, where they are known without reading."""


class InputParts:
    """A table in parts of up to `size` log rows, of which up to `piece_rows` are read at a time."""

    def __init__(self, table: Table, columns: list[str], size: int, piece_rows: int, explodes: bool):
        """`columns` are those to read. `explodes`: a log row may have any number of candidates, else it has one.

        Raises InputError for files that are missing or cannot be read.
        """
        self.table, self.columns, self.size, self.piece_rows, self.explodes = table, columns, size, piece_rows, explodes
        self.paths = files.expand(table.files)
        self.groups = [tables.row_groups(path, table) for path in self.paths]

    @property
    def rows(self) -> int | None:
        """Log rows altogether; None where a file has to be read for that."""
        return None if None in self.groups else sum(sum(groups or ()) for groups in self.groups)

    @property
    def count(self) -> int | None:
        """Parts altogether; None where a file has to be read for that."""
        return None if None in self.groups else sum(-(-sum(groups or ()) // self.size) for groups in self.groups)

    def share(self, made: Mapping[int, Part], process: int, processes: int) -> Callable[[int], bool]:
        """Which parts a process makes of those that are not in `made`: neighbours, or where their number is not known
        every so many."""
        if self.count is None:
            return lambda number: number not in made and number % processes == process
        missing = [number for number in range(self.count) if number not in made]
        own = {int(number) for number in np.array_split(missing, processes)[process]}
        return lambda number: number in own

    def read(self, wanted: Callable[[int], bool], made: Mapping[int, Part]) -> Iterator[Piece]:
        """The pieces of all parts, in input order; of those that are not `wanted` what is needed to count rows. Where
        the number of parts is known, it ends with the last part that is wanted.

        `made` are parts that are complete, by number. Raises InputError as `tables.read` does.
        """
        number, last = 0, None
        if self.count:
            last = max(filter(wanted, range(self.count)), default=-1)
        for file, path in enumerate(self.paths):
            if last is not None and number > last:
                return
            known = list(self._known(file, number, made))
            yield from map(_complete, known)
            number += len(known)
            if known and known[-1].ends_file:
                continue
            row = sum(part.rows for part in known)
            pieces = self._parquet(file, row, number, wanted) if self.groups[file] is not None else None
            if pieces is None or self.explodes:
                pieces = self._stream(file, path, row, number, wanted)
            for piece in pieces:
                if last is not None and piece.number > last:
                    return
                number = piece.number + piece.ends_part
                yield piece
        if number == 0:
            raise InputError(f"{self.paths[-1]}: no rows, expected at least one")

    def _known(self, file: int, number: int, made: Mapping[int, Part]) -> Iterator[Part]:
        """The complete parts at the beginning of a file whose first part has that number."""
        while (part := made.get(number)) is not None and part.file == file:
            yield part
            if part.ends_file:
                return
            number += 1

    def _parquet(self, file: int, row: int, number: int, wanted: Callable[[int], bool]) -> Iterator[Piece]:
        """The parts of a Parquet file from a row on, whose numbers of rows are known: runs of wanted ones are read."""
        path, rows = self.paths[file], sum(self.groups[file] or ())
        firsts = range(row, rows, self.size)
        for own, run in groupby(enumerate(firsts, number), lambda each: wanted(each[0])):
            parts = list(run)
            if own:
                (first_number, first), (_, last) = parts[0], parts[-1]
                yield from self._stream(file, path, first, first_number, wanted, min(last + self.size, rows))
            else:
                for each, first in parts:
                    count = min(self.size, rows - first)
                    yield Piece(each, file, first, count, None, False, True, first + count == rows, count)

    def _stream(
        self, file: int, path: Path, row: int, number: int, wanted: Callable[[int], bool], stop: int | None = None
    ) -> Iterator[Piece]:
        """The rows of a file from `row`, where the part `number` begins, up to `stop` (None: its end)."""
        groups = self.groups[file]
        for chunk, last in _with_last(aligned(self._chunks(path, groups, row), row, self.piece_rows, self.size, stop)):
            at, end = chunk.first_row, chunk.first_row + len(chunk)
            ends_file = end == sum(groups) if groups is not None else last
            ends_part = ends_file or end % self.size == 0
            examples = None if self.explodes else len(chunk)
            own = number + (at - row) // self.size
            yield Piece(own, file, at, len(chunk), chunk, wanted(own), ends_part, ends_file, examples)

    def _chunks(self, path: Path, groups: list[int] | None, row: int) -> Iterator[tables.Chunk]:
        """The chunks of a file, beginning at or before `row`; of Parquet with the row group that holds it."""
        piece = tables.Piece(path)
        if groups is not None:
            starts = np.concatenate([[0], np.cumsum(groups)])
            group = int(np.searchsorted(starts, row, side="right")) - 1
            piece = tables.Piece(path, int(starts[group]), range(group, len(groups)))
        return tables.read_piece(piece, self.table, self.columns, self.piece_rows)


def aligned(
    chunks: Iterable[tables.Chunk], row: int, rows: int, size: int, stop: int | None = None
) -> Iterator[tables.Chunk]:
    """Consecutive chunks of one file as chunks of up to `rows` rows from `row` on, none of which crosses a multiple of
    `size`; `stop` is the row (of the file, from 0) at which they end, None the last. Where they begin does not depend
    on how the file is stored."""
    held: list[pa.RecordBatch] = []
    count = 0
    for chunk in chunks:
        begin = min(max(row + count - chunk.first_row, 0), len(chunk))
        end = len(chunk) if stop is None else min(max(stop - chunk.first_row, 0), len(chunk))
        batch = chunk.batch.slice(begin, end - begin)
        while batch.num_rows:
            most = min(rows, size - row % size)
            part = batch.slice(0, most - count)
            held.append(part)
            batch, count = batch.slice(part.num_rows), count + part.num_rows
            if count == most:
                yield tables.Chunk(chunk.path, row, pa.concat_batches(held))
                held, count, row = [], 0, row + most
        if stop is not None and row + count >= stop:
            break
    if count:
        yield tables.Chunk(chunk.path, row, pa.concat_batches(held))


def _with_last[Each](values: Iterable[Each]) -> Iterator[tuple[Each, bool]]:
    """Each value, and whether it is the last."""
    values = iter(values)
    before = next(values, None)
    for value in values:
        assert before is not None
        yield before, False
        before = value
    if before is not None:
        yield before, True


def _complete(part: Part) -> Piece:
    return Piece(
        part.number, part.file, part.first_row, part.rows, None, False, True, part.ends_file, examples=part.examples
    )

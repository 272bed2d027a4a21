"""Input in parts: the same ones however the files are stored, and no row read twice or left out by processes that
divide them, or by one that goes on."""

from __future__ import annotations

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from srsjax.config import Table
from srsjax.data.reading import tables
from srsjax.errors import InputError
from srsjax.inference.input_parts import InputParts, Part, aligned

SIZE, PIECE = 10, 4
ROWS = (23, 1, 20, 0, 7)
"""Rows of the files: parts of 10 + 10 + 3, 1, 10 + 10, none and 7."""
FIRSTS = [0, 10, 20, 23, 24, 34, 44]
"""The first row of the input of each part."""


def write(folder, kind: str, group: int = 6) -> Table:
    first = 0
    for number, rows in enumerate(ROWS):
        values, path = list(range(first, first + rows)), folder / f"log-{number}.{kind}"
        if kind == "parquet":
            pq.write_table(pa.table({"value": pa.array(values, pa.int64())}), path, row_group_size=group)
        elif kind == "csv":
            path.write_text("value\n" + "".join(f"{value}\n" for value in values))
        elif rows:  # an empty file is refused
            path.write_text("".join(json.dumps({"value": value}) + "\n" for value in values))
        first += rows
    return Table(str(folder / f"log-*.{kind}"))


@pytest.fixture(scope="module", params=["parquet", "csv", "jsonl"])
def table(request, tmp_path_factory) -> Table:
    return write(tmp_path_factory.mktemp(request.param), request.param)


def parts_of(table: Table, explodes: bool = False) -> InputParts:
    return InputParts(table, ["value"], SIZE, PIECE, explodes)


def rows_read(pieces) -> dict[int, list[int]]:
    """The values of the rows of each part that is wanted; checks that all parts are there in order."""
    found: dict[int, list[int]] = {}
    numbers, at = [], 0
    for piece in pieces:
        if piece.ends_part:
            numbers.append(piece.number)
        if piece.wanted:
            assert piece.chunk is not None and len(piece.chunk) == piece.rows <= PIECE
            values = [int(value) for value in piece.chunk.batch["value"].to_pylist()]
            assert values[0] == at  # rows of skipped pieces are counted
            assert piece.chunk.where(0).endswith(f" row {piece.first_row + 1}")
            found.setdefault(piece.number, []).extend(values)
        at += piece.rows
    assert numbers == sorted(numbers)
    return found


def made_of(table: Table) -> dict[int, Part]:
    """All parts as complete ones."""
    found: dict[int, Part] = {}
    for piece in parts_of(table).read(lambda number: True, {}):
        before = found.get(piece.number)
        first, rows = (before.first_row, before.rows) if before else (piece.first_row, 0)
        rows += piece.rows
        found[piece.number] = Part(piece.number, piece.file, first, rows, rows, piece.ends_file)
    return found


def expected(numbers) -> dict[int, list[int]]:
    ends = [*FIRSTS[1:], sum(ROWS)]
    return {number: list(range(FIRSTS[number], ends[number])) for number in sorted(numbers)}


def test_parts_do_not_depend_on_the_format(table):
    assert rows_read(parts_of(table).read(lambda number: True, {})) == expected(range(7))
    known = parts_of(table)
    assert (known.rows, known.count) == ((sum(ROWS), 7) if "parquet" in str(table.files) else (None, None))


@given(done=st.sets(st.integers(0, 6)), processes=st.integers(1, 4), explodes=st.booleans())
def test_processes_that_go_on_read_what_is_missing_once(table, done, processes, explodes):
    made = {number: part for number, part in made_of(table).items() if number in done}
    found: dict[int, list[int]] = {}
    for process in range(processes):
        parts = parts_of(table, explodes)
        own = rows_read(parts.read(parts.share(made, process, processes), made))
        assert not set(own) & set(found)
        found |= own
    assert dict(sorted(found.items())) == expected(set(range(7)) - done)


def test_complete_files_and_row_groups_are_not_read(tmp_path, monkeypatch):
    """Rows of the last part of the first file alone: of Parquet what its row group holds, of CSV the file."""
    for kind, most in (("parquet", 5), ("csv", 23)):
        table = write(tmp_path, kind)
        made, read = made_of(table), []
        del made[2]

        def counted(*arguments, reader=tables.read_piece, read=read):
            for chunk in reader(*arguments):
                read.append(len(chunk))
                yield chunk

        with monkeypatch.context() as patch:
            patch.setattr(tables, "read_piece", counted)
            parts = parts_of(table)
            assert rows_read(parts.read(parts.share(made, 0, 1), made)) == expected([2])
        assert sum(read) <= most, kind


@given(
    lengths=st.lists(st.integers(0, 9), max_size=8),
    first=st.integers(0, 12),
    rows=st.integers(1, 7),
    size=st.integers(1, 12),
    stop=st.none() | st.integers(0, 40),
)
def test_chunks_are_cut_anew_wherever_they_began(lengths, first, rows, size, stop):
    starts, total = np.cumsum([0, *lengths])[:-1], sum(lengths)
    chunks = [
        tables.Chunk("log", int(start), pa.record_batch({"value": np.arange(start, start + length)}))
        for start, length in zip(starts, lengths, strict=True)
    ]
    cut = list(aligned(iter(chunks), first, rows, size, stop))
    values = [value for chunk in cut for value in chunk.batch["value"].to_pylist()]
    assert values == list(range(first, total if stop is None else min(stop, total)))
    for chunk in cut:
        begin, end = chunk.first_row, chunk.first_row + len(chunk)
        assert chunk.batch["value"][0].as_py() == begin
        assert 1 <= len(chunk) <= rows and begin // size == (end - 1) // size


def test_files_without_any_row_are_refused(tmp_path):
    (tmp_path / "log.csv").write_text("value\n")
    with pytest.raises(InputError, match=r"log\.csv: no rows"):
        list(parts_of(Table(str(tmp_path / "log.csv"))).read(lambda number: True, {}))

"""CSV and TSV: Arrow reads them, and Python's slow reader finds what Arrow refuses."""

from __future__ import annotations

import codecs
import csv
import io
import os
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.csv

from srsjax import config
from srsjax.data.reading import files
from srsjax.errors import InputError

# What "surrogateescape" substitutes for bytes that are invalid in the encoding.
_NOT_TEXT = re.compile("[\ud800-\udfff]")


def check_encoding(table: config.Table) -> None:
    """Raises InputError for an encoding that Python does not know."""
    try:
        "".encode(table.encoding)
    except LookupError:
        raise InputError(
            f"{table.files}: unknown encoding {table.encoding!r}, expected one such as utf-8, utf-16, gb18030, cp1252"
        ) from None


def _is_utf8(table: config.Table) -> bool:
    return codecs.lookup(table.encoding).name in ("utf-8", "utf-8-sig")


def batches(path: Path, table: config.Table, delimiter: str, columns: list[str]) -> Iterator[pa.RecordBatch]:
    names = header(path, table, delimiter)
    try:
        stream, quotes = (files.stream(path), _quotes(path)) if _is_utf8(table) else _in_utf8(path, table.encoding)
        if quotes % 2:  # Arrow does not report a quote that is still open at the end of a file.
            _name_bad_row(path, table, delimiter)
        # Arrow reads ahead on a background thread, which would abort the process if it still held a Python object at
        # exit. So it gets its own stream, and both are released, not closed: a stream must not be closed while that
        # thread reads.
        reader = pa.csv.open_csv(
            stream,
            pa.csv.ReadOptions(use_threads=False, block_size=files.BLOCK_BYTES),
            pa.csv.ParseOptions(delimiter=delimiter, newlines_in_values=True),
            pa.csv.ConvertOptions(
                column_types={name: pa.string() for name in names},
                include_columns=columns,
                null_values=[""],
                strings_can_be_null=True,
            ),
        )
        for batch in reader:  # noqa: UP028 (`yield from` would close it)
            yield batch
    except (pa.ArrowInvalid, UnicodeError) as error:
        _name_bad_row(path, table, delimiter)
        raise InputError(
            f"{path}: cannot be read as CSV ({error}); a row may have {files.BLOCK_BYTES >> 20} MiB"
        ) from error


def _quotes(path: Path) -> int:
    with files.open_bytes(path) as file:
        return sum(block.count(b'"') for block in iter(lambda: file.read(files.BLOCK_BYTES), b""))


def _in_utf8(path: Path, encoding: str) -> tuple[pa.NativeFile, int]:
    """A copy in UTF-8, the only encoding that Arrow reads, and the number of quotes in it."""
    file, name = tempfile.mkstemp(prefix="srsjax-")
    stream = pa.input_stream(name, compression=None)
    os.unlink(name)  # only this process can reach it now: nothing is left behind however it ends
    quotes = 0
    with (
        open(file, "w", encoding="utf-8", newline="") as copy,
        io.TextIOWrapper(files.open_bytes(path), encoding, newline="") as source,
    ):
        for block in iter(lambda: source.read(files.BLOCK_BYTES), ""):
            quotes += block.count('"')
            try:
                copy.write(block)
                copy.flush()
            except OSError as error:
                raise InputError(
                    f"{path}: its copy in UTF-8 cannot be written to {tempfile.gettempdir()} ({error}); make room, set "
                    f"TMPDIR to a folder with room, or convert the file to UTF-8"
                ) from error
    return stream, quotes


def header(path: Path, table: config.Table, delimiter: str) -> list[str]:
    """The names of the columns. Raises InputError where there are none, or in another encoding."""
    for _, cells in _rows(path, table, delimiter):
        if any(_NOT_TEXT.search(cell) for cell in cells):
            raise InputError(f"{path}: the header has bytes that are not {table.encoding}; set the table's encoding")
        return cells
    raise InputError(f"{path}: no header, expected a first line of column names")


def _rows(path: Path, table: config.Table, delimiter: str) -> Iterator[tuple[int, list[str]]]:
    """Line number (from 1) and cells of each row, header included; bytes that are not text become lone surrogates."""
    csv.field_size_limit(2**31 - 1)
    encoding = "utf-8-sig" if _is_utf8(table) else table.encoding
    with io.TextIOWrapper(files.open_bytes(path), encoding, errors="surrogateescape", newline="") as file:
        reader = csv.reader(file, delimiter=delimiter, strict=True)
        line = 1
        try:
            for cells in reader:
                if cells:
                    yield line, cells
                line = reader.line_num + 1
        except csv.Error as error:
            raise InputError(f"{path} line {line}: {error}, expected a row of CSV; look for a stray quote") from None


def _name_bad_row(path: Path, table: config.Table, delimiter: str) -> None:
    """Raises InputError for the first row whose number of fields differs from the header's, that has bytes invalid in
    the encoding, or an unclosed quote. Python's slow reader is used only to locate what Arrow's fast one refused."""
    rows = _rows(path, table, delimiter)
    _, names = next(rows)
    for row, (line, cells) in enumerate(rows, 1):
        where = f"{path} row {row} (line {line})"
        for name, cell in zip(names, cells, strict=False):
            if _NOT_TEXT.search(cell):
                raise InputError(
                    f"{where}, column {name}: bytes that are not {table.encoding}; set the table's encoding"
                )
        if len(cells) != len(names):
            raise InputError(f"{where}: found {len(cells)} field(s), expected {len(names)} as in the header")

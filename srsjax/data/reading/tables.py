"""Reading tables: Parquet, CSV, TSV and JSON-lines files as a stream of record batches that know their source rows.

Memory does not grow with the size of the files. Messages name a row by file and 1-based data row (the header of a CSV
file is not counted): `items.parquet row 1203`.
"""

from __future__ import annotations

import functools
import itertools
import os
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet

from srsjax import config
from srsjax.data.reading import csv_files, files, jsonl
from srsjax.errors import InputError, nearest

FORMATS = {".parquet": "parquet", ".csv": "csv", ".tsv": "tsv", ".jsonl": "jsonl", ".ndjson": "jsonl"}


SHOWN = 100
"""Names of columns in a message."""
LONGEST = 80
"""Characters of each that are shown."""


@dataclass(frozen=True)
class Chunk:
    """Rows of one file, in its order."""

    path: Path
    first_row: int
    """Row of the file (from 0) that the first row of the batch was read from."""
    batch: pa.RecordBatch
    rows: np.ndarray | None = None
    """[n] int64, row of the file (from 0) of each row of the batch; None where they are consecutive."""

    def __len__(self) -> int:
        return self.batch.num_rows

    @property
    def file_rows(self) -> np.ndarray:
        """[n] int64, row of the file (from 0) of each row of the batch."""
        return np.arange(self.first_row, self.first_row + len(self)) if self.rows is None else self.rows

    def where(self, row: int) -> str:
        """File and row (from 1) of a row of the batch (from 0): `items.parquet row 1203`."""
        return f"{self.path} row {self.file_rows[row] + 1}"

    def take(self, rows: np.ndarray) -> Chunk:
        """The rows with these indices [m], in this order; they keep their file rows."""
        return Chunk(self.path, self.first_row, self.batch.take(pa.array(rows)), self.file_rows[rows])


@dataclass(frozen=True)
class Piece:
    """A part of a table that can be read independently."""

    path: Path
    first_row: int = 0
    """Row of the file (from 0) at which it begins."""
    groups: range | None = None
    """Its row groups of a Parquet file; None for the whole file."""


# ---------------------------------------------------------------------------------------------- which files


def _format(path: Path, table: config.Table) -> str:
    if table.format != "auto":
        return table.format
    suffix = Path(path.stem).suffix if path.suffix in files.COMPRESSIONS else path.suffix
    if suffix not in FORMATS:
        raise InputError(
            f"{path}: the name does not say the format, expected {', '.join(FORMATS)} and, where compressed, "
            f"{' or '.join(files.COMPRESSIONS)} after it; or set it, as in Table(files, format='csv')"
        )
    return FORMATS[suffix]


def _delimiter(path: Path, table: config.Table) -> str:
    return "\t" if _format(path, table) == "tsv" else ","


# ---------------------------------------------------------------------------------------------- reading


def read(table: config.Table, columns: Sequence[str] | None = None, batch_rows: int = 32768) -> Iterator[Chunk]:
    """Streams a table in file and row order, in chunks of 1 to `batch_rows` rows.

    `columns` are those to read (None: all), in this order. Cells of CSV and JSON-lines are text, so that no type
    depends on the rows read first: an empty CSV cell is null, a JSON number keeps its source text, true and false are
    `true` and `false`; JSON lists are lists and JSON objects structs of such text. `cells.py` casts them.

    Raises InputError for files that are missing, empty, truncated, in another format or encoding, whose columns differ
    from the first file's, that hold a broken row, or that hold no rows altogether.
    """
    columns = list(table_schema(table)) if columns is None else require_columns(table, columns)
    empty = True
    for path in files.expand(table.files):
        for chunk in read_piece(Piece(path), table, columns, batch_rows):
            yield chunk
            empty = False
    if empty:
        raise InputError(f"{path}: no rows, expected at least one")


def pieces(table: config.Table, columns: Sequence[str], batch_rows: int) -> list[Piece]:
    """A table in pieces of about a row group each; read one after another they give the chunks of `read`.

    A Parquet file is cut where a row group begins at a multiple of `batch_rows` (as the row groups written by pyarrow,
    pandas, polars and DuckDB do). A file of another format is one piece; so is one with dictionaries, because its
    batches end where row groups do.
    """
    out = []
    for path in files.expand(table.files):
        cuts = [(0, 0)]
        if _format(path, table) == "parquet":
            with _one_line_errors(path), _open_parquet(path) as file:
                sizes = [file.metadata.row_group(group).num_rows for group in range(file.num_row_groups)]
                schema = file.schema_arrow  # made anew whenever it is asked for
                if "dictionary" not in str(pa.schema([schema.field(name) for name in columns])):
                    starts = enumerate(np.cumsum([0, *sizes[:-1]]).tolist())
                    cuts = [(group, row) for group, row in starts if row % batch_rows == 0] or cuts
            ends = [group for group, _ in cuts[1:]] + [len(sizes)]
            out += [Piece(path, row, range(group, end)) for (group, row), end in zip(cuts, ends, strict=True)]
        else:
            out.append(Piece(path))
    return out


def read_piece(piece: Piece, table: config.Table, columns: Sequence[str], batch_rows: int) -> Iterator[Chunk]:
    """The chunks of one piece of a table; see `read`."""
    first_row = piece.first_row
    with _one_line_errors(piece.path):
        for batch in _batches(piece, table, list(columns), batch_rows):
            for start in range(0, batch.num_rows, batch_rows):
                part = batch.slice(start, batch_rows)
                yield Chunk(piece.path, first_row, part)
                first_row += part.num_rows


def row_groups(path: Path, table: config.Table) -> list[int] | None:
    """Rows of each row group of a Parquet file; None for a file of another format, whose rows must be read to count
    them."""
    if _format(path, table) != "parquet":
        return None
    with _one_line_errors(path), _open_parquet(path) as file:
        return [file.metadata.row_group(group).num_rows for group in range(file.num_row_groups)]


def table_schema(table: config.Table) -> dict[str, pa.DataType]:
    """Names and types of a table's columns, in the order of the first file.

    They come from Parquet footers and CSV headers; JSON-lines files are read once in full, since any line may add a key
    (cached until the file changes). Raises InputError for a file whose columns differ from the first file's.
    """
    csv_files.check_encoding(table)
    paths = files.expand(table.files)
    first: dict[str, pa.DataType] = {}
    for path in paths:
        schema = _file_schema(path, table)
        types = dict(zip(schema.names, schema.types, strict=True))
        first = first or types
        if missing := next((name for name in first if name not in types), None):
            raise InputError(f"{path}: no column {missing!r}, expected the columns of {paths[0]}")
        if extra := next((name for name in types if name not in first), None):
            raise InputError(f"{path}: column {extra!r}, which {paths[0]} has not; expected the same columns")
    return first


def require_columns(
    table: config.Table, names: Sequence[str], explode: Sequence[str] = (), fixed: bool = False
) -> list[str]:
    """The stored columns that hold `names`, each once, and those to explode: what to hand to `read`.

    A name `c.field`, where `c` is one of the `explode` columns and a list of structs, is held by `c`; `c` is then no
    column. Raises InputError for a column that does not exist, naming the file, an existing column that is near and
    (the first of) all columns. The name may be the misspelt one, or, where a run has `fixed` the names, the column is.
    """
    holder = _holders(table, explode)
    for column in {*explode} & {*names}:
        if fields := [name for name in holder if name.startswith(f"{column}.")]:
            where = files.expand(table.files)[0]
            raise InputError(f"{where}: column {column!r} is a list of objects, expected one of {_first(fields)}")
    for name in [*names, *explode]:
        if name not in holder:
            near = nearest(name, holder)
            hint = f"for {near!r}, did you mean {name!r}?" if fixed else f"did you mean {near!r}?"
            near = f"{hint} " if near else ""
            raise InputError(f"{files.expand(table.files)[0]}: no column {name!r}; {near}It has: {_first(holder)}")
    return list(dict.fromkeys(holder[name] for name in [*names, *explode]))


def _first(names: Collection[str]) -> str:
    """Names for a message, which is no place for all of a table with very many columns, nor for what is no text."""
    more = f" and {len(names) - SHOWN:,} more" if len(names) > SHOWN else ""
    shown = (name if name.isprintable() else repr(name) for name in itertools.islice(names, SHOWN))
    return ", ".join(name if len(name) <= LONGEST else f"{name[:LONGEST]}..." for name in shown) + more


def column_names(table: config.Table, explode: Sequence[str] = ()) -> list[str]:
    """The columns of a table once it is exploded: structs are there by their fields."""
    holder = _holders(table, explode)
    parts = (name.split(".") for name in holder)
    structs = {".".join(names[:length]) for names in parts for length in range(1, len(names))}
    return [name for name in holder if name not in structs]


def _holders(table: config.Table, explode: Sequence[str]) -> dict[str, str]:
    """The stored column that holds each name."""
    schema = table_schema(table)
    holder = {name: name for name in schema}
    for column in explode:
        holder |= {f"{column}.{field}": column for field in _struct_fields(schema.get(column))}
    return holder


def _struct_fields(kind: pa.DataType | None) -> list[str]:
    """Fields of a list of structs; none for any other type."""
    if kind is None or not hasattr(kind, "value_type") or not pa.types.is_struct(kind.value_type):
        return []
    return [field.name for field in kind.value_type]


# ---------------------------------------------------------------------------------------------- one file


def _file_schema(path: Path, table: config.Table) -> pa.Schema:
    if os.path.getsize(path) == 0:
        raise InputError(f"{path}: an empty file (0 bytes), expected a table")
    with _one_line_errors(path):
        match _format(path, table):
            case "parquet":
                with _open_parquet(path) as file:
                    schema = file.schema_arrow
            case "jsonl":
                schema = _jsonl_schema(path, os.stat(path).st_mtime_ns, os.path.getsize(path))
            case _:
                schema = pa.schema(
                    [(name, pa.string()) for name in csv_files.header(path, table, _delimiter(path, table))]
                )
    if len(set(schema.names)) < len(schema):
        repeated = next(name for name, count in Counter(schema.names).items() if count > 1)
        raise InputError(f"{path}: column {repeated!r} stands there twice, expected unique names")
    return schema


def _batches(piece: Piece, table: config.Table, columns: list[str], batch_rows: int) -> Iterator[pa.RecordBatch]:
    path = piece.path
    match _format(path, table):
        case "parquet":
            with _open_parquet(path) as file:
                for batch in file.iter_batches(batch_rows, piece.groups, columns, use_threads=False):
                    # Arrow takes what the file says is text, and it may be none; a broken page may hold any offsets.
                    batch.validate(full=True)
                    yield _without_views(batch.select(columns))
        case "jsonl":
            schema = _jsonl_schema(path, os.stat(path).st_mtime_ns, os.path.getsize(path))
            with files.open_bytes(path) as file:
                yield from jsonl.batches(
                    path, file, pa.schema([schema.field(name) for name in columns]), files.BLOCK_BYTES
                )
        case _:
            yield from csv_files.batches(path, table, _delimiter(path, table), columns)


def _without_views(batch: pa.RecordBatch) -> pa.RecordBatch:
    """Views of text and bytes as plain ones: Arrow cannot take rows of them."""
    if "_view" not in str(batch.schema):
        return batch
    return batch.cast(pa.schema([(field.name, _without_view(field.type)) for field in batch.schema]))


def _without_view(kind: pa.DataType) -> pa.DataType:
    if pa.types.is_string_view(kind):
        return pa.large_string()
    if pa.types.is_binary_view(kind):
        return pa.large_binary()
    if pa.types.is_struct(kind):
        return pa.struct([(field.name, _without_view(field.type)) for field in kind])
    return pa.large_list(_without_view(kind.value_type)) if "list" in str(kind) and "_view" in str(kind) else kind


@functools.cache
def _jsonl_schema(path: Path, modified: int, size: int) -> pa.Schema:
    with files.open_bytes(path) as file:
        return jsonl.schema(path, file)


@contextmanager
def _one_line_errors(path: Path):
    """Turns errors of Arrow and the codecs about an unreadable file into an InputError of one line."""
    try:
        yield
    except (pa.ArrowException, OSError, UnicodeError) as error:
        raise InputError(f"{path}: cannot be read ({error}); write or copy it again") from error


def _open_parquet(path: Path) -> pa.parquet.ParquetFile:
    with open(path, "rb") as file:
        head = file.read(4)
        file.seek(max(0, os.path.getsize(path) - 4))
        tail = file.read(4)
    if head != b"PAR1":
        raise InputError(f"{path}: not a Parquet file; say its format, as in Table(files, format='csv')")
    if tail != b"PAR1":
        raise InputError(f"{path}: a truncated Parquet file (its end is missing); write or copy it again")
    # Pages are read one by one: with the defaults a file with one large row group would be read into memory whole.
    return pa.parquet.ParquetFile(path, buffer_size=1 << 20, pre_buffer=False)

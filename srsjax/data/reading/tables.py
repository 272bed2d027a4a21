"""Reading tables: Parquet, CSV, TSV and JSON-lines files as a stream of record batches that know their source rows.

Memory does not grow with the size of the files. Messages name a row by file and 1-based data row (the header of a CSV
file is not counted): `items.parquet row 1203`.
"""

from __future__ import annotations

import codecs
import csv
import functools
import glob
import io
import itertools
import os
import re
import tempfile
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
from srsjax.data.reading import jsonl
from srsjax.errors import InputError, nearest

FORMATS = {".parquet": "parquet", ".csv": "csv", ".tsv": "tsv", ".jsonl": "jsonl", ".ndjson": "jsonl"}
COMPRESSIONS = {".gz": "gzip", ".zst": "zstd"}

# Bytes read at a time. A row of CSV must fit in a block; Arrow reads up to 32 blocks of CSV ahead.
BLOCK_BYTES = 2 << 20

SHOWN = 100
"""Names of columns in a message."""

# What "surrogateescape" substitutes for bytes that are invalid in the encoding.
_NOT_TEXT = re.compile("[\ud800-\udfff]")


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


def expand(files: str | tuple[str, ...]) -> list[Path]:
    """The files that paths and globs name, sorted, each once; `${NAME}` and `~` are replaced.

    A file that is named twice, or by links too, is read once. `**` stands for folders at any depth, but for hidden ones
    and links, which may lead back.

    Raises InputError for a path that does not exist, a glob that matches nothing, an unset variable.
    """
    patterns = (files,) if isinstance(files, str) else tuple(files)
    if not any(patterns):
        raise InputError("a table names no files; set its `files` to a path or a glob")
    found = sorted({path for pattern in patterns for path in _match(pattern)}, reverse=True)
    return sorted({os.path.realpath(path): path for path in found}.values())  # of several names the first


def with_variables(pattern: str) -> str:
    """A path or glob with `${NAME}` and `~` replaced. Raises InputError for a variable that is not set."""
    return os.path.expanduser(re.sub(r"\$\{(\w+)\}", lambda match: _variable(match[1], pattern), pattern))


def _match(pattern: str) -> list[Path]:
    name = with_variables(pattern)
    if os.path.isdir(name):
        raise InputError(f"{name}: a folder, expected files; name them, as in {os.path.join(name, '*.parquet')}")
    if os.path.exists(name):
        return [Path(name)]
    found = [Path(path) for path in _glob(name) if os.path.isfile(path)]
    if not found:
        reason = "no file matches" if glob.has_magic(name) else "no such file"
        raise InputError(f"{name}: {reason}; the working folder is {os.getcwd()}")
    return found


def _glob(pattern: str) -> Iterator[str]:
    """`glob.glob`, whose `**` follows no links: round a loop of them it would find a file again and again."""
    parts = pattern.split(os.sep)
    if "**" not in parts:
        yield from glob.iglob(pattern)
        return
    at = parts.index("**")
    rest = os.sep.join(parts[at + 1 :]) or "*"
    for top in glob.glob(os.sep.join([*parts[:at], ""])) if at else [""]:
        for folder, folders, _ in os.walk(top or os.curdir):
            folders[:] = [name for name in folders if not name.startswith(".")]
            yield from _glob(os.path.join(glob.escape(folder), rest))


def _variable(name: str, pattern: str) -> str:
    if name not in os.environ:
        raise InputError(f"{pattern}: the environment variable {name} is not set")
    return os.environ[name]


def _format(path: Path, table: config.Table) -> str:
    if table.format != "auto":
        return table.format
    suffix = Path(path.stem).suffix if path.suffix in COMPRESSIONS else path.suffix
    if suffix not in FORMATS:
        raise InputError(
            f"{path}: the name does not say the format, expected {', '.join(FORMATS)} and, where compressed, "
            f"{' or '.join(COMPRESSIONS)} after it; or set it, as in Table(files, format='csv')"
        )
    return FORMATS[suffix]


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
    for path in expand(table.files):
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
    for path in expand(table.files):
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
    _check_encoding(table)
    paths = expand(table.files)
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
            where = expand(table.files)[0]
            raise InputError(f"{where}: column {column!r} is a list of objects, expected one of {_first(fields)}")
    for name in [*names, *explode]:
        if name not in holder:
            near = nearest(name, holder)
            hint = f"for {near!r}, did you mean {name!r}?" if fixed else f"did you mean {near!r}?"
            near = f"{hint} " if near else ""
            raise InputError(f"{expand(table.files)[0]}: no column {name!r}; {near}It has: {_first(holder)}")
    return list(dict.fromkeys(holder[name] for name in [*names, *explode]))


def _first(names: Collection[str]) -> str:
    """Names for a message, which is no place for all of a table with very many columns."""
    more = f" and {len(names) - SHOWN:,} more" if len(names) > SHOWN else ""
    return ", ".join(itertools.islice(names, SHOWN)) + more


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
                schema = pa.schema([(name, pa.string()) for name in _csv_header(path, table)])
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
            with _open(path) as file:
                yield from jsonl.batches(path, file, pa.schema([schema.field(name) for name in columns]), BLOCK_BYTES)
        case _:
            yield from _csv_batches(path, table, columns)


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
    with _open(path) as file:
        return jsonl.schema(path, file)


def _open(path: Path) -> io.BufferedReader:
    """The bytes of a file, decompressed according to its suffix."""
    return io.BufferedReader(_stream(path))


def _stream(path: Path) -> pa.NativeFile:
    return pa.input_stream(str(path), compression=COMPRESSIONS.get(path.suffix))


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


# ---------------------------------------------------------------------------------------------- CSV and TSV


def _check_encoding(table: config.Table) -> None:
    try:
        "".encode(table.encoding)
    except LookupError:
        raise InputError(
            f"{table.files}: unknown encoding {table.encoding!r}, expected one such as utf-8, utf-16, gb18030, cp1252"
        ) from None


def _is_utf8(table: config.Table) -> bool:
    return codecs.lookup(table.encoding).name in ("utf-8", "utf-8-sig")


def _csv_batches(path: Path, table: config.Table, columns: list[str]) -> Iterator[pa.RecordBatch]:
    header = _csv_header(path, table)
    try:
        stream, quotes = (_stream(path), _quotes(path)) if _is_utf8(table) else _in_utf8(path, table.encoding)
        if quotes % 2:  # Arrow does not report a quote that is still open at the end of a file.
            _name_bad_row(path, table)
        # Arrow reads ahead on a background thread, which would abort the process if it still held a Python object at
        # exit. So it gets its own stream, and both are released, not closed: a stream must not be closed while that
        # thread reads.
        reader = pa.csv.open_csv(
            stream,
            pa.csv.ReadOptions(use_threads=False, block_size=BLOCK_BYTES),
            pa.csv.ParseOptions(delimiter=_delimiter(path, table), newlines_in_values=True),
            pa.csv.ConvertOptions(
                column_types={name: pa.string() for name in header},
                include_columns=columns,
                null_values=[""],
                strings_can_be_null=True,
            ),
        )
        for batch in reader:  # noqa: UP028 (`yield from` would close it)
            yield batch
    except (pa.ArrowInvalid, UnicodeError) as error:
        _name_bad_row(path, table)
        raise InputError(f"{path}: cannot be read as CSV ({error}); a row may have {BLOCK_BYTES >> 20} MiB") from error


def _quotes(path: Path) -> int:
    with _open(path) as file:
        return sum(block.count(b'"') for block in iter(lambda: file.read(BLOCK_BYTES), b""))


def _in_utf8(path: Path, encoding: str) -> tuple[pa.NativeFile, int]:
    """A copy in UTF-8, the only encoding that Arrow reads, and the number of quotes in it."""
    file, name = tempfile.mkstemp(prefix="srsjax-")
    stream = pa.input_stream(name, compression=None)
    os.unlink(name)  # only this process can reach it now: nothing is left behind however it ends
    quotes = 0
    with (
        open(file, "w", encoding="utf-8", newline="") as copy,
        io.TextIOWrapper(_open(path), encoding, newline="") as source,
    ):
        for block in iter(lambda: source.read(BLOCK_BYTES), ""):
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


def _delimiter(path: Path, table: config.Table) -> str:
    return "\t" if _format(path, table) == "tsv" else ","


def _csv_header(path: Path, table: config.Table) -> list[str]:
    for _, cells in _csv_rows(path, table):
        if any(_NOT_TEXT.search(cell) for cell in cells):
            raise InputError(f"{path}: the header has bytes that are not {table.encoding}; set the table's encoding")
        return cells
    raise InputError(f"{path}: no header, expected a first line of column names")


def _csv_rows(path: Path, table: config.Table) -> Iterator[tuple[int, list[str]]]:
    """Line number (from 1) and cells of each row, header included; bytes that are not text become lone surrogates."""
    csv.field_size_limit(2**31 - 1)
    encoding = "utf-8-sig" if _is_utf8(table) else table.encoding
    with io.TextIOWrapper(_open(path), encoding, errors="surrogateescape", newline="") as file:
        reader = csv.reader(file, delimiter=_delimiter(path, table), strict=True)
        line = 1
        try:
            for cells in reader:
                if cells:
                    yield line, cells
                line = reader.line_num + 1
        except csv.Error as error:
            raise InputError(f"{path} line {line}: {error}, expected a row of CSV; look for a stray quote") from None


def _name_bad_row(path: Path, table: config.Table) -> None:
    """Raises InputError for the first row whose number of fields differs from the header's, that has bytes invalid in
    the encoding, or an unclosed quote. Python's slow reader is used only to locate what Arrow's fast one refused."""
    rows = _csv_rows(path, table)
    _, header = next(rows)
    for row, (line, cells) in enumerate(rows, 1):
        where = f"{path} row {row} (line {line})"
        for name, cell in zip(header, cells, strict=False):
            if _NOT_TEXT.search(cell):
                raise InputError(
                    f"{where}, column {name}: bytes that are not {table.encoding}; set the table's encoding"
                )
        if len(cells) != len(header):
            raise InputError(f"{where}: found {len(cells)} field(s), expected {len(header)} as in the header")

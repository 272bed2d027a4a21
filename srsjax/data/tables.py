"""Reading tables: Parquet, CSV, TSV and JSON-lines files as a stream of record batches that know where they come from.

Memory stays flat whatever the size of the files. Rows are named for people by file and 1-based data row (the header of a
CSV file is not counted): `items.parquet row 1203`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa

from srsjax import config


@dataclass(frozen=True)
class Chunk:
    """Consecutive rows of one file."""

    path: Path
    first_row: int
    """Row of the file (from 0) that the first row of the batch is."""
    batch: pa.RecordBatch
    parents: np.ndarray | None = None
    """[n] int64 after `columns.explode`: row of the file, counted from `first_row`, that each row of the batch was in."""

    def __len__(self) -> int:
        return self.batch.num_rows

    def where(self, row: int) -> str:
        """File and row (from 1) of a row of the batch (from 0): `items.parquet row 1203`."""
        raise NotImplementedError


def expand(files: str | tuple[str, ...]) -> list[Path]:
    """The files that paths and globs name, sorted, each once; `${NAME}` and `~` are replaced.

    Raises InputError for a path that does not exist, a glob that matches nothing, an unset variable.
    """
    raise NotImplementedError


def read(table: config.Table, columns: Sequence[str] | None = None, batch_rows: int = 32768) -> Iterator[Chunk]:
    """Streams a table in file and row order, in chunks of 1 to `batch_rows` rows.

    `columns` are those to read (None: all), in this order. Cells of CSV and JSON-lines are text, so that no type depends
    on the rows read first: an empty CSV cell is null, a JSON number is text as it is written, true and false are `true`
    and `false`; JSON lists are lists and JSON objects structs of such text. `columns.py` casts them.

    Raises InputError for whatever is wrong with the files: missing, empty, truncated, of another format or encoding, with
    other columns than the first file, with a broken row, or with no row in all of them.
    """
    raise NotImplementedError


def table_schema(table: config.Table) -> dict[str, pa.DataType]:
    """Names and types of a table's columns, in the order of the first file.

    Parquet footers and CSV headers say it; JSON-lines files are read through once, since any line may bring a new key
    (kept until the file changes). Raises InputError for a file whose columns are not those of the first.
    """
    raise NotImplementedError


def require_columns(table: config.Table, names: Sequence[str], explode: Sequence[str] = ()) -> list[str]:
    """The stored columns that hold `names`, each once: what to hand to `read`.

    A name `c.field`, where `c` is one of the `explode` columns and a list of structs, is held by `c`. Raises InputError
    for a name that is not there: it names the file, the nearest existing column and all columns.
    """
    raise NotImplementedError

"""The work of `prepare` on a Spark cluster.

Spark moves no rows. Each task is one piece of a step: it reads its rows from shared files (the log, or ordered rows
written by the driver), runs the same function as the threads of `srsjax.data.preparing.engine` on each Arrow batch, and
writes the results atomically beside the store under construction. The driver then streams them in order, so that its
memory is bounded and a task that runs twice does no harm. A task's outcome (done, or the line of an InputError) is
returned as a row: a bad row of the log is reported in one line, not as a Java stack trace.
"""

from __future__ import annotations

import functools
import itertools
import os
import pickle
import shutil
import socket
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pyarrow as pa

from srsjax import waits
from srsjax.config import Table
from srsjax.data.preparing.clean import Cleaned, Cleaner
from srsjax.data.preparing.encode import Encoded, Encoder
from srsjax.data.reading import tables
from srsjax.data.store.arrays import Items
from srsjax.data.store.ragged import Ragged
from srsjax.errors import InputError
from srsjax.files import atomic_file

# Batches of about 8192 rows encoded by one task.
TASK_BATCHES = 32


class Spark:
    """An engine (`srsjax.data.preparing.engine.Engine`) that runs on the cluster of a Spark session."""

    def __init__(self, session, scratch: Path):
        """`scratch`: a folder that does not exist yet; all machines must see it under this path."""
        self.session, self.scratch = session, scratch.absolute()

    def clean(self, cleaner: Cleaner, table: Table) -> Iterator[Cleaned]:
        """See `Engine`. A task reads a file, or some row groups of a Parquet file."""
        names = cleaner.stored_columns(table)
        names = list(tables.table_schema(table)) if names is None else names
        pieces = tables.pieces(table, names, cleaner.batch_rows)
        yield from self._run("clean", _CleanPiece(cleaner.fresh(), table, names, pieces), len(pieces))
        if not cleaner.rows_read and not cleaner.impressions_read:
            raise InputError(f"{pieces[-1].path}: no rows, expected at least one")

    def encode(self, encoder: Encoder, batches: Iterator[pa.RecordBatch]) -> Iterator[list[tuple[int, Encoded]]]:
        """See `Engine`. A task encodes some thousands of rows ordered by the driver."""
        folder = self.scratch / "ordered"
        folder.mkdir(parents=True)
        tasks = 0
        for part in itertools.batched(batches, TASK_BATCHES):
            _write(folder / str(tasks), part)
            tasks += 1
        yield from self._run("encode", _EncodePart(encoder, folder), tasks)

    def _run(self, step: str, work: Callable[[int], Iterable], tasks: int) -> Iterator:
        """The results of `work(0)`, `work(1)`, ... in order; each file is removed once read."""
        folder = self.scratch / step
        folder.mkdir(parents=True)
        _write(folder / "work", [work])
        if tasks:
            numbers = self.session.range(0, tasks, 1, numPartitions=tasks)
            run = functools.partial(_run_tasks, str(folder))
            with waits.elsewhere():
                said = numbers.mapInArrow(run, "id long, error string").collect()
            errors = {row["id"]: row["error"] for row in said if row["error"]}
            if errors:
                raise InputError(errors[min(errors)])
        for number in range(tasks):
            path = folder / f"{number}.done"
            if not path.exists():
                raise InputError(
                    f"{path}: written by a Spark executor, but not visible here; data.store must be a folder that "
                    "all machines of the cluster see under one path"
                )
            yield from _read(path)
            path.unlink()


@contextmanager
def open_spark(scratch: Path) -> Iterator[Spark]:
    """The engine of the active session. If there is none, one is started according to Spark's own settings
    (`SPARK_REMOTE`, `spark-submit`, `spark-defaults.conf`; without any, on this machine) and stopped at the end.

    Raises InputError if pyspark is missing or Spark does not start.
    """
    try:
        import pandas  # noqa: F401 (mapInArrow needs it)
        from pyspark.sql import SparkSession
    except ImportError as error:
        raise InputError(
            f"data.engine: 'spark' needs pyspark and pandas ({error}); pip install 'srsjax[spark]', or set data.engine "
            "local"
        ) from error
    active = SparkSession.getActiveSession()
    os.environ.setdefault("PYSPARK_PYTHON", sys.executable)  # else the executors use the first python3 on the path
    try:
        session = active or SparkSession.builder.appName("srsjax.prepare").getOrCreate()
    except Exception as error:  # Java, py4j and Spark raise many kinds
        reason = str(error).strip().split("\n")[0]
        raise InputError(
            f"data.engine: Spark did not start ({reason}); it needs Java 17 or newer (JAVA_HOME); "
            "or set data.engine local"
        ) from error
    try:
        yield Spark(session, scratch)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
        if active is None:
            session.stop()


# ---------------------------------------------------------------------------------------------- on the executors


class _CleanPiece:
    """Reads and cleans one piece of the log."""

    def __init__(self, cleaner: Cleaner, table: Table, names: list[str], pieces: list[tables.Piece]):
        self.cleaner, self.table, self.names, self.pieces = cleaner, table, names, pieces

    def __call__(self, number: int) -> Iterator[Cleaned]:
        for chunk in tables.read_piece(self.pieces[number], self.table, self.names, self.cleaner.batch_rows):
            yield replace(self.cleaner.clean(chunk), chunk=None)


class _EncodePart:
    """Encodes some batches of ordered rows."""

    def __init__(self, encoder: Encoder, folder: Path):
        self.encoder, self.folder = encoder, folder

    def __call__(self, number: int) -> Iterator[list[tuple[int, Encoded]]]:
        for batch in _read(self.folder / str(number)):
            encoded = self.encoder.encode_splits(batch)
            if self.encoder.items:  # the driver has them
                encoded = [(split, replace(part, items=_NO_ITEMS)) for split, part in encoded]
            yield encoded


_NO_ITEMS = Items(Ragged.from_rows([], "int32"))


def _run_tasks(folder: str, batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    """Runs the tasks whose numbers are in `batches` (column `id`), and returns the error of each, or null."""
    for batch in batches:
        errors: list[str | None] = []
        for number in batch["id"].to_pylist():
            try:
                _write(Path(folder) / f"{number}.done", _work(folder)(number))
                errors.append(None)
            except InputError as error:
                errors.append(str(error))
        yield pa.RecordBatch.from_pydict({"id": batch["id"], "error": pa.array(errors, pa.string())})


@functools.lru_cache(1)
def _work(folder: str) -> Callable[[int], Iterable]:
    """The function of a step, read once by each Python worker."""
    path = Path(folder) / "work"
    if not path.exists():
        raise InputError(
            f"{path}: not visible to Spark executor {socket.gethostname()}; data.store must be a folder that all "
            "machines of the cluster see under one path"
        )
    (work,) = _read(path)
    return work


# ---------------------------------------------------------------------------------------------- files of one run


def _write(path: Path, values: Iterable) -> None:
    """Writes values one after another, in a file that appears atomically."""
    with atomic_file(path) as partial, open(partial, "wb") as file:
        for value in values:
            pickle.dump(value, file, protocol=5)


def _read(path: Path) -> Iterator:
    """Streams the values written by `_write`. Only files written by this run are read."""
    with open(path, "rb") as file:
        while file.peek(1):
            yield pickle.load(file)

"""What runs the work of `prepare`: threads of this machine, or a Spark cluster. The store is the same.

Two steps take most of the time, and each of their results depends on one chunk of rows only: reading and cleaning
(`Cleaner.clean`), and tokenising (`Encoder.encode_splits`). An engine runs them for many chunks in parallel and returns
the results in input order. Everything that depends on several rows (numbering, duplicates, impressions, the split,
fitting, writing) is done in this process, in that order, with any engine.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Protocol

import pyarrow as pa

from srsjax.config import Data, Table
from srsjax.data.preparing.clean import Cleaned, Cleaner
from srsjax.data.preparing.encode import Encoded, Encoder
from srsjax.data.reading import tables
from srsjax.errors import InputError
from srsjax.hardware import usable_cores


class Engine(Protocol):
    """What `prepare` needs. Both methods raise InputError for the first bad input in input order."""

    def clean(self, cleaner: Cleaner, table: Table) -> Iterator[Cleaned]:
        """The chunks of a log in input order, cleaned, for `cleaner.add`."""

    def encode(self, encoder: Encoder, batches: Iterator[pa.RecordBatch]) -> Iterator[list[tuple[int, Encoded]]]:
        """`encoder.encode_splits` of each batch, in their order."""


class Local:
    """Threads of this machine: most of the work is done by Arrow, numpy and tokenizers, which release the GIL."""

    def __init__(self, workers: int = 0):
        """`workers`: threads; 0 means one per core that this process may use."""
        if workers < 0:
            raise InputError(f"data.workers: found {workers}, expected 0 (one thread for each core) or more")
        self.workers = workers or usable_cores()

    def clean(self, cleaner: Cleaner, table: Table) -> Iterator[Cleaned]:
        """See `Engine`."""
        chunks = tables.read(table, cleaner.stored_columns(table), cleaner.batch_rows)
        return in_order(cleaner.clean, chunks, self.workers)

    def encode(self, encoder: Encoder, batches: Iterator[pa.RecordBatch]) -> Iterator[list[tuple[int, Encoded]]]:
        """See `Engine`."""
        return in_order(encoder.encode_splits, batches, self.workers)


def open_engine(data: Data, scratch: Path) -> AbstractContextManager[Engine]:
    """The engine that `data.engine` names. `scratch`: a folder that does not exist yet, visible to all machines."""
    if data.engine == "spark":
        from srsjax.data.preparing.spark import open_spark

        return open_spark(scratch)
    return nullcontext(Local(data.workers))


def in_order[In, Out](function: Callable[[In], Out], inputs: Iterable[In], workers: int) -> Iterator[Out]:
    """`map(function, inputs)` by threads. At most `workers + 1` results are held, so memory is bounded; an
    exception is raised where `map` would raise it."""
    if workers == 1:
        yield from map(function, inputs)
        return
    inputs, failure = iter(inputs), None
    waiting: deque[Future[Out]] = deque()
    with ThreadPoolExecutor(workers, "prepare") as pool:
        try:
            while failure is None:
                try:
                    waiting.append(pool.submit(function, next(inputs)))
                except StopIteration:
                    break
                except Exception as error:  # raised below, after the results before it
                    failure = error
                if len(waiting) > workers:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()
    if failure is not None:
        raise failure

"""Scores new rows: `python -m srsjax.score --run runs/ctr --input 'new/*.parquet' --output scores/`.

Writes Parquet files with one row a candidate, in input order: `row`, the candidate's number in the input (from 0), the
columns of the input, and `score`, the probability of the first task (`score_<task>` for further tasks). Of the columns
all are written that are not read as text or vector; `--data.keys` names others. What only training needs (labels,
weights, the user, the columns of `data.group_by`) need not be in the input.

Catalogues are read where the run's config has them; give other files with `--data.catalogues.0.files`. Every row gets a
score: a row whose key is not in a catalogue is read from its own columns where the input has all that the model reads
from the catalogue (an item's `title`, ...), and has each feature's value for a missing one where not. Such rows are
counted. Several processes (`srsjax.distributed`) all read the input and divide its batches between them; the first one
writes.
"""

from __future__ import annotations

import shutil
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from srsjax import cli, distributed
from srsjax.allocator import keep_freed_memory
from srsjax.compilation import enable_cache
from srsjax.config import Table, TrainConfig, columns
from srsjax.data.preparing.sources import Sources
from srsjax.data.reading import tables
from srsjax.errors import InputError
from srsjax.inference.scorer import Scorer
from srsjax.objectives import predict

FIELDS = (
    r"data\.catalogues\.\d+\.(files|format|encoding)",
    r"data\.log\.(format|encoding)",
    r"data\.keys",
    r"batch\.eval_rows",
    r"mesh\..*",
    r"model\.(dtype|attention)",
)
"""Fields of the run's config that scoring reads."""


@dataclass(frozen=True)
class Arguments:
    """What the command takes besides the fields of the run's config."""

    run: str
    """Run folder written by srsjax.train."""
    input: str
    """Path or glob of the rows to score: the columns of the training log, labels not needed."""
    output: str = "scores"
    """Folder for the files of scores; it must not hold any yet."""
    overwrite: bool = False
    """Replace the files of scores that the folder holds."""
    store_items: bool = True
    """Compute the lower layers of a `split` model once for each item of the catalogue, and keep the states in memory
    while scoring; the scores are the same."""


def main(argv: list[str] | None = None) -> int:
    """Runs the command; returns its exit code."""
    config, arguments = cli.load_run(Arguments, argv, "score", __doc__, FIELDS)
    distributed.initialize()
    console = distributed.console()
    output = Path(arguments.output).absolute()
    distributed.on_first(lambda: check_output(output, arguments.overwrite))
    table = replace(config.data.log, files=arguments.input)
    check_names(config, table)
    enable_cache()
    keep_freed_memory()
    scorer = Scorer.load(arguments.run, config=config)
    if arguments.store_items and scorer.can_store_items:
        size = scorer.store_items().states.nbytes / 2**20
        items = len(scorer.encoder.items.tokens) - 1  # the last one is for unknown keys
        console.print(f"{items:,} items stored, {size:,.0f} MiB", highlight=False)
    started, unknown = time.monotonic(), Counter()
    made = scores(scorer, config, table, unknown)
    rows = write(made, output, arguments.overwrite) if distributed.is_first() else sum(map(len, made))
    distributed.on_first(lambda: None)  # nobody leaves before the files are whole
    seconds = time.monotonic() - started
    for line in describe_unknown(scorer, table, unknown):
        console.print(line, highlight=False, soft_wrap=True)
    console.print(f"{rows:,} rows scored in {seconds:.1f} s ({rows / seconds:,.0f} rows/s): {output}", highlight=False)
    return 0


def check_output(output: Path, overwrite: bool) -> None:
    """Raises InputError where the folder for the scores holds what must not be deleted."""
    if output.exists() and not output.is_dir():
        raise InputError(f"{output}: a file, expected a folder for the files of scores")
    if output.exists() and any(output.iterdir()):
        if not overwrite:
            raise InputError(f"{output}: not empty; choose another --output, or --overwrite True")
        if not all(path.match("part-*.parquet") for path in output.iterdir()):
            raise InputError(f"{output}: holds more than files of scores; choose another --output")


def write(tables: Iterator[pa.Table], output: Path, overwrite: bool) -> int:
    """Writes one file for each table; the folder is there when all are whole. Returns the number of rows."""
    rows, partial = 0, output.with_name(f".{output.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        for number, table in enumerate(tables):
            pq.write_table(table, partial / f"part-{number:05d}.parquet", compression="zstd")
            rows += len(table)
        if overwrite:
            shutil.rmtree(output, ignore_errors=True)
        elif output.exists():
            output.rmdir()
        partial.rename(output)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return rows


def score_names(config: TrainConfig) -> list[str]:
    """The columns of scores, one a task."""
    return ["score", *(f"score_{task.name}" for task in config.schema.tasks[1:])]


def check_names(config: TrainConfig, table: Table) -> None:
    """Raises InputError where a column of the input that is to be written is called as one of the scores, or `row`."""
    sources = Sources(config.schema, config.data)
    copied = sources.scored_columns(tables.exploded_columns(table, columns(config.data.explode)))
    clash = [name for name in ("row", *score_names(config)) if name in copied]
    if clash:
        raise InputError(
            f"{table.files}: column {clash[0]!r} has the name of a column of scores; rename it, or name the columns to "
            "write without it, as in --data.keys user_id item_id"
        )


def scores(scorer: Scorer, config: TrainConfig, table: Table, unknown: Counter[str]) -> Iterator[pa.Table]:
    """Tables of row numbers, columns of the input and scores, in input order, one for each chunk of rows read; counts
    rows with `unknown` keys by catalogue."""
    row, tasks = 0, config.schema.tasks
    for chunk in scorer.encoder.encode_files(table, labels=False):
        values = predict(tasks, scorer.logits_of(chunk)).astype(np.float32)
        unknown.update(chunk.unknown)
        made = pa.Table.from_batches([chunk.keys]).add_column(0, "row", pa.array(np.arange(row, row + len(values))))
        row += len(values)
        for t, name in enumerate(score_names(config)):
            made = made.append_column(name, pa.array(values[:, t]))
        yield made


def describe_unknown(scorer: Scorer, table: Table, unknown: Counter[str]) -> Iterator[str]:
    """One line for each catalogue that had not every key: how many rows, and what they were read as."""
    sources = scorer.encoder.sources
    for name, rows in unknown.items():
        names = tables.exploded_columns(table, columns(sources.data.explode))
        own = sources.own_columns(name, names)
        if sources.brought(name, names) is None:
            read = f"missing; to have them read, give the input the columns {', '.join(own.values())}"
        else:
            read = "their own columns say"
        yield f"rows whose key is not in catalogue {name!r}: {rows:,}, scored as {read}"


if __name__ == "__main__":
    cli.run(main)

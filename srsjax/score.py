"""Scores new rows: `python -m srsjax.score --run runs/ctr --input 'new/*.parquet' --output scores/`.

Writes the key columns of the input and `score`, the probability of the first task (`score_<task>` for further tasks),
one row a candidate in input order, as Parquet files. Catalogues are read where the run's config has them; give other
files with `--data.catalogues.0.files`. Several processes (`srsjax.distributed`) all read the input and divide its
batches between them; the first one writes.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from srsjax import cli, distributed
from srsjax.compilation import enable_cache
from srsjax.config import TrainConfig
from srsjax.console import say
from srsjax.cpu import keep_freed_memory
from srsjax.errors import InputError
from srsjax.files import atomic_folder
from srsjax.inference.scorer import Scorer
from srsjax.objectives import predict

FIELDS = (
    r"data\.catalogues\.\d+\.(files|format|encoding|unknown)",
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
    output = Path(arguments.output).absolute()
    distributed.on_first(lambda: check_output(output, arguments.overwrite))
    enable_cache()
    keep_freed_memory()
    scorer = Scorer.load(arguments.run, config=config)
    if arguments.store_items and scorer.can_store_items:
        size = scorer.store_items().states.nbytes / 2**20
        say(f"{len(scorer.encoder.items.tokens):,} items stored, {size:,.0f} MiB")
    started, tables = time.monotonic(), scores(scorer, config, arguments.input)
    rows = write(tables, output, arguments.overwrite) if distributed.is_first() else sum(map(len, tables))
    distributed.on_first(lambda: None)  # nobody leaves before the files are whole
    seconds = time.monotonic() - started
    say(f"{rows:,} rows scored in {seconds:.1f} s ({rows / seconds:,.0f} rows/s): {output}")
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
    rows = 0
    with atomic_folder(output, exists="replace" if overwrite else "error") as partial:
        for number, table in enumerate(tables):
            pq.write_table(table, partial / f"part-{number:05d}.parquet", compression="zstd")
            rows += len(table)
    return rows


def scores(scorer: Scorer, config: TrainConfig, files: str) -> Iterator[pa.Table]:
    """Tables of key columns and scores, in input order, one for each chunk of rows read."""
    names = ["score", *(f"score_{task.name}" for task in config.schema.tasks[1:])]
    for chunk in scorer.encoder.encode_files(replace(config.data.log, files=files), labels=False):
        clash = [name for name in names if name in chunk.keys.schema.names]
        if clash:
            raise InputError(f"{files}: column {clash[0]!r} is a key column and the name of a score; set data.keys")
        values = predict(config.schema.tasks, scorer.logits(chunk.split, chunk.items)).astype(np.float32)
        table = pa.Table.from_batches([chunk.keys])
        for t, name in enumerate(names):
            table = table.append_column(name, pa.array(values[:, t]))
        yield table


if __name__ == "__main__":
    cli.run(main)

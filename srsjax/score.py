"""Scores new rows: `python -m srsjax.score --run runs/ctr --input 'new/*.parquet' --output scores/`.

Writes one row a candidate in input order, as Parquet files: `row` (its number in the input, from 0), every column of
the input that is no text and no vector, and `score`, the probability of the first task (`score_<task>` for further
tasks). `--data.keys` names the columns instead. Catalogues are read where the run's config has them; give other files
with `--data.catalogues.0.files`. An item that no catalogue has is read from the input's own columns where it has those
that the catalogue gives; else its features are missing, and the number of such candidates is printed.

Several processes (`srsjax.distributed`) all read the input and divide its batches between them; the first one writes.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

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
from srsjax.objectives import columns, logit_columns

FIELDS = (
    r"data\.catalogues\.\d+\.(files|format|encoding)",
    r"data\.log\.(format|encoding)",
    r"data\.keys",
    r"evaluate\.negatives_rate",
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
    unknown: Literal["missing", "error"] = "missing"
    """What becomes of a key that neither a catalogue nor the input's own columns describe: its features are missing,
    or scoring stops."""
    raw: bool = False
    """Write the scores of the model alone, without calibration and `evaluate.negatives_rate`, and its logits beside
    them: `logit` (`logit_<task>` for further tasks; of classes one each)."""
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
    scorer = Scorer.load(arguments.run, config=config, unknown=arguments.unknown, raw=arguments.raw)
    table = replace(config.data.log, files=arguments.input)
    scorer.encoder = scorer.encoder.with_new_rows(table)
    if arguments.store_items and scorer.can_store_items:
        stored = scorer.store_items()
        size = stored.states.nbytes / 2**20
        count = len(stored.offsets) - 1 - (arguments.unknown == "missing")  # one row is of no item
        say(f"{count:,} items stored, {size:,.0f} MiB")
    unknown: Counter[str] = Counter()
    started, tables = time.monotonic(), scores(scorer, config, arguments.input, unknown, arguments.raw)
    rows = write(tables, output, arguments.overwrite) if distributed.is_first() else sum(map(len, tables))
    distributed.on_first(lambda: None)  # no process ends before the files are complete
    seconds = time.monotonic() - started
    for name, count in unknown.items():
        if count:
            say(f"{count:,} candidates without a row in catalogue {name}: their features are missing")
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


def scores(
    scorer: Scorer, config: TrainConfig, files: str, unknown: Counter[str], raw: bool = False
) -> Iterator[pa.Table]:
    """Tables of columns of the input and scores, in input order, one for each chunk of rows read.

    `unknown` counts the candidates whose key no catalogue has, by catalogue; `raw` adds columns of logits.
    """
    tasks, outputs = config.schema.tasks, scorer.session.spec.outputs

    def made_of(logits: np.ndarray) -> dict[str, np.ndarray]:
        return columns(tasks, outputs, logits) | (logit_columns(tasks, outputs, logits) if raw else {})

    names = [*made_of(np.zeros((0, scorer.session.spec.num_outputs), np.float32))]
    for chunk in scorer.encoder.encode_files(replace(config.data.log, files=files), labels=False):
        assert chunk.keys is not None  # `encode_files` makes them
        numbered = [] if config.data.keys else ["row"]
        clash = [name for name in [*numbered, *names] if name in chunk.keys.schema.names]
        if clash:
            raise InputError(f"{files}: column {clash[0]!r} has the name of a column of scores; set --data.keys")
        made = made_of(scorer.logits(chunk.split, chunk.items))
        unknown.update(chunk.unknown)
        table = pa.Table.from_batches([chunk.keys])
        if numbered:
            table = table.add_column(0, "row", pa.array(chunk.split.example))
        for name, values in made.items():
            array = (
                pa.array(values)
                if values.ndim == 1
                else pa.FixedSizeListArray.from_arrays(values.ravel(), values.shape[1])
            )
            table = table.append_column(name, array)
        yield table


if __name__ == "__main__":
    cli.run(main)

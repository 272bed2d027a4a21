"""What is scored though its key is in no catalogue: by its own columns where it brings them, else as missing.

Training refuses, leaves out or fills such rows, as `Catalogue.unknown` says. Scoring gives every row a score, so that
the scores are as many as the rows: a new item has the text that its row brings (all columns that the features read
from the catalogue), else each feature's value for a missing one. In histories unknown items are left out.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pyarrow as pa

from srsjax.config import TrainConfig
from srsjax.data.preparing.catalogue import Catalogue, find_items, history_advice, read_values
from srsjax.data.preparing.sources import Column
from srsjax.data.reading import cells
from srsjax.data.reading.tables import Chunk


def for_scoring(config: TrainConfig) -> TrainConfig:
    """A run's config whose catalogues take unknown keys as missing, whatever its training did with them."""
    catalogues = tuple(replace(catalogue, unknown="missing") for catalogue in config.data.catalogues)
    return replace(config, data=replace(config.data, catalogues=catalogues))


def with_own_rows(
    catalogues: dict[str, Catalogue], name: str, rows: np.ndarray, own: np.ndarray, brought: dict[Column, str], chunk
) -> Catalogue:
    """A catalogue of n rows without keys: those of a chunk, each read from the chunk or from a catalogue.

    Args:
      catalogues: all of them; histories hold their rows.
      name: the catalogue whose columns it has.
      rows: [n] int64, row of that catalogue; -1 has nothing in any column.
      own: [n] bool, which rows are read from the chunk instead.
      brought: the chunk's column for each of the catalogue's (`Sources.own_columns`).
      chunk: the n rows as they were read.

    Raises InputError for a value that cannot be read.
    """
    new, order = np.flatnonzero(own), np.arange(len(chunk))
    order[new] = len(chunk) + np.arange(len(new))
    known = pa.array(rows, mask=own | (rows < 0))
    values = {}
    for column, called in brought.items():
        mine = _read(chunk.take(new), column, called, catalogues)
        values[column] = pa.concat_arrays([catalogues[name].values[column].take(known), mine]).take(pa.array(order))
    return Catalogue.of_values(catalogues[name].spec, values)


def _read(chunk: Chunk, column: Column, called: str, catalogues: dict[str, Catalogue]) -> pa.Array:
    """A column of a catalogue from rows that call it otherwise."""
    problems = cells.Problems()
    values = read_values(chunk, replace(column, name=called), problems)
    if column.items:
        values, lost = find_items(values, catalogues[column.items])
        if catalogues[column.items].spec.unknown == "error":
            problems.report(chunk, lost > 0, called, history_advice(catalogues[column.items].spec))
    return values

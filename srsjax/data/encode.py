"""Log rows to arrays: one function for training data, for new files and for Python values.

An `Encoder` is made by `prepare`, or loaded from a store or run folder (`manifest.json` and `tokenizer/`) and the
catalogue files of the config. It never fits anything: fills and vocabularies come from the manifest.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa

from srsjax.config import Table, TrainConfig
from srsjax.data.store import Items, Split

# What a caller gives for one context or one candidate: values by column name of the log or of a catalogue, or the text
# itself where that side has exactly one Text feature.
Value = str | Mapping[str, object]


@dataclass(frozen=True)
class Chunk:
    """Some log rows as arrays; impressions are whole, in input order."""

    split: Split
    """Its impressions; `split.item` holds rows of `items`."""
    items: Items
    """Candidate texts and shared features: the whole catalogue, or the distinct texts of this chunk."""
    keys: pa.RecordBatch
    """The columns that go into a file of scores (`data.keys`), one row a candidate [M]."""


class Encoder:
    """Turns log rows into arrays as a schema, a tokenizer, catalogues and fitted statistics say."""

    def encode_files(self, table: Table | None = None, labels: bool = True) -> Iterator[Chunk]:
        """Streams the rows of `table` (default: the config's log) in input order, every row one candidate.

        `split.example` counts 0, 1, ... over the input. An impression is a log row (exploded, where the config says so);
        rows are not grouped, deduplicated or left out: a row that cannot be encoded raises InputError. Without `labels`
        label and weight columns need not exist; labels and weights are 0.
        """
        raise NotImplementedError

    def encode_values(self, contexts: Sequence[Value], candidates: Sequence[Sequence[Value]]) -> Chunk:
        """One impression for each of `contexts`, with its own list of candidates; labels and weights are 0.

        A value is a mapping of column names to values. Columns of a catalogue may be given as such (`{"title": ...}`) or
        looked up by the key (`{"item_id": 7}`). A plain string stands for the text of a side with one Text feature.
        Raises InputError where a column is missing or a key is unknown.
        """
        raise NotImplementedError


def load_encoder(config: TrainConfig, folder: str | Path) -> Encoder:
    """The encoder of a store or run folder, which holds `manifest.json` and `tokenizer/`; reads the catalogue files."""
    raise NotImplementedError

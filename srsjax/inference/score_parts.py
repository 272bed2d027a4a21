"""Scores parts of the input one after the other; memory holds one part of scores and a few pieces of rows."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass, field

import numpy as np
import pyarrow as pa

from srsjax.data.batches.batch import PackedBatch
from srsjax.data.preparing.clean import Cleaned, Cleaner
from srsjax.data.preparing.encode import Encoded
from srsjax.data.preparing.engine import in_order
from srsjax.data.reading.cells import Problem
from srsjax.errors import InputError
from srsjax.inference.input_parts import InputParts, Part, Piece
from srsjax.inference.scorer import Scorer
from srsjax.objectives import columns, logit_columns

ROW = "row"
"""The column that numbers the rows of the input, where `data.keys` names no columns."""
AHEAD = 2
"""Threads that read, clean and tokenise the next pieces while one is scored."""


class NonFiniteScore(Exception):
    """A score is infinite or not a number; the message names the first such row."""


@dataclass
class Totals:
    """Sums over parts; plain numbers, so that those of several processes can be added."""

    parts: int = 0
    rows: int = 0
    """Candidates that have a score."""
    set_aside: int = 0
    """Candidates without one, because their rows are bad."""
    unknown: dict[str, int] = field(default_factory=dict)
    """Candidates whose key a catalogue lacks, by catalogue."""

    def add(self, other: Totals) -> None:
        """Adds those of other parts."""
        self.parts, self.rows = self.parts + other.parts, self.rows + other.rows
        self.set_aside += other.set_aside
        for name in sorted({*self.unknown, *other.unknown}):
            self.unknown[name] = self.unknown.get(name, 0) + other.unknown.get(name, 0)

    @classmethod
    def of(cls, part: Part) -> Totals:
        """Those of one part."""
        return cls(1, part.scores, part.set_aside, part.unknown)


class Watch:
    """Is told how scoring goes on; what it raises ends it."""

    def read(self, piece: Piece) -> None:
        """A piece comes next, to be scored or skipped."""

    def assembled(self, batch: PackedBatch) -> None:
        """A batch of this process is about to be dispatched."""

    def scored(self, pairs: int) -> None:
        """So many candidates, those of a batch, are done."""


def check_names(scorer: Scorer, cleaner: Cleaner, files: str, raw: bool = False) -> None:
    """Raises InputError where a column of the input has the name of a column of scores."""
    numbered = [] if scorer.config.data.keys else [ROW]
    names = [*numbered, *_columns(scorer, np.zeros((0, scorer.session.spec.num_outputs), np.float32), raw)]
    if clash := [name for name in names if name in cleaner.keep]:
        raise InputError(f"{files}: column {clash[0]!r} has the name of a column of scores; set --data.keys")


def score_parts(
    scorer: Scorer,
    cleaner: Cleaner,
    parts: InputParts,
    wanted: Callable[[int], bool],
    made: dict[int, Part],
    write: Callable[[Part, pa.Table, list[Problem]], None],
    watch: Watch,
    raw: bool = False,
) -> Totals:
    """Scores the wanted parts and hands each to `write`, complete: where it is in the input, its table of the columns
    that are kept and the scores, one row a candidate in input order, and the problems of bad rows.

    `made` are parts that are complete, by number; `raw` adds columns of logits. Returns the totals of the
    parts written.

    Raises InputError for bad input, NonFiniteScore, and whatever `watch` raises.
    """
    totals, first = Totals(), 0  # candidates of the input before the piece
    open_part = _OpenPart()

    def prepare(piece: Piece) -> tuple[Piece, int, Cleaned | None, Encoded | None]:
        """A piece and its number of candidates and, where it is wanted, its rows. Runs in threads."""
        if piece.chunk is None or not piece.wanted:
            count = piece.examples if piece.examples is not None or piece.chunk is None else cleaner.count(piece.chunk)
            return piece, count or 0, None, None
        cleaned, encoded = scorer.encoder.encode_chunk(cleaner, piece.chunk)
        return piece, cleaned.rows_read, cleaned, encoded

    for piece, examples, cleaned, encoded in in_order(prepare, parts.read(wanted, made), AHEAD):
        watch.read(piece)
        if cleaned is not None and encoded is not None:
            open_part.add(piece, cleaned, encoded, _table(scorer, cleaned, encoded, first, watch, raw))
            if piece.ends_part:
                part, table, problems = open_part.close()
                open_part = _OpenPart()
                write(part, table, problems)
                totals.add(Totals.of(part))
        first += examples
    return totals


class _OpenPart:
    """The pieces of a part so far."""

    def __init__(self) -> None:
        self.pieces: list[Piece] = []
        self.tables: list[pa.Table] = []
        self.problems: dict[Problem, None] = {}  # what is wrong with a context is wrong with each of its candidates
        self.examples = 0
        self.unknown: Counter[str] = Counter()

    def add(self, piece: Piece, cleaned: Cleaned, encoded: Encoded, table: pa.Table) -> None:
        self.pieces.append(piece)
        self.tables.append(table)
        self.problems |= dict.fromkeys(cleaned.problems)
        self.examples += cleaned.rows_read
        self.unknown.update(encoded.unknown)

    def close(self) -> tuple[Part, pa.Table, list[Problem]]:
        """The part, its scores and its problems."""
        first, last, table = self.pieces[0], self.pieces[-1], pa.concat_tables(self.tables).combine_chunks()
        part = Part(
            first.number,
            first.file,
            first.first_row,
            sum(piece.rows for piece in self.pieces),
            self.examples,
            last.ends_file,
            len(table),
            len(self.problems),
            dict(sorted(self.unknown.items())),
        )
        return part, table, list(self.problems)


def _table(scorer: Scorer, cleaned: Cleaned, encoded: Encoded, first: int, watch: Watch, raw: bool) -> pa.Table:
    """The columns that are kept and the scores of a piece; `first` is the number of its first candidate."""
    if len(encoded.split.item):
        logits = scorer.logits(encoded.split, encoded.items, watch.scored, watch.assembled)
    else:
        logits = np.zeros((0, scorer.session.spec.num_outputs), np.float32)
    made = _columns(scorer, logits, raw)
    _check_finite(cleaned, encoded, {"logit": logits} | made)
    assert encoded.keys is not None  # `encode_chunk` makes them
    table = pa.Table.from_batches([encoded.keys])
    if not scorer.config.data.keys:
        table = table.add_column(0, ROW, pa.array(encoded.split.example + first))
    for name, values in made.items():
        flat = values.ndim == 1
        array = pa.array(values) if flat else pa.FixedSizeListArray.from_arrays(values.ravel(), values.shape[1])
        table = table.append_column(name, array)
    return table


def _columns(scorer: Scorer, logits: np.ndarray, raw: bool) -> dict[str, np.ndarray]:
    of = (scorer.config.schema.tasks, scorer.session.spec.outputs, logits)
    return columns(*of) | (logit_columns(*of) if raw else {})


def _check_finite(cleaned: Cleaned, encoded: Encoded, made: dict[str, np.ndarray]) -> None:
    """Raises NonFiniteScore where a number of a row is not finite."""
    for name, values in made.items():
        if values.dtype.kind != "f" or np.isfinite(values).all():
            continue
        bad = int(np.flatnonzero(~np.isfinite(values).reshape(len(values), -1).all(axis=1))[0])
        assert cleaned.chunk is not None
        row = cleaned.chunk.where(int(encoded.split.example[bad]))
        raise NonFiniteScore(
            f"{row}: found {name} {values[bad]}, expected a finite number; no score of this part is written. Look at "
            f"the row's numbers, or for a checkpoint that diverged"
        )


def merged(own: list[dict]) -> Totals:
    """The totals of several processes, each as JSON."""
    totals = Totals()
    for each in own:
        totals.add(Totals(**each))
    return totals


def as_json(totals: Totals) -> dict:
    """Totals as JSON, without the catalogues that lack nothing."""
    return asdict(totals) | {"unknown": {name: count for name, count in totals.unknown.items() if count}}

"""Log rows to arrays: one function for training data, for new files and for Python values.

An `Encoder` is made by `prepare`, or loaded from a store or run folder (`manifest.json` and `tokenizer/`) and the
catalogue files of the config. It never fits anything: fills and vocabularies come from the manifest.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from srsjax.config import Table, TrainConfig, Unknown, columns
from srsjax.config_data import LABELS
from srsjax.data.kind import ArrayKind
from srsjax.data.kinds import HistoryKind, TextKind, kind_of, of_kind
from srsjax.data.preparing import convert, privacy
from srsjax.data.preparing.catalogue import Catalogue, add_rows, read_catalogues
from srsjax.data.preparing.clean import Cleaned, Cleaner
from srsjax.data.preparing.convert import CodedText
from srsjax.data.preparing.sources import Column, Sources
from srsjax.data.preparing.statistics import Fitted
from srsjax.data.preparing.values import Value, chunk_of, require, stand_in
from srsjax.data.reading import tables
from srsjax.data.store.arrays import Items, Split
from srsjax.data.store.ragged import Ragged, join
from srsjax.data.store.tokenizer import TextEncoder, load_tokenizer
from srsjax.errors import InputError

Coder = Callable[[Column], CodedText]


@dataclass(frozen=True)
class Encoded:
    """Some log rows as arrays; impressions are whole and in the order of the rows."""

    split: Split
    """Its impressions; `split.item` holds rows of `items`."""
    items: Items
    """Candidate texts and shared features: the whole catalogue, or the distinct texts of these rows."""
    keys: pa.RecordBatch | None = None
    """The columns that go into a file of scores (`Sources.kept_columns`), one row a candidate [M]; None where none is
    made."""
    cut: Counter[str] = field(default_factory=Counter)
    """By feature: impressions or candidates whose text was cut to the feature's budget. Of a history also `NAME items`,
    items not read because there were too many, and `NAME item texts`, items cut to their budget."""
    unseen: Counter[str] = field(default_factory=Counter)
    """Labels of classes that no training row has, by task."""
    unknown: Counter[str] = field(default_factory=Counter)
    """Candidates (of values also contexts) whose key is not in the catalogue, by catalogue."""


@dataclass(frozen=True)
class Joined:
    """What the features read from one catalogue, encoded: V rows and one more, the last, for a missing key (-1)."""

    texts: dict[str, CodedText] = field(default_factory=dict)
    """Text features; codes [V + 1]."""
    arrays: dict[str, np.ndarray] = field(default_factory=dict)
    """Categorical, numeric and vector features, [V + 1, ...]."""
    lists: dict[str, pa.Array] = field(default_factory=dict)
    """Histories as rows of the catalogue they name, [V + 1] large_list<int64>."""


class Encoder:
    """Turns log rows into arrays as a schema, a tokenizer, catalogues and fitted statistics say."""

    def __init__(self, sources: Sources, catalogues: dict[str, Catalogue], text: TextEncoder, fitted: Fitted):
        self.sources, self.catalogues, self.text, self.fitted = sources, catalogues, text, fitted
        coded = self._coder(catalogues)
        used = {column.table for feature in sources.features for column in sources.read(feature)} - {""}
        self.joined = {name: self._encode_catalogue(name, catalogues[name], coded) for name in used}
        histories = of_kind(sources.features, HistoryKind)
        self.histories = {kind.feature.name: self._history_items(kind, coded) for kind in histories}
        self.items = self._items_of(self.joined, sources.home) if sources.home else None
        """The store's items, where they are the rows of a catalogue."""

    def encode_files(self, table: Table | None = None, labels: bool = True) -> Iterator[Encoded]:
        """Streams the rows of `table` (default: the config's log) in input order, every row one candidate.

        `split.example` counts 0, 1, ... over the input. An impression is a log row (exploded, where the config says
        so); rows are not grouped, deduplicated or left out: a row that cannot be encoded raises InputError. Without
        `labels` label and weight columns need not exist; labels and weights are 0.
        """
        table = table or self.sources.data.log
        cleaner = self.scoring_cleaner(table, labels)
        for chunk in tables.read(table, cleaner.stored_columns(table), cleaner.batch_rows):
            cleaned = cleaner.clean(chunk)
            yield self._with_keys(cleaner, cleaned, cleaner.add(cleaned))

    def scoring_cleaner(
        self, table: Table, labels: bool = False, on_bad_row: Literal["error", "skip"] = "error"
    ) -> Cleaner:
        """A cleaner that leaves no row of `table` out but, with `skip`, bad ones; it keeps the columns of a file of
        scores (`Sources.kept_columns`)."""
        keep = self.sources.kept_columns(tables.column_names(table, columns(self.sources.data.explode)))
        return Cleaner(
            self.sources,
            self.catalogues,
            refuse,
            labels=labels,
            splitting=False,
            on_bad_row=on_bad_row,
            leave_out=False,
            keep=keep,
        )

    def encode_chunk(self, cleaner: Cleaner, chunk: tables.Chunk) -> tuple[Cleaned, Encoded]:
        """A chunk of log rows as it was cleaned, without labels, and as arrays; `split.example` counts the candidates
        of the chunk from 0, those of bad rows included. Changes nothing here: safe to call from several threads."""
        cleaned = cleaner.clean(chunk)
        return cleaned, self._with_keys(cleaner, cleaned, cleaned.rows)

    def _with_keys(self, cleaner: Cleaner, cleaned: Cleaned, rows: pa.RecordBatch) -> Encoded:
        """The clean rows of a chunk, numbered as they are to be, and what of them goes into a file of scores."""
        assert cleaned.chunk is not None  # it stays away only where another machine read it
        keys = cleaned.chunk.batch.select(cleaner.keep)
        if len(rows) < len(keys):
            keys = keys.take(cleaned.rows["example"])
        unknown = Counter({name: int((_rows(rows, name) < 0).sum()) for name in cleaner.joined})
        return replace(self.encode(rows), keys=keys, unknown=unknown)

    def with_new_rows(self, table: Table) -> Encoder:
        """An encoder whose catalogues also have the rows of a log whose keys they lack, where the log itself has all
        columns that the features read from the catalogue. Without new rows, this one."""
        if self.sources.data.explode:
            return self
        catalogues = {name: add_rows(self.sources, catalogue, table) for name, catalogue in self.catalogues.items()}
        if all(catalogues[name] is self.catalogues[name] for name in catalogues):
            return self
        return Encoder(self.sources, catalogues, self.text, self.fitted)

    def encode_values(self, contexts: Sequence[Value], candidates: Sequence[Sequence[Value]]) -> Encoded:
        """One impression for each of `contexts`, with its own list of candidates; labels and weights are 0.

        A value is a mapping of column names to values. The columns of a catalogue are given as such (`{"title": ...}`)
        or looked up by the key (`{"item_id": 7}`), in one way for all values of a side. A plain string stands for the
        text of a side whose only feature is a Text. Raises InputError where a column is missing, where some values are
        given in one way and some in the other, or a key is unknown and the catalogue's `unknown` is not `missing`.
        """
        counts = np.fromiter((len(own) for own in candidates), np.int64, len(candidates))
        context_of = np.repeat(np.arange(len(contexts)), counts)
        unknown: Counter[str] = Counter()
        context, context_joined = self._value_columns("context", contexts, unknown)
        values = [value for own in candidates for value in own]
        candidate, candidate_joined = self._value_columns("candidate", values, unknown)
        rows = {"example": pa.array(np.arange(len(context_of))), "impression": pa.array(context_of)} | candidate
        rows |= {name: values.take(pa.array(context_of)) for name, values in context.items()}
        encoded = self.encode(pa.RecordBatch.from_pydict(rows), context_joined | candidate_joined)
        return replace(encoded, unknown=unknown)

    def _value_columns(
        self, side: str, values: Sequence[Value], unknown: Counter[str]
    ) -> tuple[dict[str, pa.Array], dict[str, Joined]]:
        """What one side adds to clean rows, one row a value, and the catalogues that its values replace; `unknown`
        counts values whose key is not in the catalogue."""
        features = getattr(self.sources.schema, side)
        if not features:
            return {}, {}
        chunk = chunk_of(self.sources, side, values)
        tables = {column.table for feature in features for column in self.sources.read(feature)} - {""}
        made = ((name, stand_in(self.sources, name, chunk, values, self.catalogues)) for name in tables)
        stand_ins = {name: catalogue for name, catalogue in made if catalogue is not None}
        catalogues = self.catalogues | stand_ins
        cleaner = Cleaner(self.sources, catalogues, refuse, labels=False, splitting=False, leave_out=False)
        problems, rows = self.sources.problems(), {}
        out: dict[str, pa.Array] = {}
        for name in tables:
            rows[name] = np.arange(len(chunk)) if name in stand_ins else cleaner.join(chunk, name, problems, {})
            unknown[name] += int((rows[name] < 0).sum())
        for feature in features:
            for column in self.sources.read(feature) if not kind_of(feature).training_only else ():
                if not column.table:
                    require(chunk, column.name)
            cleaner.feature(chunk, feature, rows, problems, {}, out)
        out |= {f"row:{name}": pa.array(row) for name, row in rows.items()}
        coded = self._coder(catalogues)
        return out, {name: self._encode_catalogue(name, stand_ins[name], coded) for name in stand_ins}

    def _check_one_context(self, rows: pa.RecordBatch, heads: pa.RecordBatch, head_of: np.ndarray) -> None:
        """Raises InputError where the rows of one impression differ in a context feature: it has one context."""
        for feature in self.sources.schema.context:
            table = self.sources.column(feature).table
            column = f"row:{table}" if table else f"feature:{feature.name}"
            if not rows[column].equals(heads[column].take(pa.array(head_of))):
                raise InputError(
                    f"data.group_by: rows of one impression differ in context feature {feature.name!r}, expected one "
                    f"context an impression; add its column to data.group_by, or make it a candidate feature"
                )

    def encode(self, rows: pa.RecordBatch, joined: dict[str, Joined] | None = None) -> Encoded:
        """Clean rows (`srsjax.data.preparing.clean`) of whole impressions, each with adjacent rows, as arrays. `joined`
        replaces catalogues where the rows bring their own."""
        cut: Counter[str] = Counter()
        schema, home = self.sources.schema, self.sources.home
        own_items = joined and home in joined
        joined = self.joined | (joined or {})
        impression = rows["impression"].to_numpy()
        starts = np.flatnonzero(np.diff(impression, prepend=-1))
        heads = rows.take(pa.array(starts))
        if len(starts) < len(impression):
            self._check_one_context(rows, heads, np.cumsum(np.diff(impression, prepend=-1) != 0) - 1)
        context = self._texts(schema.context, heads, joined, cut)
        candidate = self._texts(schema.candidate, rows, joined, cut)
        if home and self.items is not None:
            items = self._items_of(joined, home) if own_items else self.items
            item = _rows(rows, home) % len(items.tokens)  # -1, a missing key, is the last row
        else:
            first, item = convert.distinct([text.codes for text in candidate], len(impression))
            items = Items(self._join(candidate, first))
        own = [f for f in schema.candidate if not home or self.sources.column(f).table != home]
        labels, weights, unseen = self._labels(rows)
        split = Split(
            context=self._join(context, np.arange(len(starts))),
            candidates=np.append(starts, len(impression)),
            item=item,
            labels=labels,
            weights=weights,
            example=rows["example"].to_numpy(),
            user=heads["user"].to_numpy() if "user" in rows.schema.names else np.arange(len(starts)),
            oracle=rows["oracle"].to_numpy() if "oracle" in rows.schema.names else None,
            context_features=self._arrays(schema.context, heads, joined),
            candidate_features=self._arrays(own, rows, joined),
        )
        return Encoded(split, items, None, cut, unseen=unseen)

    def encode_splits(self, rows: pa.RecordBatch) -> list[tuple[int, Encoded]]:
        """Clean rows of whole impressions by their column `split`, each with its number. Safe to call from several
        threads; the result depends on nothing but the rows."""
        split = rows["split"].to_numpy()
        return [(each, self.encode(rows.filter(pa.array(split == each)))) for each in np.unique(split).tolist()]

    # ------------------------------------------------------------------------------------------ catalogues

    def _encode_catalogue(self, name: str, catalogue: Catalogue, coded: Coder) -> Joined:
        """Everything the features read from a catalogue (or from values that replace it)."""
        own = [feature for feature in self.sources.features if self.sources.column(feature).table == name]

        def values(kind: ArrayKind | HistoryKind) -> pa.Array:
            found = catalogue.values[self.sources.column(kind.feature)]
            return pa.concat_arrays([found, pa.nulls(1, found.type)])  # a row with a missing key

        return Joined(
            texts={kind.feature.name: self._with_fill(kind, catalogue, coded) for kind in of_kind(own, TextKind)},
            arrays={kind.feature.name: kind.array(values(kind), self.fitted) for kind in of_kind(own, ArrayKind)},
            lists={kind.feature.name: values(kind) for kind in of_kind(own, HistoryKind)},
        )

    def _with_fill(self, kind: TextKind, catalogue: Catalogue, coded: Coder) -> CodedText:
        """A catalogue's texts cut to the feature's budget, codes [V + 1]; what fills a missing one comes last."""
        column = self.sources.column(kind.feature)
        text, missing = coded(column), catalogue.missing(column)
        fill, _ = self.text.encode([str(kind.fill(self.fitted))], kind.budget + 1)
        tokens = text.tokens.append(fill)
        codes = np.where(missing, len(tokens) - 1, np.append(text.codes, 0))
        return CodedText(tokens.truncate(kind.budget), codes, tokens.lengths > kind.budget)

    def _coder(self, catalogues: dict[str, Catalogue]) -> Coder:
        """Tokenises each text column once for all that read it, to one token more than the largest of their budgets."""

        @cache
        def coded(column: Column) -> CodedText:
            features = self.sources.features
            budgets = [
                kind.budget for kind in of_kind(features, TextKind) if self.sources.column(kind.feature) == column
            ]
            for kind in of_kind(features, HistoryKind):
                if column in self.sources.item_columns(kind.feature):
                    budgets.append(kind.feature.item_tokens)
            return convert.tokenize(self.text, catalogues[column.table].values[column], max(budgets) + 1)

        return coded

    def _history_items(self, kind: HistoryKind, coded: Coder) -> convert.HistoryItems:
        columns = [coded(column) for column in self.sources.item_columns(kind.feature)]
        tokens = [text.tokens.take(text.codes) for text in columns]
        return convert.history_items(tokens, kind.feature.item_tokens, self.text.template.separator)

    def _items_of(self, joined: dict[str, Joined], home: str) -> Items:
        """The store's items: the rows of the catalogue `home`, and one for a missing key if such rows are kept."""
        own, names = joined[home], [feature.name for feature in self.sources.schema.candidate]
        texts = [own.texts[name] for name in names if name in own.texts]
        arrays = {name: own.arrays[name] for name in names if name in own.arrays}
        rows = len(texts[0].codes) if texts else len(next(iter(arrays.values())))
        rows -= self.sources.catalogues[home].unknown != "missing"
        return Items(self._join(texts, np.arange(rows)), {name: array[:rows] for name, array in arrays.items()})

    # ------------------------------------------------------------------------------------------ features of rows

    def _texts(self, features, rows: pa.RecordBatch, joined: dict[str, Joined], cut: Counter) -> list[CodedText]:
        """The texts of one side in schema order, histories among them."""
        out = []
        for feature in features:
            match kind_of(feature):
                case TextKind() as kind:
                    out.append(self._text(kind, rows, joined, cut))
                case HistoryKind() as kind:
                    out.append(self._history(kind, rows, joined, cut))
        return out

    def _text(self, kind: TextKind, rows, joined: dict[str, Joined], cut: Counter) -> CodedText:
        name, table = kind.feature.name, self.sources.column(kind.feature).table
        if table:
            text = joined[table].texts[name]
            text = CodedText(text.tokens, text.codes[_rows(rows, table)], text.cut)
        else:
            values = rows[f"feature:{name}"].fill_null(kind.fill(self.fitted))
            text = convert.tokenize(self.text, values, kind.budget)
        cut[name] += int(text.cut[text.codes].sum())
        return text

    def _history(self, kind: HistoryKind, rows, joined: dict[str, Joined], cut: Counter) -> CodedText:
        feature = kind.feature
        table = self.sources.column(feature).table
        if table:
            lists = joined[table].lists[feature.name]
            lists = lists.take(pa.array(_rows(rows, table) % len(lists)))
        else:
            lists = rows[f"feature:{feature.name}"]
        read = convert.read_history(feature, lists, self.histories[feature.name], self.text.template.separator)
        cut[feature.name] += int(read.cut.sum())
        cut[f"{feature.name} items"] += read.items_left
        cut[f"{feature.name} item texts"] += read.items_cut
        return CodedText(read.tokens, np.arange(len(lists)), read.cut)

    def _join(self, texts: list[CodedText], rows: np.ndarray) -> Ragged:
        """The texts of one side for some of its rows, a separator between those that are not empty."""
        if not texts:
            return Ragged.from_lengths(np.zeros(0, np.int32), np.zeros(len(rows), np.int64))
        return join([text.tokens.take(text.codes[rows]) for text in texts], self.text.template.separator)

    def _arrays(self, features, rows: pa.RecordBatch, joined: dict[str, Joined]) -> dict[str, np.ndarray]:
        """Features that are stored as arrays, [n, ...] by name."""
        out = {}
        for kind in of_kind(features, ArrayKind):
            name, table = kind.feature.name, self.sources.column(kind.feature).table
            if table:
                out[name] = joined[table].arrays[name][_rows(rows, table)]
            else:
                out[name] = kind.array(rows[f"feature:{name}"], self.fitted)
        return out

    def _labels(self, rows: pa.RecordBatch) -> tuple[np.ndarray, np.ndarray, Counter[str]]:
        """Labels and weights, [M, T] float32, zeros where they were not read; a class is its number. By task, the
        labels of classes that no training row has: their weight is 0."""
        tasks, unseen = self.sources.schema.tasks, Counter[str]()
        labels, weights = np.zeros((2, rows.num_rows, len(tasks)), np.float32)
        for t, task in enumerate(tasks):
            if f"label:{task.name}" not in rows.schema.names:
                continue
            label, weights[:, t] = rows[f"label:{task.name}"], rows[f"weight:{task.name}"].to_numpy()
            if LABELS[task.kind] == "class":
                number = pc.index_in(label, pa.array(self.fitted.classes[task.name], pa.string()))
                unknown = np.asarray(number.is_null())
                unseen[task.name] += int((unknown & np.asarray(label.is_valid())).sum())
                weights[unknown, t] = 0
                label = number.fill_null(0)
            labels[:, t] = label.to_numpy()
        return labels, weights, unseen


def refuse(problem) -> None:
    """For the callers that set no row aside."""
    raise InputError(str(problem))


def load_encoder(train: TrainConfig, folder: str | Path, unknown: Unknown | None = None) -> Encoder:
    """The encoder of a store or run folder, which holds `manifest.json` and `tokenizer/`; reads the catalogue files.

    `unknown` is what becomes of a key that is not in its catalogue, instead of `Catalogue.unknown`; None leaves that.

    Raises InputError where the folder is not whole or a catalogue cannot be read.
    """
    folder = Path(folder)
    if not (folder / "manifest.json").exists():
        raise InputError(f"{folder}: no manifest.json, expected a store or a run folder")
    try:
        manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
        fitted = Fitted(**manifest["fitted"])
        made = manifest.get("input", {}).get("secret", "")
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{folder / 'manifest.json'}: not the manifest of a store ({error})") from None
    data = train.data
    if unknown:
        data = replace(data, catalogues=tuple(replace(each, unknown=unknown) for each in data.catalogues))
    sources = Sources(train.schema, data)
    if made != privacy.fingerprint(sources.secret):
        raise InputError(
            f"{folder}: made with {'another' if made and sources.secret else 'a' if made else 'no'} secret "
            f"(data.hash_key_env), found {f'that of ${data.hash_key_env}' if sources.secret else 'none'}"
        )
    catalogues = read_catalogues(sources, refuse, splitting=False)
    return Encoder(sources, catalogues, load_tokenizer(folder / "tokenizer"), fitted)


def _rows(rows: pa.RecordBatch, catalogue: str) -> np.ndarray:
    return rows[f"row:{catalogue}"].to_numpy()

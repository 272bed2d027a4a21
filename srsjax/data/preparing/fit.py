"""Statistics of the training rows: what fills missing values, vocabularies of categories, texts for a tokenizer.

A feature of a catalogue counts once for each training candidate that is joined with its row. Counters grow with
distinct values only; medians are exact, from numbers kept on disk.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from srsjax.config import Task
from srsjax.config_data import LABELS
from srsjax.data.kinds import HistoryKind, TextKind, kind_of, of_kind
from srsjax.data.preparing.catalogue import Catalogue
from srsjax.data.preparing.sources import Column, Sources
from srsjax.data.preparing.statistics import Fitted, Seen, Statistic
from srsjax.data.reading import hashing
from srsjax.errors import InputError

LABEL_STATISTICS: dict[str, frozenset[Statistic]] = {"class": frozenset({"counts"}), "number": frozenset({"moments"})}
"""What must be known of the training rows' labels, by what a label column holds (`LABELS`)."""

# A vocabulary of some ten thousand words does not get better with more texts than this.
VOCABULARY_TEXTS = 1_000_000


def needs_fit(sources: Sources) -> bool:
    """Whether any feature or task needs statistics of the training rows."""
    return any(kind_of(feature).statistics for feature in sources.features) or bool(_fitted_tasks(sources))


def fit(sources: Sources, catalogues: dict[str, Catalogue], rows: Iterable[pa.RecordBatch], folder: Path) -> Fitted:
    """Fits everything the schema asks for on clean training rows, in one pass. `folder` holds numbers for medians.

    Raises InputError where a feature has no value at all to fit.
    """
    kinds = [kind for kind in map(kind_of, sources.features) if kind.statistics]
    features = [kind.feature for kind in kinds]
    seen = {kind.feature.name: Seen(kind.feature.name, kind.statistics, folder) for kind in kinds}
    tasks = _fitted_tasks(sources)
    labels = {task.name: Seen(f"label:{task.name}", LABEL_STATISTICS[LABELS[task.kind]], folder) for task in tasks}
    joined = {name: np.zeros(len(catalogues[name]), np.int64) for name in sources.joined(splitting=False)}
    for batch in rows:
        for name, of_label in labels.items():
            known = pc.greater(batch[f"weight:{name}"], 0)
            of_label.add(batch[f"label:{name}"].filter(known))
        for name, count in joined.items():
            row = batch[f"row:{name}"].to_numpy()
            count += np.bincount(row[row >= 0], minlength=len(count))
        for feature in features:
            if not sources.column(feature).table:
                seen[feature.name].add(batch[f"feature:{feature.name}"])
    for feature in features:
        column = sources.column(feature)
        if column.table:
            seen[feature.name].add_counted(catalogues[column.table].values[column], joined[column.table])
    fitted = Fitted()
    for kind in kinds:
        kind.keep(seen[kind.feature.name], fitted)
    for task in tasks:
        keep_label(task, labels[task.name], fitted)
    return fitted


def keep_label(task: Task, seen: Seen, fitted: Fitted) -> None:
    """Adds what a task needs of its training labels: class names, numbers in order of size and text in that of the
    alphabet; or mean and standard deviation.

    Raises InputError where they do not differ.
    """
    if LABELS[task.kind] == "number":
        fitted.labels[task.name] = seen.moments()
        found = "one number" if not fitted.labels[task.name]["std"] else ""
    else:
        names = list(task.classes or seen.counts)
        fitted.classes[task.name] = names if task.classes else sorted(names, key=_by_size)
        found = f"the classes {', '.join(names) or 'none'}" if len(names) < 2 else ""
    if found:
        raise InputError(
            f"task {task.name!r}: the training rows have {found} in column {task.column or task.name!r}, expected "
            "different labels"
        )


def _by_size(name: str) -> tuple[bool, float, str]:
    try:
        return False, float(name), name
    except ValueError:
        return True, 0.0, name


def _fitted_tasks(sources: Sources) -> list[Task]:
    return [task for task in sources.schema.tasks if LABELS[task.kind] in LABEL_STATISTICS]


def training_texts(sources: Sources, catalogues: dict[str, Catalogue], rows: Iterable[pa.RecordBatch]) -> Iterator[str]:
    """The distinct texts (`VOCABULARY_TEXTS` of a column at most) that training rows hold or are joined with."""
    texts = [kind.feature for kind in of_kind(sources.features, TextKind)]
    histories = [kind.feature for kind in of_kind(sources.features, HistoryKind)]
    columns = set(map(sources.column, texts))
    used = {name: np.zeros(len(catalogue), bool) for name, catalogue in catalogues.items()}
    known: defaultdict[Column, _Distinct] = defaultdict(_Distinct)
    for batch in rows:
        for name in sources.joined(splitting=False):
            row = batch[f"row:{name}"].to_numpy()
            used[name][row[row >= 0]] = True
        for text in texts:
            column = sources.column(text)
            if not column.table:
                yield from known[column].new(batch[f"feature:{text.name}"])
        for history in histories:
            if not sources.column(history).table:
                used[history.catalogue][pc.list_flatten(batch[f"feature:{history.name}"]).to_numpy()] = True
    for history in histories:
        column = sources.column(history)
        if column.table:
            lists = catalogues[column.table].values[column].filter(pa.array(used[column.table]))
            used[history.catalogue][pc.list_flatten(lists).to_numpy()] = True
        columns |= set(sources.item_columns(history))
    for column in sorted((column for column in columns if column.table), key=str):
        yield from known[column].new(catalogues[column.table].values[column].filter(pa.array(used[column.table])))


class _Distinct:
    """Lets each text of a column through once, by its hash."""

    def __init__(self):
        self.hashes = np.zeros(0, np.uint64)

    def new(self, texts: pa.Array) -> list[str]:
        texts = pc.unique(texts.drop_null())
        hashes = hashing.hash_texts(texts)
        new = np.flatnonzero(np.isin(hashes, self.hashes, invert=True))[: VOCABULARY_TEXTS - len(self.hashes)]
        self.hashes = np.concatenate([self.hashes, hashes[new]])
        return texts.take(pa.array(new)).to_pylist()

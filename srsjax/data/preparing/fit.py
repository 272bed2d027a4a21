"""Statistics of the training rows: what fills missing values, vocabularies of categories, texts for a tokenizer.

A feature of a catalogue counts once for each training candidate that is joined with its row. Counters grow with
distinct values only; medians are exact, from numbers kept on disk.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from srsjax.config import Categorical, Feature, History, Numeric, Text
from srsjax.data.preparing.catalogue import Catalogue
from srsjax.data.preparing.order import kth_smallest
from srsjax.data.preparing.sources import Column, Sources
from srsjax.data.reading import hashing
from srsjax.data.store.arrays import ArrayWriter
from srsjax.errors import InputError

# A vocabulary of some ten thousand words does not get better with more texts than this.
VOCABULARY_TEXTS = 1_000_000


@dataclass(frozen=True)
class Fitted:
    """Fitted statistics by feature, as the manifest keeps them."""

    fills: dict[str, str | float] = field(default_factory=dict)
    """What `mean`, `median` and `most_frequent` put in."""
    vocabularies: dict[str, list[str]] = field(default_factory=dict)
    """Categories in the order of their ids, from id 1."""
    numbers: dict[str, dict[str, float]] = field(default_factory=dict)
    """Mean and standard deviation of the numbers that are there."""

    def to_json(self) -> dict:
        """As plain data."""
        return asdict(self)


def needs_fit(sources: Sources) -> bool:
    """Whether any feature needs statistics of the training rows."""
    return any(_wants_values(feature) for feature in sources.features)


def fit(sources: Sources, catalogues: dict[str, Catalogue], rows: Iterable[pa.RecordBatch], folder: Path) -> Fitted:
    """Fits everything the schema asks for on clean training rows, in one pass. `folder` holds numbers for medians.

    Raises InputError where a feature has no value at all to fit.
    """
    features = [feature for feature in sources.features if _wants_values(feature)]
    seen = {feature.name: _Seen(feature, folder) for feature in features}
    joined = {name: np.zeros(len(catalogues[name]), np.int64) for name in sources.joined(splitting=False)}
    for batch in rows:
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
    return Fitted(
        fills={f.name: seen[f.name].fill() for f in features if f.missing in ("mean", "median", "most_frequent")},
        vocabularies={f.name: seen[f.name].vocabulary() for f in features if isinstance(f, Categorical)},
        numbers={f.name: seen[f.name].moments() for f in features if isinstance(f, Numeric)},
    )


def training_texts(sources: Sources, catalogues: dict[str, Catalogue], rows: Iterable[pa.RecordBatch]) -> Iterator[str]:
    """The distinct texts (`VOCABULARY_TEXTS` of a column at most) that training rows hold or are joined with."""
    columns = {sources.column(feature) for feature in sources.features if isinstance(feature, Text)}
    histories = [feature for feature in sources.features if isinstance(feature, History)]
    used = {name: np.zeros(len(catalogue), bool) for name, catalogue in catalogues.items()}
    known: defaultdict[Column, _Distinct] = defaultdict(_Distinct)
    for batch in rows:
        for name in sources.joined(splitting=False):
            row = batch[f"row:{name}"].to_numpy()
            used[name][row[row >= 0]] = True
        for feature in sources.features:
            column = sources.column(feature)
            if isinstance(feature, Text) and not column.table:
                yield from known[column].new(batch[f"feature:{feature.name}"])
            elif isinstance(feature, History) and not column.table:
                used[feature.catalogue][pc.list_flatten(batch[f"feature:{feature.name}"]).to_numpy()] = True
    for feature in histories:
        column = sources.column(feature)
        if column.table:
            lists = catalogues[column.table].values[column].filter(pa.array(used[column.table]))
            used[feature.catalogue][pc.list_flatten(lists).to_numpy()] = True
        columns |= {Column(feature.catalogue, name, "text") for name in feature.fields}
    for column in sorted((column for column in columns if column.table), key=str):
        yield from known[column].new(catalogues[column.table].values[column].filter(pa.array(used[column.table])))


def _wants_values(feature: Feature) -> bool:
    fitted = getattr(feature, "missing", "") in ("mean", "median", "most_frequent")
    return fitted or isinstance(feature, Numeric) or (isinstance(feature, Categorical) and not feature.hash_buckets)


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


class _Seen:
    """The values of one feature in the training rows."""

    def __init__(self, feature: Feature, folder: Path):
        self.feature = feature
        self.counts: Counter | None = Counter() if self._counts() else None
        self.path = folder / f"{feature.name}.npy"
        self.numbers = ArrayWriter(self.path, np.float64) if feature.missing == "median" else None
        self.count, self.mean, self.squares = 0, 0.0, 0.0

    def _counts(self) -> bool:
        return self.feature.missing == "most_frequent" or isinstance(self.feature, Categorical)

    def add(self, values: pa.Array) -> None:
        """Adds log values [n]."""
        values = values.drop_null()
        if self.counts is not None:
            for pair in pc.value_counts(values).to_pylist():
                self.counts[pair["values"]] += pair["counts"]
        if isinstance(self.feature, Numeric):
            numbers = values.to_numpy()
            self._moments(numbers, np.ones(len(numbers)))
            if self.numbers:
                self.numbers.append(numbers)

    def add_counted(self, values: pa.Array, times: np.ndarray) -> None:
        """Adds a catalogue's values [V], each as often as `times` [V] int64 says."""
        there = (times > 0) & np.asarray(values.is_valid())
        values, times = values.filter(pa.array(there)), times[there]
        if self.counts is not None:
            for value, count in zip(values.to_pylist(), times.tolist(), strict=True):
                self.counts[value] += count
        if isinstance(self.feature, Numeric):
            self._moments(values.to_numpy(), times)
            if self.numbers:
                for start in range(0, len(times), 4096):
                    part = slice(start, start + 4096)
                    self.numbers.append(np.repeat(values.to_numpy()[part], times[part]))

    def _moments(self, numbers: np.ndarray, times: np.ndarray) -> None:
        """Merges means and sums of squared differences (Chan, Golub & LeVeque 1979)."""
        added = int(times.sum())
        if not added:
            return
        mean = float(numbers @ times) / added
        difference = mean - self.mean
        total = self.count + added
        self.squares += float((numbers - mean) ** 2 @ times) + difference**2 * self.count * added / total
        self.mean += difference * added / total
        self.count = total

    def moments(self) -> dict[str, float]:
        deviation = (self.squares / self.count) ** 0.5 if self.count else 0.0
        return {"mean": self.mean, "std": deviation, "count": self.count}

    def vocabulary(self) -> list[str]:
        """Commonest first, then by name, so that the same rows give the same ids."""
        often = [value for value, count in self.counts.items() if count >= self.feature.min_count]
        return sorted(often, key=lambda value: (-self.counts[value], value))

    def fill(self) -> str | float:
        """The value that stands for a missing one."""
        if not (self.count or self.counts):
            raise InputError(
                f"feature {self.feature.name!r}: no training row has a value, so there is no "
                f'{self.feature.missing} to fill with; set missing="constant"'
            )
        match self.feature.missing:
            case "mean":
                return self.mean
            case "median":
                return self._median()
            case _:
                return min(self.counts, key=lambda value: (-self.counts[value], value))

    def _median(self) -> float:
        self.numbers.close()
        numbers = np.load(self.path, mmap_mode="r")

        def blocks() -> Iterator[np.ndarray]:
            for start in range(0, len(numbers), 1 << 20):
                yield numbers[start : start + (1 << 20)]

        middle = (len(numbers) - 1) // 2, len(numbers) // 2
        return sum(kth_smallest(blocks, k) for k in middle) / 2

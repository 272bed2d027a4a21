"""The items of a run's catalogue as results name them: keys, and the values of any column, in the order of the rows."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Hashable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from srsjax.config import columns
from srsjax.data.preparing.catalogue import key_hashes
from srsjax.data.preparing.encode import Encoder
from srsjax.data.preparing.values import Value
from srsjax.data.reading import tables
from srsjax.data.reading.cells import Problems
from srsjax.data.store.arrays import Items
from srsjax.errors import InputError, did_you_mean
from srsjax.inference.fingerprint import take_items


def warn_unknown(unknown: Mapping[str, int], stacklevel: int) -> None:
    """Warns of keys that are not in their catalogue; `unknown` counts them, by catalogue."""
    for name, count in unknown.items():
        if count:
            warnings.warn(
                f"{count:,} of the keys are not in catalogue {name!r}: their features are missing; give new items "
                "by their own columns",
                stacklevel=stacklevel + 1,
            )


def listed(contexts: Sequence[Value]) -> list[Value]:
    """Contexts as a list. Raises InputError for a single one, which would be taken for a list of letters or names."""
    if isinstance(contexts, str | Mapping):
        raise InputError(f"contexts: found {contexts!r}, expected a list of contexts")
    return list(contexts)


class CatalogueItems:
    """The rows of the catalogue that candidates come from; safe to call from several threads."""

    def __init__(self, encoder: Encoder):
        """Raises InputError where candidates are not the rows of one catalogue."""
        home = encoder.sources.home
        if not home or encoder.items is None:
            raise InputError(
                "schema.candidate: its features are not those of one catalogue, so there is no list of all items; give "
                "items"
            )
        self.encoder, self.name = encoder, home
        self._catalogue = encoder.catalogues[home]
        self._lock = threading.Lock()
        self._columns: dict[str, list] = {}

    def __len__(self) -> int:
        return len(self._catalogue)

    @cached_property
    def items(self) -> Items:
        """Texts and features of all V rows, without the row that stands for a missing key."""
        assert self.encoder.items is not None
        return take_items(self.encoder.items, np.arange(len(self)))

    def _problems(self) -> Problems:
        sources = self.encoder.sources
        return sources.problems(self.name, sources.data.on_bad_row)

    @property
    def key(self) -> tuple[str, ...]:
        """The columns of the key, as a candidate's mapping names them."""
        return self.encoder.sources.on(self.name)

    def keys(self) -> list[Any]:
        """The key of each row as in the files; a tuple where it has several columns."""
        parts = [self.column(name) for name in columns(self._catalogue.spec.key)]
        return parts[0] if len(parts) == 1 else list(zip(*parts, strict=True))

    def value(self, row: int) -> dict[str, Any]:
        """The candidate of a row, as `predict` takes it: its key by column."""
        parts = [self.column(name) for name in columns(self._catalogue.spec.key)]
        return {name: part[row] for name, part in zip(self.key, parts, strict=True)}

    def rows(self, keys: Sequence[Any]) -> np.ndarray:
        """The rows of these keys, [n] int64; -1 where the catalogue has none."""
        if not len(keys):
            return np.zeros(0, np.int64)
        names = columns(self._catalogue.spec.key)
        parts = zip(*(key if isinstance(key, tuple) else (key,) for key in keys), strict=True)
        try:
            arrays = {name: pa.array(values) for name, values in zip(names, parts, strict=True)}
        except (pa.ArrowInvalid, pa.ArrowTypeError, ValueError) as error:
            raise InputError(
                f"keys of catalogue {self.name!r}: expected values of {', '.join(names)} ({error})"
            ) from None
        chunk = tables.Chunk(Path("keys"), 0, pa.RecordBatch.from_pydict(arrays))
        hashes, missing = key_hashes(chunk, names, self._problems())
        return np.where(missing, -1, self._catalogue.find(hashes))

    def column(self, name: str) -> list[Any]:
        """The values of a column in the order of the rows, read from the catalogue's files; None where a row has none.

        Raises InputError where the catalogue has no such column.
        """
        name = name.removeprefix(f"{self.name}.")
        with self._lock:
            if name not in self._columns:
                self._columns[name] = self._read(name)
            return self._columns[name]

    def _read(self, name: str) -> list[Any]:
        spec = self._catalogue.spec
        names = tables.column_names(spec)
        if name not in names:
            raise InputError(f"catalogue {self.name!r}: no column {name!r}{did_you_mean(name, names)}")
        values: list[Any] = [None] * len(self)
        key = columns(spec.key)
        for chunk in tables.read(spec, [*dict.fromkeys([*key, name])]):
            hashes, _ = key_hashes(chunk, key, self._problems())
            rows = self._catalogue.find(hashes)
            for row, value in zip(rows.tolist(), chunk.batch[name].to_pylist(), strict=True):
                if row >= 0:
                    values[row] = value
        return values

    def values_of(self, given: Sequence[Any], name: str) -> list[Hashable]:
        """The value of a column of each of `given` candidates: their own, or that of their row in the catalogue.

        Raises InputError where a candidate has neither.
        """
        own = [each.get(name) if isinstance(each, Mapping) and name in each else None for each in given]
        missing = [i for i, each in enumerate(given) if not (isinstance(each, Mapping) and name in each)]
        if missing:
            looked_up, column = self.rows_of_values([given[i] for i in missing]), self.column(name)
            for i, row in zip(missing, looked_up.tolist(), strict=True):
                if row < 0:
                    raise InputError(f"items: number {i + 1} has no {name!r} and no key of catalogue {self.name!r}")
                own[i] = column[row]
        return own

    def rows_of_values(self, given: Sequence[Any]) -> np.ndarray:
        """The rows of candidates given by their key, [n] int64; -1 for others."""
        has = [isinstance(each, Mapping) and all(each.get(part) is not None for part in self.key) for each in given]
        found = np.full(len(given), -1, np.int64)
        found[has] = self.rows(
            [tuple(each[part] for part in self.key) for each, ok in zip(given, has, strict=True) if ok]
        )
        return found
